# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples, scores

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs, label=""):
    compare.check_levels("block_score", args, kwargs, label, floor=0.1)


@pytest.mark.parametrize("kind", ["mean", "bounds", "bits"])
def test_grid(kind):
    grid = samples.cover(
        11,
        20,
        batch=(1, 2),
        kv_heads=(1, 2, 3),
        group=(1, 2, 4),
        asked=(1, 1, 2, 5, 33),
        rows=(0, 1, 15, 16, 63, 64, 65, 130, 700),
        dim=(1, 2, 5, 16) if kind == "bits" else (16, 48, 64, 128, 256),
        dtype=samples.DTYPES,
        key_dtype=(None, *samples.DTYPES),
        layout=("plain", "pages", *samples.LAYOUTS),
        shared=(False, True),
        ragged=(False, True),
        indexed=(None, None, 0, 30, 200),
        heads=scores.HEADS,
        queries=scores.QUERIES,
        block_size=(1, 1, 1, 4, 16, 100, 2**40),
        scale=(1.0, 0.125),
    )
    for i, case in enumerate(grid):
        check_levels(*scores.block_score(i, kind=kind, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    kind = draw(st.sampled_from(("mean", "bounds", "bits")))
    args, kwargs = scores.block_score(
        draw(st.integers(0, 2**20)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 140)),
        draw(st.integers(1, 4)) * (1 if kind == "bits" else 16),
        kind=kind,
        ragged=draw(st.booleans()),
        indexed=draw(st.none() | st.integers(0, 90)),
        heads=draw(st.sampled_from(scores.HEADS)),
        queries=draw(st.sampled_from(scores.QUERIES)),
        block_size=draw(st.sampled_from((1, 1, 3, 16, 64))),
    )
    check_levels(args, kwargs)


@pytest.mark.parametrize("heads", ["each", "group", "sum"])
@pytest.mark.parametrize("queries", ["mean", "sum"])
def test_sums_fold_exactly(isa, queries, heads):
    """A row is read once whatever the heads; what comes out is the sum over all of them."""
    (q, keys), _ = scores.block_score(3, group=4, asked=7, rows=90)
    score = ops.block_score(q, keys, heads="each", queries=queries)
    one = torch.stack([
        ops.block_score(q[:, :, w : w + 1], keys, heads="each") for w in range(7)
    ])  # fmt: skip
    want = one.double().mean(0) if queries == "mean" else one.double().sum(0)
    if heads != "each":
        score = ops.block_score(q, keys, heads=heads, queries=queries)
        want = want.view(2, 2, 4, 90).sum(2) if heads == "group" else want.sum(1, True)
    assert compare.distance(score, want).rms < 1e-6


def test_bounds_hold_for_every_key(isa):
    """No key of a block scores above the block's bound; a block of one key scores as the key."""
    gen = samples.rng(4)
    q, k = samples.normal(gen, 2, 4, 3, 32), samples.normal(gen, 2, 2, 160, 32)
    blocks = k.view(2, 2, 10, 16, 32)
    low, high = blocks.amin(3), blocks.amax(3)
    for queries in scores.QUERIES:
        bound = ops.block_score(q, low, upper=high, heads="each", queries=queries)
        single = ops.block_score(q, k, heads="each", queries=queries)
        assert (single.view(2, 4, 10, 16).amax(-1) <= bound + 1e-4).all()
        same = ops.block_score(q, k, upper=k, heads="each", queries=queries)
        assert compare.distance(same, single).rms < 1e-6


def test_bits_count_what_agrees(isa):
    q = torch.tensor([0, -1, 0b1011], dtype=torch.int32).view(1, 1, 3, 1)
    k = torch.tensor([0, -1, 0b0001, -(2**31)], dtype=torch.int32).view(1, 1, 4, 1)
    s = [ops.block_score(q[:, :, w : w + 1], k)[0, 0].tolist() for w in range(3)]
    assert s == [[32, -32, 30, 30], [-32, 32, -30, -30], [26, -26, 28, 24]]
    assert ops.block_score(q, k, queries="sum")[0, 0].tolist() == [26, -26, 28, 24]
    assert ops.block_score(q, k, queries="max")[0, 0].tolist() == [32, 32, 30, 30]


@pytest.mark.parametrize("asked", [1, 2, 3, 5, 8, 40, 129])
def test_bits_of_any_number_of_queries_are_exact(isa, asked):
    """Queries fold into the digits of weights: even and odd numbers, many planes."""
    args, _ = scores.block_score(asked, kind="bits", dim=1, asked=asked, rows=600, group=1)
    for heads in ("sum", "each"):
        kwargs = {"heads": heads, "queries": "sum"}
        got, want = (
            compare.run("block_score", args, kwargs),
            compare.reference("block_score", args, kwargs),
        )
        assert torch.equal(got[0].double(), want[0].double())


@pytest.mark.parametrize("kv_heads", [1, 3, 4, 7, 8, 13, 16])
@pytest.mark.parametrize("asked", [1, 2, 5, 9, 17, 70])
def test_bits_of_any_number_of_heads_are_exact(isa, asked, kv_heads):
    """Rows of heads are added up together, by digits of weights: as many as fill a byte, and what
    is left of them; all bits set or none, too, where every sum is the largest."""
    args, _ = scores.block_score(
        kv_heads, kind="bits", dim=1, asked=asked, rows=333, group=1, kv_heads=kv_heads
    )
    q, keys = args
    keys[:, :, 5], keys[:, :, 6], q[0, ::2] = 0, -1, -1
    for both in ((q, keys), (torch.full_like(q, -1), keys)):
        got, want = (
            run("block_score", both, {"queries": "sum"}) for run in (compare.run, compare.reference)
        )
        assert torch.equal(got[0].double(), want[0].double())


@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({}, 2),
        ({"heads": "group"}, 2),
        ({"heads": "group", "queries": "sum"}, 2),
        ({"heads": "each"}, 6),
        ({"heads": "max"}, 6),
        ({"heads": "group_max", "queries": "max"}, 42),
        ({"queries": "max"}, 42),
        ({"block_size": 8}, 42),
    ],
)
@pytest.mark.parametrize("kind", ["mean", "bounds"])
def test_products_counted_are_those_that_run(kind, options, products):
    """Rows of folded queries, of two kv heads: one each where all is summed, else more."""
    (q, keys), kwargs = scores.block_score(3, 1, group=3, asked=7, rows=50, kind=kind, **options)
    bound, axes = compare.bind("block_score", (q, keys), kwargs)
    sides = 2 if kind == "bounds" else 1
    assert ops.specs()["block_score"].flops(axes, bound) == 2 * 50 * 64 * products * sides


def test_max_sim(isa):
    gen = samples.rng(5)
    q, k = samples.normal(gen, 1, 1, 6, 32), samples.normal(gen, 1, 1, 50, 32)
    got = ops.block_score(q, k, block_size=8, queries="sum")
    product = (q[0, 0].double() @ k[0, 0].double().T).split(8, 1)
    want = torch.stack([p.amax(1).sum() for p in product])
    assert compare.distance(got[0, 0], want).rms < 1e-6


def test_what_does_not_count_gives_minus_infinity(isa):
    (q, keys), _ = scores.block_score(6, rows=70)
    lengths = torch.tensor([0, 65], dtype=torch.int32)
    for block_size in (1, 8):
        s = ops.block_score(q, keys, lengths=lengths, block_size=block_size)
        assert (s[0] == -torch.inf).all()
        last = -(-65 // block_size)
        assert s[1, :, :last].isfinite().all()
        assert (s[1, :, last:] == -torch.inf).all()
    index = torch.tensor([[3, -1, 70, 69]], dtype=torch.int32)
    s = ops.block_score(q, keys, index=index, heads="each")
    assert s.isfinite().all(0).all(0).tolist() == [True, False, False, True]
    whole = ops.block_score(q, keys, heads="each")
    assert compare.same_bits(s[..., [0, 3]], whole[..., [3, 69]])


def test_scores_do_not_depend_on_their_neighbours(isa):
    for kind, dim in (("mean", 64), ("bounds", 64), ("bits", 1)):
        (q, keys), kwargs = scores.block_score(7, 3, rows=1300, kind=kind, dim=dim)
        whole = ops.block_score(q, keys, **kwargs)
        torch.set_num_threads(1)
        assert compare.same_bits(ops.block_score(q, keys, **kwargs), whole)
        torch.set_num_threads(2)
        for b, n in ((0, 1), (1, 70), (2, 1299)):
            part = {name: x[b : b + 1, :, n:] for name, x in kwargs.items()}
            alone = ops.block_score(q[b : b + 1], keys[b : b + 1, :, n:], **part)
            assert compare.same_bits(alone, whole[b : b + 1, :, n:])


TERMS = {
    "a query": lambda q, k, kw: q[:, :, -1].neg_(),
    "a head": lambda q, k, kw: q[:, -1].neg_(),
    "the right kv head": lambda q, k, kw: k.copy_(k.roll(1, 1)),
    "the right batch": lambda q, k, kw: k.copy_(k.roll(1, 0)),
    "the last element": lambda q, k, kw: q[..., -1].add_(3.0),
    "the scale": lambda q, k, kw: kw.update(scale=0.5),
    "mean or sum": lambda q, k, kw: kw.update(queries="sum"),
    "the bounds": lambda q, k, kw: kw.pop("upper"),
    "negative queries": lambda q, k, kw: q.abs_(),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("asked", [3, 33])
def test_sensitive_to_every_term(term, asked):
    (q, k), kwargs = scores.block_score(8, kind="bounds", asked=asked, heads="each")
    want = compare.reference("block_score", (q, k), kwargs)
    compare.check("block_score", (q, k), kwargs, want=want)
    other, changed = (q.clone(), k.clone()), dict(kwargs)
    TERMS[term](*other, changed)
    got = compare.run("block_score", other, changed)
    with pytest.raises(AssertionError):
        compare.check("block_score", (q, k), kwargs, got=got, want=want)


def test_numpy():
    (q, keys), _ = scores.block_score(9, key_dtype=torch.float16)
    got = ops.block_score(q.numpy(), keys.numpy())
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, ops.block_score(q, keys).numpy())


Q, K = torch.zeros(2, 4, 3, 32), torch.zeros(2, 2, 9, 32)
BITS = torch.zeros(2, 2, 9, 1, dtype=torch.int32)
ROWS = torch.zeros(2, 5, dtype=torch.int32)
ERRORS = [
    ((Q.double(), K), {}, TypeError, "block_score(q): expected one of float32, bfloat16, float16"),
    ((Q, BITS), {}, ValueError, "block_score(keys): expected D = 32"),
    ((Q[..., :1], BITS), {}, TypeError, "block_score(keys): expected floats, as q, got int32"),
    ((Q[..., :24], K[..., :24]), {}, NotImplementedError, "block_score(q): expected one of the"),
    ((BITS[..., :0], BITS[..., :0]), {}, NotImplementedError, "block_score(q): expected one of 1"),
    ((BITS, BITS), {"upper": BITS}, ValueError, "block_score(upper): expected None with"),
    ((Q, K), {"upper": K[:1]}, ValueError, "block_score(upper): expected shape (2, 2, 9, 32)"),
    ((Q, K), {"upper": K.half()}, TypeError, "block_score(upper): expected float32, as keys"),
    ((Q[:, :3], K), {}, ValueError, "block_score(q): expected query heads that are a"),
    ((Q[:, :, :0], K), {}, ValueError, "block_score(q): expected 1 query or more, got 0"),
    ((Q, K.mT.contiguous().mT), {}, ValueError, "block_score(keys): expected stride 1 along"),
    ((Q[:1], K), {}, ValueError, "block_score(keys): expected B = 1, or 1, got"),
    ((Q, K), {"heads": "all"}, ValueError, "block_score(heads): expected one of each, group"),
    ((Q, K), {"queries": "last"}, ValueError, "block_score(queries): expected one of mean, sum"),
    ((Q, K), {"block_size": 0}, ValueError, "block_score(block_size): expected 1 or more, got 0"),
    ((Q, K), {"scale": 0.0}, ValueError, "block_score(scale): expected a finite number above 0"),
    ((Q, K), {"index": ROWS.long()}, TypeError, "block_score(index): expected int32, got int64"),
    ((Q[:, :, :], K), {"lengths": ROWS[0]}, ValueError, "block_score(lengths): expected B = 2"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.block_score(*args, **kwargs)


@pytest.mark.parametrize("dim", [32, 80, 128])
def test_many_queries_in_bf16(isa, dim):
    gen = torch.Generator().manual_seed(dim)
    q = torch.randn(2, 4, 9, dim, generator=gen).bfloat16()
    k = torch.randn(2, 2, 70, dim, generator=gen).bfloat16()
    for options in ({}, {"heads": "each", "queries": "max"}, {"queries": "sum", "block_size": 7}):
        compare.check("block_score", (q, k), options, (dim, options))
