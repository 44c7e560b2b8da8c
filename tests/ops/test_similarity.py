# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples, survivors

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs, label=""):
    compare.check_levels("similarity", args, kwargs, label, floor=0.1)


def kind_of(kwargs):
    return {k: v for k, v in kwargs.items() if k != "index"}


@pytest.mark.parametrize("metric", survivors.METRICS)
def test_rows(metric):
    grid = samples.cover(
        3,
        24,
        frames=(0, 1, 2, 3),
        height=(1, 2, 5),
        width=(0, 1, 3, 67),
        depth=(0, 1, 2, 15, 16, 17, 63, 64, 65, 130, 257),
        dtype=(*samples.DTYPES, torch.uint8),
        wide_ref=(False, True),
        against=survivors.REFERENCES,
        layout=samples.LAYOUTS,
    )
    for i, case in enumerate(grid):
        check_levels(*survivors.similarity(i, metric=metric, **case), case)


@pytest.mark.parametrize("metric", survivors.METRICS)
def test_neighbourhoods(metric):
    grid = samples.cover(
        4,
        10,
        frames=(1, 2),
        height=(1, 2, 5, 8),
        width=(1, 3, 9),
        depth=(1, 17, 48),
        dtype=(*samples.DTYPES, torch.uint8),
        layout=samples.LAYOUTS,
        radius=(1, 1, 2, 100),
    )
    for i, case in enumerate(grid):
        check_levels(*survivors.similarity(i, metric=metric, **case), case)


@pytest.mark.parametrize("metric", survivors.METRICS)
def test_patches(metric):
    grid = samples.cover(
        5,
        16,
        frames=(1, 2),
        height=(1, 13, 28, 31, 45),
        width=(1, 14, 29, 67),
        depth=(1, 3, 4, 33),
        dtype=(torch.uint8, *samples.DTYPES),
        wide_ref=(False, True),
        against=("aligned", "frame", "row"),
        layout=samples.LAYOUTS,
        patch_height=(0, 1, 14, 14, 28, 1000),
        patch_width=(0, 1, 2, 14, 28),
    )
    for i, case in enumerate(grid):
        check_levels(*survivors.similarity(i, metric=metric, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    metric = draw(st.sampled_from(survivors.METRICS))
    form = draw(st.sampled_from(("row", "patch", "radius", "index")))
    kwargs = {
        "row": {},
        "patch": {"patch_height": draw(st.integers(0, 6)), "patch_width": draw(st.integers(0, 6))},
        "radius": {"radius": draw(st.integers(1, 2))},
        "index": {"against": "indexed"},
    }[form]
    args, kwargs = survivors.similarity(
        draw(st.integers(0, 2**20)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 7)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 90)),
        metric,
        draw(st.sampled_from((torch.float32, torch.uint8, torch.bfloat16))),
        **kwargs,
    )
    check_levels(args, kwargs)


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize(
    ("size", "high", "wide"),
    [
        ((150, 333), 14, 14),
        ((150, 333), 28, 28),
        ((150, 333), 0, 0),
        ((29, 130), 2, 1),
        ((1, 130), 1, 7),
        ((300, 33), 0, 16),
        ((258, 400), 129, 32),  # more rows than are read at a time
        ((5, 6500), 2, 14),
        ((5, 23000), 4, 2),  # rows of which one is read at a time
        ((4, 1500), 3, 341),
        ((4, 1500), 0, 1024),
        ((7, 5), 3, 2),  # rows shorter than a register
    ],
)
def test_pixels_are_exact(isa, size, high, wide, depth):
    """Sums of whole numbers: one rounding to fp32, whatever the size; black against white."""
    gen = samples.rng(6)
    x, r = (survivors.values(gen, 2, *size, depth, dtype=torch.uint8) for _ in range(2))
    x[1], r[1] = 0, 255
    got = ops.similarity(x, r, "l1", patch_height=high, patch_width=wide)
    args = (x, r, "l1", None, high, wide, 0, 1.0)
    want = ops.specs()["similarity"].reference(*args)
    assert torch.equal(got, want.float())
    assert (got[1] == 255.0).all()


def test_cosine_is_that_of_torch(isa):
    x, r = torch.randn(40, 96), torch.randn(40, 96)
    assert compare.distance(ops.similarity(x, r), F.cosine_similarity(x, r, -1)).rms < 1e-6
    x[3] = 0
    r[4] = 0
    assert ops.similarity(x, r)[3:5].tolist() == [0.0, 0.0]
    same = ops.similarity(x[5:], x[5:])
    assert (same - 1).abs().max() < 1e-6


def test_opposite_and_far(isa):
    x = torch.randn(7, 33)
    assert (ops.similarity(x, -x) + 1).abs().max() < 1e-6
    assert torch.equal(ops.similarity(x, x, "l1"), torch.zeros(7))
    assert torch.equal(ops.similarity(x, x, "gauss"), torch.ones(7))
    assert compare.distance(ops.similarity(x, -x, "l1"), 2 * x.abs().mean(-1)).rms < 1e-6
    wide = ops.similarity(x, x + 1, "gauss", alpha=33 / 2.0)
    assert (wide - float(np.exp(-1.0))).abs().max() < 1e-5


def test_a_neighbourhood_is_the_best_of_its_rows(isa):
    """A frame that moved by a row and a column: every inner row finds itself again."""
    frame = torch.randn(8, 9, 32)
    moved = frame.roll((1, 1), (0, 1))
    near = ops.similarity(moved[None], frame[None], radius=1)[0]
    assert (near[1:, 1:] - 1).abs().max() < 1e-6
    assert near[0].max() < 0.95
    assert ops.similarity(moved[None], frame[None])[0].max() < 0.95
    # The edge does not wrap around, and no row of another frame counts.
    lone = torch.zeros(2, 1, 3, 4)
    lone[0, 0, 0], lone[1, 0, 2] = 1, 1
    got = ops.similarity(torch.ones(2, 1, 3, 4), lone, "dot", radius=1)
    assert got[:, 0].tolist() == [[4.0, 4.0, 0.0], [0.0, 4.0, 4.0]]


def test_no_reference_is_never_similar(isa):
    x, ref = torch.full((5, 8), torch.nan), torch.ones(3, 8)
    x[2] = 1
    index = torch.tensor([-1, 3, 1, -(2**31), 2**31 - 1], dtype=torch.int32)
    assert ops.similarity(x, ref, index=index).tolist()[:2] == [-torch.inf] * 2
    assert ops.similarity(x, ref, index=index)[2] == pytest.approx(1)
    for metric, worst in (("dot", -1), ("gauss", -1), ("l1", 1), ("l2", 1)):
        s = ops.similarity(x, ref, metric, index=index)
        assert (s[[0, 1, 3, 4]] == worst * torch.inf).all()
        assert s[2].isfinite()


def test_not_a_number_comes_through(isa):
    x = torch.randn(1, 3, 3, 16)
    ref = x.clone()
    ref[0, 0, 0, 5] = torch.nan
    for metric in survivors.METRICS:
        s = ops.similarity(x, ref, metric)
        assert s.isnan().sum() == 1
        assert s[0, 0, 0].isnan()
        assert ops.similarity(x, ref, metric, radius=1).isnan().sum() == 4
        assert ops.similarity(x, ref, metric, patch_height=2, patch_width=2).isnan().sum() == 1


def test_shapes_of_the_reference(isa):
    x, gen = torch.randn(3, 4, 5, 16), samples.rng(8)
    for shape in ((3, 4, 5), (1, 4, 5), (4, 5), (3, 1, 1), (3, 4, 1), ()):
        ref = samples.normal(gen, *shape, 16)
        want = F.cosine_similarity(x, ref.expand(x.shape), -1)
        assert compare.distance(ops.similarity(x, ref), want).rms < 1e-6
    flat = x.flatten(1, 2)
    for shape in ((3, 20), (20,), (3, 1), ()):
        ref = samples.normal(gen, *shape, 16)
        want = F.cosine_similarity(flat, ref.expand(flat.shape), -1)
        assert compare.distance(ops.similarity(flat, ref), want).rms < 1e-6
    rows = samples.normal(gen, 6, 16)
    index = torch.randint(0, 6, (3, 20), generator=gen).int()
    want = F.cosine_similarity(flat, rows[index.long()], -1)
    assert compare.distance(ops.similarity(flat, rows, index=index), want).rms < 1e-6
    one = ops.similarity(flat[0], rows, index=index[0])
    assert compare.distance(one, want[0]).rms < 1e-6
    each = ops.similarity(flat, rows, index=index[0])  # the same of every frame
    assert compare.distance(each[1], F.cosine_similarity(flat[1], rows[index[0].long()], -1)).rms < 1e-6  # fmt: skip  # noqa: E501


def test_previous_frames_are_views(isa):
    x = torch.randn(4, 20, 48).bfloat16()
    got = ops.similarity(x[1:], x[:-1])
    want = F.cosine_similarity(x[1:].double(), x[:-1].double(), -1)
    assert compare.distance(got, want, 0.1).rms < 1e-6


def test_a_score_does_not_depend_on_other_rows(isa):
    (x, ref, _), _ = survivors.similarity(9, 3, 9, 700, 20)
    whole = ops.similarity(x, ref)
    torch.set_num_threads(1)
    assert compare.same_bits(ops.similarity(x, ref), whole)
    torch.set_num_threads(2)
    part = ops.similarity(x[1:2, 4:6, 13:600], ref[1:2, 4:6, 13:600])
    assert compare.same_bits(part, whole[1:2, 4:6, 13:600])
    tall = ops.similarity(x, ref, patch_height=3, patch_width=100)
    alone = ops.similarity(x[2:, 3:6], ref[2:, 3:6], patch_height=3, patch_width=100)
    assert compare.same_bits(alone[0, 0], tall[2, 1])


TERMS = {
    "the last element": lambda x, r, kw: x[..., -1].add_(3),
    "the right frame": lambda x, r, kw: r.copy_(r.roll(1, 0)),
    "the right line": lambda x, r, kw: r.copy_(r.roll(1, 1)),
    "the right column": lambda x, r, kw: r.copy_(r.roll(1, 2)),
    "the last line": lambda x, r, kw: x[:, -1].neg_(),
    "the last column": lambda x, r, kw: x[:, :, -1].neg_(),
    "height": lambda x, r, kw: kw.update(patch_height=kw["patch_height"] + 1),
}


@pytest.mark.parametrize("metric", survivors.METRICS)
@pytest.mark.parametrize("term", TERMS)
def test_sensitive_to_every_term(term, metric):
    """Also at the edges, where patches are short."""
    args, kwargs = survivors.similarity(
        10, 2, 11, 13, 5, metric, patch_height=4, patch_width=5, alpha=100.0
    )
    want = compare.reference("similarity", args, kwargs)
    compare.check("similarity", args, kwargs, want=want, floor=0.1)
    x, r, changed = args[0].clone(), args[1].clone(), dict(kwargs)
    TERMS[term](x, r, changed)
    got = compare.run("similarity", (x, r, metric), changed)
    with pytest.raises(AssertionError):
        compare.check("similarity", args, kwargs, got=got, want=want, floor=0.1)


@pytest.mark.parametrize("metric", ["cos", "l2"])
def test_the_length_of_either_counts(isa, metric):
    """Cosine knows no length, the distance does."""
    x, r = torch.randn(9, 40), torch.randn(9, 40)
    base = ops.similarity(x, r, metric)
    far = max(compare.distance(ops.similarity(4 * x, r, metric), base).rms,
              compare.distance(ops.similarity(x, 4 * r, metric), base).rms)  # fmt: skip
    assert far < 1e-6 if metric == "cos" else far > 1


def test_numpy():
    x, ref = np.random.randint(0, 256, (2, 1, 30, 30, 3), dtype=np.uint8)
    got = ops.similarity(x, ref, "l1", patch_height=14, patch_width=14)
    assert isinstance(got, np.ndarray)
    want = np.abs(x[0, :14, :14].astype(float) - ref[0, :14, :14]).mean()
    assert got[0, 0, 0] == np.float32(want)


X, INDEX = torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 6, dtype=torch.int32)
ROWS = torch.zeros(5, 8)
ERRORS = [
    ((X.double(), X), {}, TypeError, "similarity(x): expected one of float32, bfloat16"),
    ((X, X.half()), {}, TypeError, "similarity(ref): expected float32, got float16"),
    ((X.half(), X.byte()), {}, TypeError, "similarity(ref): expected float16 or float32, got"),
    ((X[0, 0, 0], X), {}, ValueError, "similarity(x): expected [W, D], [F, W, D] or [F, H, W, D]"),
    ((X, X[..., :7]), {}, ValueError, "similarity(ref): expected D = 8 in"),
    ((X, X[:, :3]), {}, ValueError, "similarity(ref): expected H = 4, or 1, got shape"),
    ((X.mT.contiguous().mT, X), {}, ValueError, "similarity(x): expected stride 1 along"),
    ((X, X, "cosine"), {}, ValueError, "similarity(metric): expected one of cos, dot, l1, l2"),
    ((X, X), {"alpha": 0.0}, ValueError, "similarity(alpha): expected a finite number above 0"),
    ((X, X), {"radius": -1}, ValueError, "similarity(radius): expected 0 or more, got -1"),
    ((X, X), {"patch_width": -1}, ValueError, "similarity(patch_width): expected 0 or more"),
    ((X, X[:, :1]), {"radius": 1}, ValueError, "similarity(ref): expected H, W = 4, 6 with"),
    ((X[0], X[0]), {"radius": 1}, ValueError, "similarity(x): expected [F, H, W, D] with"),
    ((X[0], X[0]), {"patch_height": 2}, ValueError, "similarity(x): expected [F, H, W, D] with"),
    ((X, X), {"index": INDEX}, ValueError, "similarity(ref): expected rows [1, 1, R, D]"),
    ((X, ROWS), {"index": INDEX.long()}, TypeError, "similarity(index): expected int32"),
    ((X, ROWS), {"index": INDEX[:, :3]}, ValueError, "similarity(index): expected H = 4, or 1"),
    ((X, ROWS), {"index": INDEX, "radius": 1}, NotImplementedError, "similarity(index): expected"),
    ((X, X), {"radius": 1, "patch_width": 2}, NotImplementedError, "similarity(radius): expected"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.similarity(*args, **kwargs)
