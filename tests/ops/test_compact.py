# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples, survivors

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs, label=""):
    compare.check_levels("compact", args, kwargs, label, floor=0.1)


def exact(args, kwargs):
    """A gather's bits, NaN and all."""
    want = ops.specs()["compact"].reference(**compare.bind("compact", args, kwargs)[0])
    y, *rest = ops.compact(*args, **kwargs)
    assert compare.same_bits(y, want[0])
    for got, one in zip(rest, want[1:], strict=True):
        assert torch.equal(got.double(), one.double())


def test_gathers_are_exact(isa):
    grid = samples.cover(
        12,
        32,
        batch=(0, 1, 2),
        heads=(1, 3),
        size=(0, 1, 2, 63, 64, 65, 67, 257),
        depth=(0, 1, 3, 16, 65, 700),
        dtype=survivors.MOVED,
        masked=(False, True),
        share=(0.0, 0.3, 1.0),
        shared=(False, True),
        weighted=(False, True),
        layout=samples.LAYOUTS,
        capacity=(None, None, 0, 1, 20, 300),
    )
    for i, case in enumerate(grid):
        if case["dtype"] == torch.float8_e4m3fn:  # torch compares and pads no codes
            args, kwargs = survivors.compact(i, **(case | {"dtype": torch.uint8}))
            y = ops.compact(args[0].view(torch.float8_e4m3fn), *args[1:], **kwargs).y
            assert torch.equal(y.view(torch.uint8), ops.compact(*args, **kwargs).y)
            continue
        exact(*survivors.compact(i, **case))


def test_merges():
    grid = samples.cover(
        13,
        24,
        batch=(1, 2),
        heads=(1, 3),
        size=(1, 2, 63, 64, 67, 257),
        depth=(1, 3, 16, 65, 130),
        dtype=samples.DTYPES,
        masked=(False, True),
        share=(0.0, 0.1, 0.5),
        shared=(False, True),
        weighted=(False, True),
        layout=samples.LAYOUTS,
        capacity=(None, 0, 1, 20, 300),
    )
    for i, case in enumerate(grid):
        check_levels(*survivors.compact(i, merged=True, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    args, kwargs = survivors.compact(
        draw(st.integers(0, 2**20)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 90)),
        draw(st.integers(1, 40)),
        masked=draw(st.booleans()),
        share=draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        merged=draw(st.booleans()),
        weighted=draw(st.booleans()),
        capacity=draw(st.none() | st.integers(0, 95)),
    )
    check_levels(args, kwargs)


def test_it_is_what_torch_gives(isa):
    x = torch.randn(50, 33)
    mask = torch.rand(50) < 0.5
    y, sizes, index, count = ops.compact(x, mask=mask)
    n = int(count)
    assert n == mask.sum()
    assert torch.equal(y[:n], x[mask])
    assert not y[n:].any()
    assert index[:n].tolist() == mask.nonzero()[:, 0].tolist()
    assert index[n:].eq(-1).all()
    assert sizes.tolist() == [1.0] * n + [0.0] * (50 - n)
    few = ops.compact(x, mask=mask, capacity=4)
    assert torch.equal(few.y, x[mask][:4])
    assert few.number == 4


def test_a_selection_goes_straight_in(isa):
    """What select gives of ragged rows: one call, no look at the counts."""
    score, x = torch.randn(3, 40), torch.randn(3, 40, 8)
    index, count = ops.select(score, "threshold", threshold=0.5)
    y, _, kept, number = ops.compact(x, index, count)
    assert torch.equal(kept, index)
    assert torch.equal(number, count)
    for b in range(3):
        assert torch.equal(y[b, : count[b]], x[b][score[b] >= 0.5])
        assert not y[b, count[b] :].any()


def test_merging_as_it_is_published(isa):
    """ToMe: means weighted by the sizes of tokens; merging twice is merging once."""
    x = torch.randn(6, 20)
    sizes = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    mask = torch.tensor([True, False, True, False, False, True])
    target = torch.tensor([5, 0, 0, 0, 4, -1], dtype=torch.int32)  # a kept row stays where it is
    y, total, _, count = ops.compact(x, mask=mask, target=target, weights=sizes)
    want = (x[0] + 2 * x[1] + 3 * x[3]) / 6
    assert count == 3
    assert compare.distance(y[0], want).rms < 1e-6
    assert torch.equal(y[1], x[2])  # nobody merges into it
    assert torch.equal(y[2], x[5])
    assert total[:3].tolist() == [6.0, 1.0, 1.0]  # row 4 goes to itself, which is dropped
    again = ops.compact(
        y[:3], mask=torch.tensor([True, False, False]), weights=total[:3],
        target=torch.tensor([0, 0, 0], dtype=torch.int32),
    )  # fmt: skip
    assert again.sizes[0] == 8.0
    assert compare.distance(again.y[0], (6 * want + x[2] + x[5]) / 8).rms < 1e-6


def test_weights_that_add_up_to_nothing(isa):
    x, mask = torch.randn(3, 8), torch.tensor([True, False, True])
    y, sizes, *_ = ops.compact(
        x, mask=mask, target=torch.zeros(3, dtype=torch.int32), weights=torch.zeros(3)
    )
    assert torch.equal(y[:2], x[mask])
    assert not sizes.any()


def test_counts_beyond_the_index(isa):
    x, index = torch.randn(1, 9, 4), torch.tensor([[0, 5]], dtype=torch.int32)
    for number, kept in ((-3, 0), (1, 1), (7, 2)):
        got = ops.compact(x, index, torch.tensor([number], dtype=torch.int32))
        assert got.number.tolist() == [kept]
        assert torch.equal(got.y[0, :kept], x[0, [0, 5]][:kept])
        assert got.kept[0].tolist() == [0, 5][:kept] + [-1] * (2 - kept)


def test_rows_do_not_depend_on_their_neighbours(isa):
    args, kwargs = survivors.compact(14, 3, 2, 500, 300, merged=True, weighted=True)
    whole = ops.compact(*args, **kwargs)
    torch.set_num_threads(1)
    assert all(map(compare.same_bits, ops.compact(*args, **kwargs), whole))
    torch.set_num_threads(2)
    part = {k: v[1:2, 1:] for k, v in kwargs.items() if v is not None}
    alone = ops.compact(args[0][1:2, 1:], **part)
    assert all(compare.same_bits(a[0, 0], w[1, 1]) for a, w in zip(alone, whole, strict=True))


TERMS = {
    "the mask": lambda x, kw: kw["mask"][..., 3:4].logical_not_(),
    "a member": lambda x, kw: kw["target"].masked_fill_(kw["target"] == 0, -1),
    "the weights": lambda x, kw: kw.update(weights=None),
    "the target": lambda x, kw: kw.update(target=None),
    "the right head": lambda x, kw: x.copy_(x.roll(1, 1)),
    "the right batch": lambda x, kw: x.copy_(x.roll(1, 0)),
    "the last column": lambda x, kw: x[..., -1].add_(3),
    "the capacity": lambda x, kw: kw["mask"].copy_(kw["mask"].flip(-1)),
}


@pytest.mark.parametrize("term", TERMS)
def test_sensitive_to_every_term(term):
    (x,), kwargs = survivors.compact(15, size=30, depth=21, weighted=True, merged=True, capacity=8)
    x = x.nan_to_num(0.5)
    kwargs["target"] = torch.randint(0, 9, (2, 3, 30)).int()
    kwargs["mask"][..., :9] = True
    want = compare.reference("compact", (x,), kwargs)
    compare.check("compact", (x,), kwargs, want=want)
    other = {k: v.clone() if torch.is_tensor(v) else v for k, v in kwargs.items()}
    changed = x.clone()
    TERMS[term](changed, other)
    got = compare.run("compact", (changed,), other)
    with pytest.raises(AssertionError):
        compare.check("compact", (x,), kwargs, got=got, want=want)


def test_numpy():
    x, score = np.random.randn(40, 6).astype(np.float32), np.random.randn(40).astype(np.float32)
    index, count = ops.select(score, k=7)
    got = ops.compact(x, index, count)
    assert all(isinstance(g, np.ndarray | np.int32) for g in got)
    assert np.array_equal(got.y, x[np.sort(np.argsort(-score)[:7])])
    again = ops.compact(x, mask=score > 0)
    assert np.array_equal(again.y[: again.number], x[score > 0])


X, INDEX = torch.zeros(2, 3, 9, 8), torch.zeros(2, 3, 1, dtype=torch.int32)
MASK, WEIGHTS = torch.zeros(2, 3, 9, dtype=torch.bool), torch.zeros(2, 3, 9)


def named(*rows):
    return torch.tensor(rows, dtype=torch.int32)


ERRORS = [
    ((X.double(), INDEX), {}, TypeError, "compact(x): expected one of float32, bfloat16"),
    ((X[0, 0, 0], INDEX), {}, ValueError, "compact(x): expected [N, D], [B, N, D] or [B, H, N, D]"),
    ((X,), {}, ValueError, "compact(index): expected an index or a mask, got neither"),
    ((X, INDEX), {"mask": MASK}, ValueError, "compact(index): expected an index or a mask, got b"),
    ((X, INDEX.long()), {}, TypeError, "compact(index): expected int32, got int64"),
    ((X, INDEX[:, :2]), {}, ValueError, "compact(index): expected H = 3, or 1, got shape"),
    ((X, INDEX), {"capacity": 3}, ValueError, "compact(capacity): expected None with an index"),
    ((X,), {"mask": MASK, "capacity": -1}, ValueError, "compact(capacity): expected 0 or more"),
    ((X,), {"mask": MASK[..., :8]}, ValueError, "compact(mask): expected N = 9 in"),
    ((X,), {"mask": WEIGHTS}, TypeError, "compact(mask): expected bool, got float32"),
    ((X, None, INDEX[..., 0]), {"mask": MASK}, ValueError, "compact(count): expected None with"),
    ((X, INDEX), {"weights": WEIGHTS[:, :2]}, ValueError, "compact(weights): expected H = 3, or 1"),
    ((X, INDEX), {"weights": WEIGHTS.half()}, TypeError, "compact(weights): expected float32"),
    ((X.byte(),), {"mask": MASK, "target": named(*[0] * 9)}, NotImplementedError,
     "compact(x): expected one of float32, bfloat16, float16 to merge, got uint8"),
    ((X, named(3, 3)), {}, ValueError, "compact(index): expected ascending rows below 9, got 3 af"),
    ((X, named(0, 9)), {}, ValueError, "compact(index): expected ascending rows below 9, got 9"),
    ((X, named(-1)), {}, ValueError, "compact(index): expected ascending rows below 9, got -1 fi"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.compact(*args, **kwargs)
