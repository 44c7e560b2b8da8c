# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels on a CPU, as in test_cuda_emulated: quantised pages, three position axes, a
gain, lists of entries per kv head, and append.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from headrace.kernels.attention import cuda

from headrace import ops
from tests.gpu_compile import emulation
from tests.gpu_compile.emulation import launch
from tests.ops import compare, samples, views
from tests.ops.samples import StreamShape

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler on PATH")


def attended(seed, **case):
    fmt, each, axes, lists = (case.pop(n, None) for n in ("fmt", "each", "axes", "lists"))
    call = samples.paged(seed, **case)
    if fmt is not None:
        call = views.quantised(call, fmt, each)
    if axes is not None:
        call = views.three_axes(seed, call, axes)
    return call if lists is None else views.per_head(seed, call, lists == "pages")


def test_structures_match():
    assert emulation.library().headrace_cuda_append_bytes() == ctypes.sizeof(cuda.Append)


def test_paged_attention():
    streams = [StreamShape(67, 2, 30, 4), StreamShape(0, 0), StreamShape(130, 1)]
    grid = samples.cover(
        31,
        24,
        dtype=samples.DTYPES,
        fmt=(None, *views.FORMATS, *views.FORMATS),
        each=(True, False),
        axes=(None, "sections", "turns"),
        lists=(None, "pages", "shared"),
        rope_gain=(1.0, 1.3),
        kv_heads=(1, 2, 3),
        group=(1, 2, 3, 7, 9),
        dim=(16, 48, 64, 128, 256),
        page_size=(16, 48, 64, 128),
        rotary=(-1, None, 16),
        learned=(False, True),
        softcap=(0.0, 5.0),
        split=(20, 4096),
    )
    for i, case in enumerate(grid):
        label = dict(case)
        call = attended(i, streams=streams, **case)
        compare.check("paged_attention", *call, label, got=launch("paged_attention", call))


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_every_code_reads_exactly(fmt):
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(fmt)
    k = torch.zeros(16, 1, 16, 16, dtype=torch.uint8).view(fmt)
    k[:, 0, 0, :] = codes.view(16, 16)
    v, one = k.transpose(2, 3).contiguous(), torch.ones(16, 1, 1)
    far = samples.UNLIMITED
    entries = torch.tensor([[i // 16, i % 16, 1, 0, far, 0, far] for i in range(256)])
    q = torch.zeros(256, 1, 16)
    q[..., 0] = 1
    args = (
        q,
        k,
        v,
        entries,
        torch.arange(257).int(),
        torch.arange(257).int(),
        torch.zeros(256).long(),
    )
    o, _ = launch("paged_attention", (args, {"k_scale": one, "v_scale": one, "scale": 1.0}))
    assert torch.equal(o[:, 0, 0].nan_to_num(9e9), codes.float().nan_to_num(9e9))


def test_a_nan_scale_reaches_those_who_see_it_and_nobody_else():
    args, kwargs = attended(5, streams=[StreamShape(40, 20, 12)], fmt=torch.int8, each=True)
    clean = launch("paged_attention", (args, kwargs))
    page, first = args[3][0, :2].tolist()
    for name in ("k_scale", "v_scale"):
        spoiled = {**kwargs, name: kwargs[name].clone()}
        spoiled[name][page, 1, first] = torch.nan
        o, lse = launch("paged_attention", (args, spoiled))
        assert o[0, 2:].isnan().all()
        assert bool(lse[0, 2:].isnan().all()) == (name == "k_scale")
        assert compare.same_bits(o[1:], clean[0][1:])
        assert compare.same_bits(o[0, :2], clean[0][0, :2])


def test_a_list_per_head_has_the_bits_of_one_for_all():
    args, kwargs = samples.paged(6, [StreamShape(130, 3, 40, 4), StreamShape(67, 2)], page_size=32)
    want = launch("paged_attention", (args, kwargs))
    parts = [args[3][int(a) : int(b)] for a, b in zip(args[4], args[4][1:], strict=False)]
    entries = torch.cat([part for part in parts for _ in range(2)])
    counts = samples.indptr([len(part) for part in parts for _ in range(2)])
    got = launch("paged_attention", ((*args[:3], entries, counts, *args[5:]), kwargs))
    assert all(map(compare.same_bits, got, want))


def codes_and_scales(call):
    """Everything that append may write, as bits."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}
    return [x.contiguous().view(kind[x.element_size()]) for x in views.written(call)]


def test_append():
    """The same codes as the CPU kernel writes, but where a rounding of the angle tips a tie."""
    grid = samples.cover(
        32,
        24,
        pages=(*samples.DTYPES, *views.FORMATS, *views.FORMATS),
        each=(True, False),
        axes=(None, "sections", "turns"),
        dtype=samples.DTYPES,
        tokens=(0, 1, 15, 16, 67),
        kv_heads=(1, 2, 3),
        dim=(16, 48, 80, 256),
        page_size=(16, 32, 64),
        rotary=(-1, None, 6),
        scattered=(False, True),
        layout=samples.LAYOUTS,
        offset=(0, -7, 4_000_000),
    )
    for i, case in enumerate(grid):
        call = views.appended(i, case)
        other = views.copied(call)
        launch("append", call)
        if case["pages"] in samples.DTYPES:
            limit = ops.specs()["append"].tolerance(case["pages"], {}, {})
            want = compare.reference("append", *other)
            for got, exact in zip(call[0][2:4], want, strict=True):
                assert compare.distance(got, exact).rms <= limit, case
            continue
        compare.run("append", *other)
        for got, want in zip(codes_and_scales(call), codes_and_scales(other), strict=True):
            if got.element_size() == 1:
                assert views.same_codes(got, want, 0.01), case
            else:
                assert (got.long() - want.long()).abs().max() <= 32, case  # in last places


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_rows_that_are_not_numbers_as_on_the_cpu(fmt):
    call = views.blank(samples.append(2, 12, 2, 32, rotary=None), fmt)
    for x in call[0][:2]:
        x[0], x[1] = 0.0, 2.0**-110
        x[3, 0, 5], x[4, 0, 31], x[5, 0, 0] = torch.nan, torch.inf, -torch.inf
    other = views.copied(call)
    compare.run("append", *other)
    launch("append", call)
    for got, want in zip(codes_and_scales(call), codes_and_scales(other), strict=True):
        nan = (got & 0x7F800000 == 0x7F800000) if got.element_size() == 4 else torch.tensor(False)
        assert torch.equal(torch.where(nan, 0, got), torch.where(nan, 0, want))


def test_codes_round_as_on_the_cpu():
    """Scale 1, no rotation: halves of codes, their neighbours, and what is beyond."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    half = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([half, -half, half.nextafter(codes[1:]), half.nextafter(codes[:-1])])
    x = torch.cat([x, torch.arange(-130, 130) + 0.5, torch.tensor([448.1, 464, 1e6, -1e30])])
    x = torch.cat([x, torch.tensor([torch.nan, torch.inf]), torch.zeros(-(len(x) + 2) % 64)])
    x = x.view(-1, 1, 64)
    slots = torch.arange(len(x))
    where = torch.stack([slots // 16, slots % 16, slots], 1)
    for fmt in views.FORMATS:
        pages = [
            torch.zeros(len(x) // 16 + 1, 1, *s, dtype=torch.uint8).view(fmt)
            for s in ((64, 16), (16, 64))
        ]
        one = torch.ones(len(pages[0]), 1, 1)
        call = (x, x, *pages, where), {"k_scale": one, "v_scale": one}
        other = views.copied(call)
        compare.run("append", *other)
        launch("append", call)
        for got, want in zip(codes_and_scales(call), codes_and_scales(other), strict=True):
            assert (
                torch.equal(got & 0x7F, want & 0x7F)
                if fmt != torch.int8
                else torch.equal(got, want)
            )
