# SPDX-License-Identifier: Apache-2.0
"""The GPU backends on a GPU: equal to the reference, the same bits whatever the batch, and CUDA
graphs that replay over views edited on the device.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

from headrace.kernels.common import cuda as device

import headrace
from headrace.adapters import LoraRoute, LoraSite
from headrace.errors import BackendError
from tests.ops import adapters, compare

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "cases.py")))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICE = "cuda"


def _why_no_cuda():
    try:
        device.library()
    except BackendError as error:
        return str(error)
    return ""


NO_CUDA = _why_no_cuda()
TRITON = pytest.param("triton")
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA or "unused"))


def run(op, bound, backend):
    with headrace.use_backend(backend):
        out = getattr(torch.ops.headrace, op)(**bound)
    torch.cuda.synchronize()
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.DENSE)
def test_attention(name, dtype):
    shape, options = cases.DENSE[name]
    bound = cases.dense(dtype, shape, DEVICE, **options)
    cases.compare("attention", bound, run("attention", bound, "triton"))


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_attention_of_many_blocks(dim, heads):
    blocks = dict(blocks=(2, heads, 0.3), block_size=64, window=1500, sinks=4)
    bound = cases.dense(torch.bfloat16, (2, 8, 2, 700, 3000, dim), DEVICE, **blocks)
    cases.compare("attention", bound, run("attention", bound, "triton"))


def test_pooled_block_mask():
    for bound in cases.exact_masks(DEVICE):
        (got,) = run("pooled_block_mask", bound, "triton")
        (want,) = cases.truth("pooled_block_mask", bound)
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dim", [32, 64, 80, 96, 112, 128, 256])
def test_attention_of_long_windows(dim):
    bound = cases.dense(
        torch.bfloat16, (2, 8, 2, 700, 3000, dim), DEVICE, window=1024, sinks=4, sink_logits=True
    )
    cases.compare("attention", bound, run("attention", bound, "triton"))


@pytest.mark.parametrize("backend", [TRITON, CUDA])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PAGED)
def test_paged_attention(name, dtype, backend):
    bound = cases.paged(dtype, DEVICE, **cases.PAGED[name])
    cases.compare("paged_attention", bound, run("paged_attention", bound, backend))


@pytest.mark.parametrize("backend", [TRITON, CUDA])
@pytest.mark.parametrize("heads", [8, 16, 32, 40])
@pytest.mark.parametrize("dim", [64, 80, 96, 112, 128, 192, 256])
def test_paged_attention_of_real_shapes(dim, heads, backend):
    bound = cases.paged(
        torch.bfloat16,
        DEVICE,
        dim=dim,
        page=64,
        heads=heads,
        kv_heads=8,
        base=4_000_000,
        streams=((1, 80), (1, 3), (70, 40), (1, 17)),
        reach=2000,
        cap=2003,
        sink_logits=True,
    )
    cases.compare("paged_attention", bound, run("paged_attention", bound, backend))


@pytest.mark.parametrize("backend", [TRITON, CUDA])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", [False, True], ids=["apart", "in-common"])
def test_a_stream_has_the_same_bits_alone_and_in_a_batch(prefix, dtype, backend):
    """Pages that streams have in common are read once for several: no result tells."""
    shape = dict(page=64, dim=128, heads=8, reach=900)
    if prefix:
        many = cases.common(dtype, DEVICE, streams=16, prefix=24, own=6, **shape)
        cases.compare("paged_attention", many, run("paged_attention", many, backend))
    else:
        many = cases.paged(dtype, DEVICE, streams=((1, 30),) * 16, **shape)
    o, lse = run("paged_attention", many, backend)
    two = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    for b in range(16):
        alone = many | dict(
            q=many["q"][b : b + 1],
            q_pos=many["q_pos"][b : b + 1],
            q_indptr=two,
            entries=many["entries"][30 * b : 30 * b + 30].contiguous(),
            entry_indptr=two * 30,
        )
        o1, lse1 = run("paged_attention", alone, backend)
        assert torch.equal(o[b : b + 1], o1)
        assert torch.equal(lse[b : b + 1], lse1)


@pytest.mark.parametrize("hint", [None, 70])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_gives_a_stream_the_same_bits_alone_and_in_any_batch(dtype, hint):
    """Few rows and many side by side: which kernel serves a stream is its own affair."""
    streams = ((1, 30), (70, 12), (0, 2), (8, 9), (9, 9), (1, 5), (1, 41))
    many = cases.paged(dtype, DEVICE, streams=streams, page=64, dim=128, heads=8, reach=900)
    many["max_rows"] = hint
    o, lse = run("paged_attention", many, "auto")
    cases.compare("paged_attention", many, (o, lse))
    ends, lists = many["q_indptr"].tolist(), many["entry_indptr"].tolist()
    for b, (rows, _) in enumerate(streams):
        mine, own = slice(*ends[b : b + 2]), slice(*lists[b : b + 2])
        alone = many | dict(
            q=many["q"][mine],
            q_pos=many["q_pos"][mine],
            q_indptr=torch.tensor([0, rows], dtype=torch.int32, device=DEVICE),
            entries=many["entries"][own].contiguous(),
            entry_indptr=torch.tensor([0, own.stop - own.start], dtype=torch.int32, device=DEVICE),
        )
        o1, lse1 = run("paged_attention", alone, "auto")
        assert torch.equal(o[mine], o1), b
        assert torch.equal(lse[mine], lse1), b


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_gives_a_row_of_adapters_the_same_bits_among_any_number(dtype):
    args, kwargs = adapters.pool(11, 300, 512, (256, 128), 12, 33, dtype=dtype)
    args = tuple(x.to(DEVICE) for x in args)
    kwargs = {k: x.to(DEVICE) for k, x in kwargs.items()}
    with headrace.use_backend("auto"):
        whole = adapters.result("lora_rows", args, kwargs)
        for rows in (1, 2, 70, 129):
            part = tuple(x[:rows] if i in (0, 5, len(args) - 1) else x for i, x in enumerate(args))
            assert torch.equal(adapters.result("lora_rows", part, kwargs), whole[:rows]), rows


@pytest.mark.parametrize("kv", DTYPES, ids=str)
def test_append(kv):
    bound = cases.append(torch.float32, DEVICE, kv=kv)
    want = cases.truth("append", bound)
    run("append", bound, "triton")
    loose = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[kv]
    for pages, exact in zip((bound["k_pages"], bound["v_pages"]), want, strict=True):
        assert torch.allclose(pages.double().cpu(), exact, atol=1e-6, rtol=loose)


@pytest.mark.parametrize("backend", [TRITON, CUDA])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_states(dtype, backend):
    bound = cases.merge_states(dtype, DEVICE)
    cases.compare("merge_states", bound, run("merge_states", bound, backend))


@pytest.mark.parametrize("weight", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(dtype, weight):
    bound = cases.linear(dtype, DEVICE, rows=130, n=200, k=1000, weight=weight)
    cases.compare("linear", bound, run("linear", bound, "triton"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_rows_have_the_same_bits_alone(dtype):
    bound = cases.linear(dtype, DEVICE, rows=257, n=384, k=2048)
    (whole,) = run("linear", bound, "triton")
    for rows in (slice(0, 1), slice(63, 66), slice(100, 229), slice(256, 257)):
        (part,) = run("linear", bound | dict(x=bound["x"][rows]), "triton")
        assert torch.equal(whole[rows], part)


@pytest.mark.parametrize("backend", [TRITON, CUDA])
def test_a_graph_replays_over_edited_views(backend, request):
    """One captured decode step, which edits its view itself; every replay equals a fresh launch."""
    bound = cases.paged(
        torch.bfloat16,
        DEVICE,
        dim=128,
        page=64,
        heads=32,
        kv_heads=8,
        streams=((1, 40), (1, 33), (1, 5)),
        reach=1500,
        cap=1503,
    )
    bound["k_pages"].nan_to_num_(0.5)  # edits below may name any slot
    bound["v_pages"].nan_to_num_(0.5)
    entries, pages, q_pos = bound["entries"], bound["k_pages"].shape[0], bound["q_pos"]
    turn, numbers = torch.zeros((), dtype=torch.int64, device=DEVICE), torch.arange(len(entries))
    numbers, begin = numbers.to(DEVICE), q_pos.clone()

    def edit():
        """The view of the next turn, out of device values alone."""
        turn.add_(1)
        q_pos.copy_(begin + turn % 1500)
        mine = numbers == turn % len(entries)
        entries[:, 0] = (entries[:, 0] + 7) % pages
        entries[:, 1] = torch.where(mine, turn % 24, entries[:, 1])
        entries[:, 2] = torch.where(mine, 1 + turn % 40, entries[:, 2])
        entries[1:, 6] = 1 + (turn * 37) % 3000

    with headrace.use_backend(backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            edit()
            torch.ops.headrace.paged_attention(**bound)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            edit()
            o, lse = torch.ops.headrace.paged_attention(**bound)
        seen, before = set(), int(turn)
        replays = request.config.getoption("--replays", None) or 1000
        for step in range(1, replays + 1):
            graph.replay()
            assert int(turn) == before + step
            expected = torch.ops.headrace.paged_attention(**bound)
            assert torch.equal(o, expected[0]), step
            assert torch.equal(lse, expected[1]), step
            seen.add(float(lse[0, 0]))
        assert len(seen) > min(replays, 1000) // 10  # the edits did change what is seen


def test_auto_decodes_and_prefills():
    for streams in (((1, 9), (1, 4)), ((70, 4), (1, 9))):
        bound = cases.paged(torch.bfloat16, DEVICE, streams=streams)
        cases.compare("paged_attention", bound, run("paged_attention", bound, "auto"))


LORA = {
    "ranks": lambda t: ("lora", adapters.stack(1, 70, 1216, 2049, 9, 40, dtype=t)),
    "identical": lambda t: ("lora", adapters.stack(2, 130, 512, 256, 3, mix="identical", dtype=t)),
    "slices": lambda t: (
        "lora_rows",
        adapters.pool(3, 65, 513, (64, 130), 20, 33, several=3, epilogue="bias", dtype=t),
    ),
    "dora": lambda t: (
        "lora_rows",
        adapters.pool(4, 33, 128, (200,), epilogue="bias gain base", dtype=t),
    ),
    "int8": lambda t: ("lora_rows", adapters.pool(5, 20, 256, (64, 96), bits=8, dtype=t)),
    "int4": lambda t: ("lora_rows", adapters.pool(6, 20, 256, (64, 96), bits=4, dtype=t)),
}


@pytest.mark.parametrize("backend", [TRITON, CUDA])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LORA)
def test_lora(case, dtype, backend):
    name, (args, kwargs) = LORA[case](dtype)
    want = compare.reference(name, args, kwargs)
    args = tuple(x.to(DEVICE) for x in args)
    kwargs = {k: x.to(DEVICE) for k, x in kwargs.items()}
    with headrace.use_backend(backend):
        whole = adapters.result(name, args, kwargs)
        compare.check(name, args, kwargs, got=(whole.cpu(),), want=want)
        if "weights" not in kwargs:
            at = 3 if name == "lora" else 5
            one = tuple(x[7:8] if i in (0, at, len(args) - 1) else x for i, x in enumerate(args))
            assert torch.equal(adapters.result(name, one, kwargs)[0], whole[7])


@pytest.mark.parametrize("backend", [TRITON, CUDA])
def test_a_graph_of_a_site_replays_over_any_mix(backend, request):
    """One captured step, over slots, ranks and lists that change on the device between replays."""
    args, kwargs = adapters.pool(9, 24, 512, (256, 128), 12, 33, dtype=torch.bfloat16)
    x, a, b, rows, indptr, _, scale, y = (t.to(DEVICE) for t in args)
    a.nan_to_num_(0.25)  # edits below may name any rank row
    b.nan_to_num_(0.5)
    held = {k: t.to(DEVICE) for k, t in kwargs.items()}
    route = LoraRoute(24, device=DEVICE)
    site, base = LoraSite(a, b, rows, indptr, scale, **held), y.clone()

    def step():
        y.copy_(base)
        return site(x, y, route)

    gen = torch.Generator().manual_seed(1)
    with headrace.use_backend(backend):
        route.set(torch.zeros(24, dtype=torch.int32, device=DEVICE))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for turn in range(request.config.getoption("--replays", None) or 500):
            mix = adapters.MIXES[turn % len(adapters.MIXES)]
            slots = adapters.slots_of(gen, 24, 12, mix)
            route.set(slots.to(DEVICE))
            own = torch.randint(0, 34, held["ranks"].shape, generator=gen, dtype=torch.int32)
            held["ranks"].copy_(torch.minimum(own.to(DEVICE), indptr.diff()[:, None]))
            rows.copy_(rows.roll(1))
            graph.replay()
            got = y.clone()
            assert torch.equal(got, step()), turn
            assert torch.equal(got[slots < 0], base[slots < 0]), turn


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.HSTU)
def test_hstu_attention(name, dtype):
    bound = cases.hstu_attention(dtype, DEVICE, **cases.HSTU[name])
    cases.compare("hstu_attention", bound, run("hstu_attention", bound, "triton"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.FRAMES)
def test_frame_delta_rule(name, dtype):
    bound = cases.frame_delta_rule(dtype, DEVICE, **cases.FRAMES[name])
    expected = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in bound.items()}
    out = run("frame_delta_rule", bound, "triton")
    cases.compare("frame_delta_rule", expected, out)
    with headrace.use_backend("reference"):
        torch.ops.headrace.frame_delta_rule(**expected)
    for state in ("state", "norm"):
        torch.testing.assert_close(bound[state], expected[state], rtol=1e-4, atol=1e-4)
