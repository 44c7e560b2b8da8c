# SPDX-License-Identifier: Apache-2.0
"""Every form of a view on a GPU: quantised pages, three position axes, a gain, lists of entries per
kv head; and append, alone and in a captured graph.
"""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

from headrace.kernels.common import cuda as device

import headrace
from headrace.errors import BackendError
from tests.ops import compare, samples, views
from tests.ops.samples import StreamShape


def _why_no_cuda():
    try:
        device.library()
    except BackendError as error:
        return str(error)
    return ""


NO_CUDA = _why_no_cuda()
BACKENDS = [
    pytest.param("triton"),
    pytest.param("cuda", marks=pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA or "unused")),
]


def moved(call):
    args, kwargs = call
    put = lambda x: x.cuda() if isinstance(x, torch.Tensor) else x  # noqa: E731
    return tuple(map(put, args)), {n: put(x) for n, x in kwargs.items()}


def run(op, call, backend):
    with headrace.use_backend(backend):
        out = compare.run(op, *call)
    torch.cuda.synchronize()
    return out


def attended(seed, **case):
    fmt, each, axes, lists = (case.pop(n, None) for n in ("fmt", "each", "axes", "lists"))
    call = samples.paged(seed, **case)
    if fmt is not None:
        call = views.quantised(call, fmt, each)
    if axes is not None:
        call = views.three_axes(seed, call, axes)
    return call if lists is None else views.per_head(seed, call, lists == "pages")


@pytest.mark.parametrize("backend", BACKENDS)
def test_paged_attention(backend):
    streams = [
        StreamShape(300, 3, 100, 4),
        StreamShape(0, 0),
        StreamShape(700, 1),
        StreamShape(90, 70),
    ]
    grid = samples.cover(
        51,
        40,
        fmt=(None, *views.FORMATS, *views.FORMATS),
        each=(True, False),
        axes=(None, "sections", "turns"),
        lists=(None, "pages", "shared"),
        rope_gain=(1.0, 1.3),
        kv_heads=(1, 2, 3, 8),
        group=(1, 2, 4, 7),
        dim=(16, 64, 96, 128, 256),
        page_size=(16, 48, 64, 128),
        dtype=samples.DTYPES,
        rotary=(-1, None, 16),
        learned=(False, True),
        softcap=(0.0, 5.0),
        split=(20, 4096),
    )
    for i, case in enumerate(grid):
        label = dict(case)
        call = attended(i, streams=streams, **case)
        got = [x.cpu() for x in run("paged_attention", moved(call), backend)]
        want = compare.reference("paged_attention", *call)
        compare.check("paged_attention", *call, label, got=tuple(got), want=want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_append(backend):
    grid = samples.cover(
        52,
        30,
        pages=views.FORMATS,
        each=(True, False),
        axes=(None, "sections", "turns"),
        dtype=samples.DTYPES,
        tokens=(0, 1, 16, 67, 257),
        kv_heads=(1, 2, 8),
        dim=(16, 48, 128, 256),
        page_size=(16, 32, 64),
        rotary=(-1, None, 6),
        scattered=(False, True),
        offset=(0, -7, 4_000_000),
    )
    for i, case in enumerate(grid):
        call = views.appended(i, case)
        there = moved(views.copied(call))
        run("append", there, backend)
        compare.run("append", *call)
        for got, want in zip(views.written(there), views.written(call), strict=True):
            got = got.cpu()
            if got.element_size() == 1:
                assert views.same_codes(got, want, 0.01), case
            else:
                torch.testing.assert_close(got, want, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_append_and_attention_runs_through_wraps(backend, request):
    """A ring of 4 pages: one captured step, which moves on to the next slot, order and origin by
    itself; every replay equals a fresh launch."""
    heads, dim, size, ring, fmt = 8, 128, 64, 4, torch.int8
    gen = samples.rng(1)
    k, v, q = (
        samples.normal(gen, 1, n, dim, dtype=torch.bfloat16).cuda() for n in (heads, heads, 32)
    )
    keys = samples.normal(gen, 61, heads, dim, dtype=torch.bfloat16).cuda()
    pages = [torch.zeros(ring, heads, *s, dtype=fmt).cuda() for s in ((dim, size), (size, dim))]
    scales = {n: torch.zeros(ring, heads, size).cuda() for n in ("k_scale", "v_scale")}
    rope = {"inv_freq": samples.frequencies(dim).cuda()}
    where = torch.zeros(1, 3, dtype=torch.int64).cuda()
    entries = torch.zeros(ring, 7, dtype=torch.int64)
    entries[:, 0], entries[:, 4], entries[:, 6] = torch.arange(ring), samples.UNLIMITED, 150
    entries, numbers = entries.cuda(), torch.arange(ring).cuda()
    q_pos = torch.full((1,), -1, dtype=torch.int64).cuda()
    ends = [samples.indptr([n]).cuda() for n in (ring, 1)]

    def advance():
        """The next token, out of device values alone."""
        q_pos.add_(1)
        page, slot = q_pos // size % ring, q_pos % size
        k.copy_(keys.index_select(0, q_pos % len(keys)))
        where.copy_(torch.stack([page, slot, slot], 1))
        mine = numbers == page
        for column, value in ((2, slot + 1), (3, q_pos - slot), (5, q_pos - slot)):
            entries[:, column] = torch.where(mine, value, entries[:, column])

    def step():
        headrace.ops.append(k, v, *pages, where, **rope, **scales)
        return headrace.ops.paged_attention(q, *pages, entries, *ends, q_pos, **rope, **scales)

    with headrace.use_backend(backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            advance()
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            advance()
            o, lse = step()
        q_pos.fill_(-1)
        entries[:, 2] = 0
        replays = request.config.getoption("--replays", None) or 2000
        for t in range(replays):
            graph.replay()
            got = o.clone(), lse.clone()
            assert where.tolist() == [[t // size % ring, t % size, t % size]]
            want = step()  # writes the same once more
            assert torch.equal(got[0], want[0]), t
            assert torch.equal(got[1], want[1]), t
