# SPDX-License-Identifier: Apache-2.0
"""Ops that keep a state, on a GPU: output and state against the reference in fp64, many streams and
long ones; and an append that absorbs, replayed in a graph through wraps of its ring.
"""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

import headrace
from headrace import ops
from tests.ops import compare, evictions, samples, sequences, views


def moved(call):
    args, kwargs = call
    put = lambda x: x.cuda() if isinstance(x, torch.Tensor) else x  # noqa: E731
    return tuple(map(put, args)), {n: put(x) for n, x in kwargs.items()}


def check(name, call):
    """Output and every changed argument, the latter on the rows that streams have."""
    args, kwargs = call
    spec = ops.specs()[name]
    bound, axes = compare.bind(name, args, kwargs)
    changed = [n for n in spec.mutates if bound[n] is not None]
    outs = compare.reference_out(name, args, kwargs) if spec.outs else ()
    kept = dict(zip(changed, compare.reference(name, args, kwargs), strict=True))
    there = moved(call)
    with headrace.use_backend("triton"):
        got = compare.run(name, *there)
    torch.cuda.synchronize()
    for g, w in zip(got, outs, strict=False):
        limit = spec.tolerance(g.dtype, axes, bound)
        assert compare.distance(g.cpu(), w, floor=0.1).rms <= limit
    left = spec.bind(*there[0], **there[1])
    rows = bound["rows"].long()
    for n in changed:
        g, w = left[n].cpu(), kept[n]
        if n in ("state", "norm"):
            limit = spec.tolerance(torch.float32, axes, bound)
            assert compare.distance(g[rows], w[rows], floor=0.1).rms <= limit, n
        elif n == "count":
            assert torch.equal(g, w)
    return left


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_gated_delta_rule(dtype):
    for i, case in enumerate(
        (
            dict(lengths=(1,) * 33, dim=128, v_dim=128),
            dict(lengths=(300, 0, 1, 64), dim=128, v_dim=128),
            dict(lengths=(67, 2), dim=80, v_dim=48, group=1),
            dict(lengths=(129,), dim=256, v_dim=256, heads=1, layout="wide", scale=0.1),
            dict(lengths=(65, 63), normalize=False, layout="rows", dim=16),
        )
    ):
        call = sequences.gated_delta_rule(i, dtype=dtype, **case)
        if not case.get("normalize", True):
            call[0][1].mul_(case["dim"] ** -0.5)  # longer keys push the state out of bounds
        check("gated_delta_rule", call)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_linear_attention(dtype):
    for i, case in enumerate(
        (
            dict(lengths=(1,) * 33, dim=128, v_dim=128),
            dict(lengths=(300, 0, 1, 64), dim=128, v_dim=128, rope=True, raw=True, normed=False),
            dict(lengths=(1500, 3, 513), dim=64, v_dim=80, rope=True, decay=True),
            dict(lengths=(67, 2), dim=80, v_dim=48, decay=True, feature=2),
            dict(lengths=(129,), dim=256, v_dim=256, decay=True, normed=False, layout="wide"),
            dict(lengths=(40, 9), keys=False, rope=True),
        )
    ):
        check("linear_attention", sequences.linear_attention(i, dtype=dtype, **case))


@pytest.mark.parametrize("name", ["gated_delta_rule", "linear_attention"])
def test_a_stream_is_the_same_alone_and_beside_others(name):
    """Bits of streams of one token, few tokens, chunks and segments, in a batch and alone."""
    lengths = (1, 70, 9, 600, 24)
    call = getattr(sequences, name)(3, lengths, dim=64, v_dim=64, dtype=torch.bfloat16)
    args, kwargs = moved(call)
    spec = ops.specs()[name]
    bound = spec.bind(*args, **kwargs)
    of_tokens = ("q", "k", "v", "log_decay", "beta")
    ends, rows = call[0][-2], call[0][-1].long()
    alone = []
    with headrace.use_backend("triton"):
        for b, n in enumerate(lengths):
            one = bound | {x: bound[x][ends[b] : ends[b + 1]] for x in of_tokens if x in bound
                           and bound[x] is not None}  # fmt: skip
            one |= {x: bound[x][rows[b : b + 1]].clone() for x in spec.mutates}
            one |= {
                "indptr": torch.tensor([0, n]).int().cuda(),
                "rows": torch.zeros(1).int().cuda(),
            }
            out = getattr(torch.ops.headrace, name)(**one)
            alone.append((out, *(one[x][0] for x in spec.mutates)))
        out = getattr(torch.ops.headrace, name)(**bound)
    for b, (o, *kept) in enumerate(alone):
        assert compare.same_bits(out[ends[b] : ends[b + 1]].cpu(), o.cpu()), b
        for x, y in zip(spec.mutates, kept, strict=True):
            assert compare.same_bits(bound[x][rows[b]].cpu(), y.cpu()), (b, x)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_causal_conv(dtype):
    for i, case in enumerate(
        (
            dict(lengths=(1,) * 33, channels=4096),
            dict(lengths=(300, 0, 2, 64), channels=1030),
            dict(lengths=(67, 5), taps=16, layout="rows"),
            dict(lengths=(9,), taps=1, bias=False),
        )
    ):
        check("causal_conv", sequences.causal_conv(i, dtype=dtype, **case))


def test_append_absorb():
    grid = samples.cover(
        53,
        24,
        lengths=((1,) * 20, (40, 0, 17), (3, 0, 18)),
        page_dtype=(*samples.DTYPES, *views.FORMATS),
        each=(True, False),
        dim=(16, 80, 128, 256),
        page_size=(16, 64),
        rotary=(-1, None, 6),
        axes=(None, "turns"),
        held=("some", "all", "none"),
        normed=(True, False),
        decay=(False, True),
        counted=(False, True),
        feature=(0, 1, 2),
        raw=(False, True),
    )
    for i, case in enumerate(grid):
        call = evictions.append_absorb(i, **case)
        left = check("append_absorb", call)
        args, kwargs = moved(call)
        names = ("inv_freq", "freq_axis", "k_scale", "v_scale")
        kept = {n: kwargs[n] for n in names if kwargs.get(n) is not None}
        with headrace.use_backend("triton"):
            ops.append(*args[:5], **kept)
        for name, want in zip(("k_pages", "v_pages"), args[2:4], strict=True):
            assert compare.same_bits(left[name].cpu(), want.cpu()), (name, case)


def test_a_graph_absorbs_through_wraps(request):
    """A ring of two pages whose slot and what it held are on the device, against the eager call."""
    heads, dim, size, ring = 8, 128, 16, 2
    gen, replays = samples.rng(1), request.config.getoption("--replays", None) or 2000
    k, v = (samples.normal(gen, 1, heads, dim, dtype=torch.bfloat16).cuda() for _ in "kv")
    pages = [torch.zeros(ring, heads, *s).bfloat16().cuda() for s in ((dim, size), (size, dim))]
    sums = [torch.zeros(1, heads, dim, dim).cuda(), torch.zeros(1, heads, dim).cuda()]
    count, at = torch.zeros(1).long().cuda(), torch.tensor([0, 1]).int().cuda()
    where, evicted = torch.zeros(1, 3).long().cuda(), torch.zeros(1, 3).long().cuda()
    rope = {"inv_freq": samples.frequencies(dim).cuda(), "log_decay": torch.full((8,), -0.1).cuda()}
    more = [x.clone() for x in (*pages, *sums, count)]

    def step(k_pages, v_pages, state, norm, seen):
        rows = at[:1]
        ops.append_absorb(
            k, v, k_pages, v_pages, where, evicted, state, norm, at, rows, count=seen, **rope
        )

    with headrace.use_backend("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(*more)
        torch.cuda.current_stream().wait_stream(side)
        for x in more:
            x.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(*pages, *sums, count)
        for t in range(replays):
            page, slot = t // size % ring, t % size
            k.copy_(samples.normal(gen, 1, heads, dim))
            where.copy_(torch.tensor([[page, slot, slot]]))
            evicted.copy_(torch.tensor([[int(t >= ring * size), slot, t % 1000]]))
            graph.replay()
            step(*more)
            if t % 97 == 0 or t > replays - 10:
                for x, y in zip((*pages, *sums, count), more, strict=True):
                    assert torch.equal(x, y), t
        assert int(count) == max(0, replays - ring * size)
