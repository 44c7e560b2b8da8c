# SPDX-License-Identifier: Apache-2.0
"""Calls on plain rows go straight to the kernels: what is not plain must not."""

import numpy as np
import pytest
import torch

import headrace
from headrace import ops
from headrace.errors import BackendError
from tests.direct import UNUSUAL, direct

X = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
REF = X.flip(0) + 0.5
INDEX = torch.tensor([1, 3, 4], dtype=torch.int32)
BUCKETS = [-1 if i == 7 else i * 7 % 32 // 3 for i in range(32)]


def negated(x):
    """The same numbers, told by memory of the other sign and a flag."""
    return torch._neg_view(-x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", ["cos", "dot", "l1", "l2", "gauss"])
def test_same_as_the_long_way(dtype, metric):
    x, ref = X.to(dtype), REF.to(dtype)
    for r in (ref, ref[:1]):
        long = ops.similarity(x[None], r[None], metric, alpha=2.0)[0]
        assert torch.equal(ops.similarity(x, r, metric, alpha=2.0), long)
    strided = torch.randn(6, 64).to(dtype)[:, :32]
    assert torch.equal(ops.similarity(strided, ref), ops.similarity(strided.contiguous(), ref))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compares_frames_as_the_long_way(dtype):
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, 5, 33, generator=gen).to(dtype)
    ref, tall = torch.randn(3, 2, 5, 33, generator=gen), torch.ops.headrace.similarity
    for r in (ref.to(dtype), ref, ref[:1], ref[:, :, :1], ref[:, :1]):
        assert torch.equal(ops.similarity(x, r), tall(x, r, "cos"))
    assert torch.equal(ops.similarity(x, ref[0]), tall(x, ref[:1], "cos"))
    assert torch.equal(ops.similarity(x, ref[0, 0]), tall(x, ref[:1, :1], "cos"))
    assert torch.equal(ops.similarity(x, ref[0, 0, 0]), tall(x, ref[:1, :1, :1], "cos"))
    frames = x[:, 1]
    for r in (ref[:, 0], ref[:1, 0], ref[:, 0, :1]):
        got = ops.similarity(frames, r, "l1")
        assert torch.equal(got, tall(frames[:, None], r[:, None], "l1")[:, 0])
    index = torch.randint(-1, 6, (3, 2, 5), generator=gen).int()
    for at in (index, index[:1], index[..., :1]):
        got = ops.similarity(x, ref[0, 0], "gauss", index=at)
        assert torch.equal(got, tall(x, ref[:1, :1], "gauss", index=at))
    got = ops.similarity(x[0, 0], ref[0, 0], index=index[0, 0])
    assert torch.equal(got, tall(x[:1, :1], ref[:1, :1], "cos", index=index[:1, :1])[0, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"k": 3},
        {"k": 0},
        {"k": 99},
        {"k": 3, "lowest": True},
        {"k": 3, "capacity": 5},
        {"policy": "threshold", "threshold": 0.1},
        {"policy": "share", "share": 0.3},
        {"policy": "mass", "mass": 0.7},
        {"policy": "mass", "k": 2},
        {"policy": "otsu"},
        {"policy": "otsu", "forced": [[3, 5], [9, 10]], "k": 12},
        {"policy": "quota", "buckets": BUCKETS},
        {"policy": "quota", "buckets": BUCKETS, "quota": 2, "floor": 5, "first": 2},
        {"policy": "mass", "mass": 0.6, "counts": [1.0 + i % 3 for i in range(32)]},
        {"budget": [7]},
        {"budget": [9], "lengths": [20], "last": 4},
        {"k": 5, "first": 3, "last": 4, "lengths": [30]},
    ],
)
def test_selects_as_the_long_way(options):
    def tensor(x, size):
        if not isinstance(x, list):
            return x
        made = torch.tensor(x, dtype=torch.float32 if isinstance(x[0], float) else torch.int32)
        return made[:size] if made.shape == (32,) else made

    for score in (X, X[2], X[:, ::1][:4, :31], X[None], X.view(2, 3, 32).transpose(0, 1)):
        given = {name: tensor(x, score.shape[-1]) for name, x in options.items()}
        want = {name: x[None] if isinstance(x, torch.Tensor) else x for name, x in given.items()}
        if "forced" in given or "counts" in given or "buckets" in given:
            want = {n: x[None] if isinstance(x, torch.Tensor) else x for n, x in want.items()}
        rows = score.reshape(1, -1, score.shape[-1])
        index, count = torch.ops.headrace.select(rows, **want)
        got = ops.select(score, **given)
        assert torch.equal(got[0].view_as(index), index)
        assert got[1].shape == score.shape[:-1]
        assert torch.equal(got[1].view_as(count), count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
@pytest.mark.parametrize("depth", [1, 2, 5, 32, 64])
def test_compacts_as_the_long_way(dtype, depth):
    gen = torch.Generator().manual_seed(5)
    x = (torch.randn(2, 3, 20, depth, generator=gen) * 9).abs().to(dtype)
    tall = torch.ops.headrace.compact
    index = torch.stack([torch.randperm(20, generator=gen)[:7].sort().values for _ in range(6)])
    index, count = index.view(2, 3, 7).int(), torch.tensor([[7, 0, 3], [1, 7, 9]]).int()
    mask, place = torch.rand(2, 3, 20, generator=gen) > 0.5, index[..., torch.arange(20) % 7]
    weights = torch.rand(2, 3, 20, generator=gen)
    merge = {"target": place, "weights": weights} if dtype.is_floating_point else {}
    for args, options in (
        ((index,), {}),
        ((index, count), {"weights": weights}),
        ((index[:1], count[:, :1]), merge),
        ((index,), merge),
        ((), {"mask": mask, "capacity": 12} | merge),
        ((), {"mask": mask}),
        ((), {"mask": mask[:, :1], "capacity": 25}),
    ):
        for rows in (
            x,
            torch.cat([x, x], -1)[..., :depth],
            x.transpose(1, 2).contiguous().transpose(1, 2),
        ):
            whole = tall(rows, *args, **options)
            for got, want in zip(ops.compact(rows, *args, **options), whole, strict=True):
                assert torch.equal(got, want)
            one = lambda t, b, h: t[b % len(t), h % t.shape[1]] if hasattr(t, "shape") else t  # noqa: E731
            for b, h in ((0, 0), (1, 2)):
                alone = {n: one(t, b, h) for n, t in options.items()}
                made = ops.compact(rows[b, h], *(one(t, b, h) for t in args), **alone)
                for got, want in zip(made, whole, strict=True):
                    assert torch.equal(got, want[b, h])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 5, 40, 64])
def test_reduces_as_the_long_way(dtype, dim):
    gen = torch.Generator().manual_seed(6)
    x = torch.randn(50, 3, dim, generator=gen).to(dtype)
    ids = torch.randint(-1, 6, (50,), generator=gen).int()
    kinds = {"total": torch.float32, "low": dtype, "high": torch.float32, "unit": torch.float32}
    for names in (("total",), ("low", "high"), ("unit", "total"), ("count",), tuple(kinds)):
        made, want = (
            {n: torch.ones(5, 3, dim, dtype=kinds[n]) for n in names if n != "count"}
            | {"count": torch.ones(10).int()[::2]}
            for _ in "ab"
        )
        before = [state._version for state in made.values()]
        ops.segment_reduce(x, ids, **made)
        torch.ops.headrace.segment_reduce(x, ids, **want)
        for name, state in made.items():
            assert torch.equal(state, want[name]), name
        assert all(s._version > b for s, b in zip(made.values(), before, strict=True))
    with pytest.raises(ValueError, match="memory of its own"):
        ops.segment_reduce(x, ids, torch.ones(1, 3, dim).expand(5, 3, dim))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_rows_of_no_known_dtype_do_not_move(dtype):
    x = torch.zeros(6, 4, dtype=dtype)
    for move in (
        lambda: ops.compact(x, INDEX),
        lambda: ops.compact_inplace(x, INDEX),
        lambda: ops.scatter_back(x, x[:3], INDEX),
    ):
        with pytest.raises(TypeError, match=r"expected one of float32.*, got "):
            move()


@pytest.mark.parametrize("metric", ["cos", "dot", "l2", "hamming"])
def test_assigns_as_the_long_way(metric):
    gen = torch.Generator().manual_seed(4)
    real = lambda *shape: torch.randn(*shape, 32, generator=gen)  # noqa: E731
    word = lambda *shape: torch.randint(-99, 99, (*shape, 2), generator=gen).int()  # noqa: E731
    made = word if metric == "hamming" else real
    x, c, tall = made(2, 9), made(2, 70), torch.ops.headrace.assign
    for options in ({}, {"threshold": 0.1}, {"causal": True}):
        for other in (c, c[:1], c[0], c[:, ::2]):
            got = ops.assign(x, other, metric=metric, **options)
            want = tall(x, other if other.ndim == 3 else other[None], metric=metric, **options)
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    for rows in (x, x[:1], x[:, :8], x[1:, ::2]):
        for options in ({"causal": True}, {"bipartite": True}):
            got, want = (f(rows, metric=metric, **options) for f in (ops.assign, tall))
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
            got = ops.assign(rows[0], metric=metric, **options)
            assert all(torch.equal(g, w[0]) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("heads", ["each", "group", "group_max", "sum", "max"])
@pytest.mark.parametrize("queries", ["mean", "sum", "max"])
def test_scores_blocks_as_the_long_way(heads, queries):
    gen = torch.Generator().manual_seed(1)
    q, keys = torch.randn(2, 4, 3, 32, generator=gen), torch.randn(2, 2, 70, 32, generator=gen)
    every = torch.arange(70, dtype=torch.int32)[None]  # which is not plain
    options = {"heads": heads, "queries": queries, "scale": 0.5}
    for x in (keys, keys[:1], keys.bfloat16(), keys.transpose(1, 2).contiguous().transpose(1, 2)):
        for upper in (None, x + 1):
            want = ops.block_score(q, x, upper=upper, index=every, **options)
            assert torch.equal(ops.block_score(q, x, upper=upper, **options), want)


def test_merges_and_adapts_as_the_long_way():
    gen = torch.Generator().manual_seed(2)
    states = [torch.randn(3, 2, 16, generator=gen) for _ in "ab"]
    sums = [torch.randn(3, 2, generator=gen) for _ in "ab"]
    args = (states[0], sums[0], states[1], sums[1])
    apart = tuple(torch.nn.Parameter(x, requires_grad=False) for x in args)  # which are not plain
    for got, want in zip(ops.merge_states(*args), ops.merge_states(*apart), strict=True):
        assert torch.equal(got, want)
    a, b = torch.randn(2, 8, 32, generator=gen), torch.randn(2, 24, 8, generator=gen)
    slots, scale = torch.tensor([1, -1, 0], dtype=torch.int32), torch.tensor([0.5, 2.0])
    x = X[:3]
    for up in (b, b.mT.contiguous().mT, torch.randn(2, 24, 16, generator=gen)[..., ::2]):
        y, ranks = torch.ones(3, 24), torch.full((2,), 8, dtype=torch.int32)
        want = ops.lora(x, a, up, slots, scale, y.clone(), ranks=ranks)
        assert torch.equal(ops.lora(x, a, up, slots, scale, y), want)
    with pytest.raises(ValueError, match=r"lora\(slots\)"):
        ops.lora(x, a, b, slots + 1, scale)


def test_signs_to_turn_are_seen():
    x, y = negated(X), X.clone()
    assert x.is_neg()
    assert torch.equal(ops.similarity(x, REF), ops.similarity(X, REF))
    assert torch.equal(ops.similarity(REF, x, "l1"), ops.similarity(REF, X, "l1"))
    assert torch.equal(ops.select(x[0], k=4)[0], ops.select(X[0], k=4)[0])
    ops.scatter_back(y, x[:3], INDEX)
    assert torch.equal(y[INDEX.long()], X[:3])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.similarity(x, REF),
        lambda x: ops.similarity(REF, x),
        lambda x: ops.select(x[0], k=2),
        lambda x: ops.compact_inplace(x, INDEX),
        lambda x: ops.scatter_back(REF.clone(), x[:3], INDEX),
    ],
)
def test_gradients_are_refused(call):
    with pytest.raises(ValueError, match="requires_grad"):
        call(X.clone().requires_grad_())
    with torch.no_grad():
        call(X.clone().requires_grad_())


def test_autograd_learns_what_was_written():
    for write in (
        lambda y: ops.compact_inplace(y, INDEX),
        lambda y: ops.scatter_back(y, REF[:3], INDEX),
    ):
        y, weight = X.clone(), torch.ones(32, requires_grad=True)
        product = (y * weight).sum()
        write(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_modes_and_backends_are_heard():
    with headrace.use_backend("reference"):
        slow = ops.similarity(X, REF)
    assert torch.allclose(slow, ops.similarity(X, REF))
    with headrace.use_backend("cuda"), pytest.raises(BackendError):
        ops.select(X[0], k=2)
    seen = []

    class Log(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    with Log():
        ops.similarity(X, REF)
    assert any("headrace.similarity" in name for name in seen)


def test_other_tensors_go_the_long_way():
    plain = lambda *args: direct("similarity", *args) is not UNUSUAL  # noqa: E731
    assert plain(X, REF)
    for x in (
        X.numpy(), X.to("meta"), X.double(), X[:, :16], X.T.contiguous().T, negated(X),
        X.to_sparse(), None,
    ):  # fmt: skip
        assert not plain(x, REF)
    for ref in (REF[:2], REF.half(), REF[0]):
        assert not plain(X, ref)
    assert np.array_equal(ops.similarity(X.numpy(), REF.numpy()), ops.similarity(X, REF).numpy())
