# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import ops
from tests import levels
from tests.ops import compare, masses, samples
from tests.ops.masses import check_assign

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs, label=""):
    for level in levels.of_op("assign"):
        with headrace.use_isa(level):
            check_assign(args, kwargs, (level, label))


@pytest.mark.parametrize("metric", masses.METRICS)
@pytest.mark.parametrize("values", ["normal", "ties"])
def test_grid(metric, values):
    grid = samples.cover(
        41,
        12,
        batch=(1, 2),
        rows=(0, 1, 2, 24, 25, 63, 65, 131),
        candidates=(0, 1, 2, 63, 64, 65, 200),
        dim=(1, 2, 5, 16) if metric == "hamming" else (16, 48, 64, 80, 128),
        dtype=samples.DTYPES,
        layout=samples.LAYOUTS,
        shared=(False, True),
        ragged=(False, True),
        causal=(False, True),
        threshold=(None, None, 0.0, 0.4, -20.0),
    )
    for i, case in enumerate(grid):
        check_levels(*masses.assign(i, metric=metric, values=values, **case), case)


@pytest.mark.parametrize("metric", masses.METRICS)
def test_rows_among_themselves(metric):
    for i, rows in enumerate((0, 1, 2, 3, 64, 65, 131)):
        for values in ("normal", "ties"):
            for how in ({"causal": True}, {"bipartite": True}):
                case = dict(rows=rows, candidates=None, values=values, ragged=i % 2 == 1, **how)
                dim = 2 if metric == "hamming" else 32
                check_levels(*masses.assign(i, dim=dim, metric=metric, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    metric = draw(st.sampled_from(masses.METRICS))
    how = draw(st.sampled_from(("none", "causal", "bipartite")))
    check_levels(
        *masses.assign(
            draw(st.integers(0, 2**20)),
            draw(st.integers(1, 2)),
            draw(st.integers(0, 40)),
            None if how == "bipartite" else draw(st.integers(0, 80)),
            draw(st.integers(1, 3)) * (1 if metric == "hamming" else 16),
            metric=metric,
            values=draw(st.sampled_from(("normal", "ties"))),
            ragged=draw(st.booleans()),
            threshold=draw(st.none() | st.floats(-10, 1)),
            **({how: True} if how != "none" else {}),
        )
    )


@pytest.mark.parametrize("metric", masses.METRICS)
def test_the_first_of_equals_wins(isa, metric):
    """The same candidate again, in the tile and in later ones, changes nothing."""
    kind = dict(metric=metric, dim=2 if metric == "hamming" else 32)
    (x, c), _ = masses.assign(1, 1, 30, 50, **kind)
    once = ops.assign(x, c, metric=metric)
    again = ops.assign(x, torch.cat([c, c, c.flip(1), c], 1), metric=metric)
    assert torch.equal(once[0], again[0])
    assert compare.same_bits(once[1], again[1])


def test_nan_and_infinity_never_win(isa):
    gen = samples.rng(2)
    x, c = samples.normal(gen, 3, 32), samples.normal(gen, 5, 32)
    for metric in masses.METRICS[:3]:
        want = ops.assign(x, c[1:], metric=metric)
        broken = c.clone()
        broken[0, 7] = torch.nan
        got = ops.assign(x, broken, metric=metric)
        assert torch.equal(got[0], want[0] + 1), metric
        assert compare.same_bits(got[1], want[1]), metric
        rows = x.clone()
        rows[1, 3] = torch.nan
        id, similarity = ops.assign(rows, c, metric=metric)
        assert id[1] == -1, metric
        assert similarity[1] == -torch.inf, metric
        assert torch.equal(id[::2], ops.assign(x, c, metric=metric)[0][::2]), metric


@pytest.mark.parametrize("metric", masses.METRICS[:3])
@pytest.mark.parametrize("dtype", samples.DTYPES)
def test_nan_infinity_and_zeros_as_the_reference_has_them(dtype, metric):
    gen = samples.rng(10)
    x, c = (samples.normal(gen, 1, n, 32).to(dtype) for n in (9, 70))
    x[0, 0, 0], x[0, 5], x[0, 6], x[0, 8] = torch.nan, torch.inf, 0.0, -torch.inf
    c[0, 3, 5], c[0, 4], c[0, 7], c[0, 9] = torch.inf, torch.nan, 0.0, 0.0
    c[0, 60] = c[0, 61]
    want = compare.reference("assign", (x, c), {"metric": metric})
    for level in levels.of_op("assign"):
        with headrace.use_isa(level):
            id, similarity = ops.assign(x, c, metric=metric)
        assert torch.equal(id, want[0].int()), level
        assert torch.allclose(similarity, want[1].float(), rtol=1e-4, atol=1e-4), level
    assert id[0, 0] == -1  # a row that holds NaN is like none, also where a zero is a candidate
    assert similarity[0, 0] == -torch.inf
    if metric != "dot":
        assert id[0, 6] == (0 if metric == "cos" else 7)


def test_rows_of_no_length_have_cosine_zero(isa):
    x, c = torch.zeros(2, 16), torch.ones(3, 16)
    x[1, 15] = 2.0
    c[0] = 0.0
    id, similarity = ops.assign(x, c)
    assert id.tolist() == [0, 1]
    assert similarity.tolist() == [0.0, 0.25]
    assert ops.assign(x, c[:1], threshold=0.1)[0].tolist() == [-1, -1]


def test_squared_distances_do_not_cancel(isa):
    """Near neighbours far from the origin: |x|^2 - 2x.c + |c|^2 would lose them in fp32."""
    gen = samples.rng(3)
    c = 1000 + samples.normal(gen, 40, 64)
    x = c[torch.randperm(40, generator=gen)] + 1e-3
    id, similarity = ops.assign(x, c, metric="l2")
    far = (x.double()[:, None] - c.double()).square().sum(-1)
    assert torch.equal(id.long(), far.argmin(1))
    assert compare.distance(-similarity, far.amin(1)).rms < 1e-5


@pytest.mark.parametrize("dtype", samples.DTYPES)
@pytest.mark.parametrize("away", [0, 100, 30000])
def test_the_nearest_is_exact_wherever_the_origin_is(isa, dtype, away):
    """Of whole numbers all distances are, so that the nearest is known; ties are many."""
    gen = samples.rng(8)
    top = {torch.bfloat16: 100, torch.float16: 1000}.get(dtype, 10**6)
    whole = lambda n: min(away, top) + torch.randint(-2, 3, (n, 32), generator=gen)  # noqa: E731
    c, x = whole(150).to(dtype), whole(40).to(dtype)
    x[7] = c[99]
    far = (x.double()[:, None] - c.double()).square().sum(-1)
    first = (far == far.amin(1, True)).int().argmax(1)
    for rows in (x, x[:1], x[6:8]):  # of one row or two candidates are read in place
        id, similarity = ops.assign(rows, c, metric="l2")
        at = 0 if rows.shape[0] != 2 else 6
        assert torch.equal(id.long(), first[at : at + len(rows)])
        assert torch.equal(-similarity.double(), far.amin(1)[at : at + len(rows)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distances_whose_terms_overflow(isa, dtype):
    """|c|^2 is beyond fp32, and the distance is not; a distance beyond it is of no candidate."""
    gen = samples.rng(9)
    c = (1e19 + 1e17 * samples.normal(gen, 70, 16)).to(dtype)
    x = (c[[69, 3, 64]].double() * 0.75).to(dtype)
    c[5] = torch.inf
    far = (x.double()[:, None] - c.double()).square().sum(-1).nan_to_num(torch.inf)
    id, similarity = ops.assign(x, c, metric="l2")
    assert torch.equal(id.long(), far.argmin(1))
    assert compare.distance(-similarity, far.amin(1)).rms < 1e-5
    id, similarity = ops.assign(-x, c[:4].contiguous() * 2, metric="l2")
    assert id.tolist() == [-1] * 3
    assert similarity.tolist() == [-torch.inf] * 3


def test_k_means_step(isa):
    """One round with segment_reduce: the new centroids are the means of what chose them."""
    (x, c), _ = masses.assign(4, 1, 200, 7, 32, metric="l2")
    id, _ = ops.assign(x[0], c[0], metric="l2")
    total, count = torch.zeros(7, 1, 32), torch.zeros(7, dtype=torch.int32)
    ops.segment_reduce(x[0][:, None], id, total, count=count)
    for j in range(7):
        mine = x[0][id == j].double()
        assert int(count[j]) == len(mine)
        if len(mine):
            assert compare.distance(total[j, 0] / count[j], mine.mean(0)).rms < 1e-5


def test_bipartite_names_rows_of_x(isa):
    x = torch.zeros(7, 16)
    for i, at in enumerate((3, 5, 1, 3, 5, 1, 2)):
        x[i, at] = 1.0
    id, similarity = ops.assign(x, bipartite=True)
    assert id.tolist() == [3, 5, 1, 1]
    assert similarity.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_bits_do_not_depend_on_neighbours(isa):
    for metric in masses.METRICS:
        kind = dict(metric=metric, dim=2 if metric == "hamming" else 48)
        (x, c), _ = masses.assign(5, 2, 131, 90, **kind)
        whole = ops.assign(x, c, metric=metric)
        torch.set_num_threads(1)
        alone = ops.assign(x, c, metric=metric)
        torch.set_num_threads(2)
        for b, n in ((0, 0), (1, 1), (1, 77), (0, 130)):
            one = ops.assign(x[b, n:], c[b], metric=metric)
            for got, w, a in zip(one, whole, alone, strict=True):
                assert compare.same_bits(got, w[b, n:]), (metric, n)
                assert compare.same_bits(w, a), metric


TERMS = {
    "a row": lambda x, c, kw: x[:, -1].neg_(),
    "a candidate": lambda x, c, kw: c[:, 0].neg_(),
    "the last candidate": lambda x, c, kw: c[0, 64].copy_(x[0, 65]),
    "the right batch": lambda x, c, kw: c.copy_(c.roll(1, 0)),
    "the last element": lambda x, c, kw: x[..., -1].neg_(),
    "the lengths": lambda x, c, kw: kw.pop("lengths"),
    "causality": lambda x, c, kw: kw.update(causal=False),
    "the threshold": lambda x, c, kw: kw.update(threshold=-30.0),
    "the metric": lambda x, c, kw: kw.update(metric="dot" if kw["metric"] != "dot" else "l2"),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("metric", masses.METRICS[:3])
def test_sensitive_to_every_term(term, metric):
    (x, c), kwargs = masses.assign(6, 2, 66, 66, 16, metric=metric, causal=True)
    kwargs |= {"lengths": torch.tensor([66, 40]).int()}
    kwargs["threshold"] = {"cos": 0.45, "dot": 7.0, "l2": -20.0}[metric]
    check_assign((x, c), kwargs)
    other, changed = (x.clone(), c.clone()), dict(kwargs)
    TERMS[term](*other, changed)
    got = compare.run("assign", other, changed)
    with pytest.raises(AssertionError):
        check_assign((x, c), kwargs, got=got)


def test_numpy():
    (x, c), _ = masses.assign(7)
    got = ops.assign(x.numpy(), c.numpy())
    assert all(isinstance(a, np.ndarray) for a in got)
    for a, b in zip(got, ops.assign(x, c), strict=True):
        assert np.array_equal(a, b.numpy())


X, C, BITS = torch.zeros(2, 9, 32), torch.zeros(2, 5, 32), torch.zeros(2, 9, 2).int()
ERRORS = [
    ((X.double(), C), {}, TypeError, "assign(x): expected one of float32, bfloat16, float16"),
    ((X, C.half()), {}, TypeError, "assign(c): expected float32, as x, got float16"),
    ((X, C), {"metric": "l1"}, ValueError, "assign(metric): expected one of cos, dot, l2"),
    ((X, C), {"metric": "hamming"}, TypeError, "assign(x): expected int32 for metric hamming"),
    ((BITS, BITS), {}, TypeError, "assign(x): expected floats for metric cos, got int32"),
    ((BITS[..., :0], BITS[..., :0]), {"metric": "hamming"}, NotImplementedError, "assign(x)"),
    ((X[..., :24], C[..., :24]), {}, NotImplementedError, "assign(x): expected one of the wid"),
    ((X, C[..., :16]), {}, ValueError, "assign(c): expected D = 32"),
    ((X[:1], C), {}, ValueError, "assign(c): expected B = 1, or 1, got"),
    ((X,), {}, ValueError, "assign(c): expected candidates, or causal or bipartite, got None"),
    ((X, C), {"bipartite": True}, ValueError, "assign(bipartite): expected no candidates"),
    ((X,), {"bipartite": True, "causal": True}, ValueError, "assign(bipartite): expected no"),
    ((X, C), {"threshold": torch.nan}, ValueError, "assign(threshold): expected a number, got"),
    ((X, C), {"lengths": BITS[:, 0, 0].long()}, TypeError, "assign(lengths): expected int32"),
    ((X, C), {"lengths": BITS[0, :, 0]}, ValueError, "assign(lengths): expected B = 2"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.assign(*args, **kwargs)
