# SPDX-License-Identifier: Apache-2.0
"""Every form of a view in Triton's interpreter: quantised pages, three position axes, a gain, lists
of entries per kv head. See test_triton_interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 and a process of its own", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from headrace import ops
from tests.ops import compare, samples, views
from tests.ops.samples import StreamShape

STREAMS = [StreamShape(40, 2, 20, 4), StreamShape(0, 0), StreamShape(50, 1)]


def run(op, call):
    with headrace.use_backend("triton"):
        return compare.run(op, *call)


def attended(seed, **case):
    fmt, each, axes, lists = (case.pop(n, None) for n in ("fmt", "each", "axes", "lists"))
    call = samples.paged(seed, **case)
    if fmt is not None:
        call = views.quantised(call, fmt, each)
    if axes is not None:
        call = views.three_axes(seed, call, axes)
    return call if lists is None else views.per_head(seed, call, lists == "pages")


def test_paged_attention():
    grid = samples.cover(
        41,
        10,
        fmt=(None, *views.FORMATS, *views.FORMATS),
        each=(True, False),
        axes=(None, "sections", "turns"),
        lists=(None, "pages", "shared"),
        rope_gain=(1.0, 1.3),
        kv_heads=(1, 2, 3),
        group=(1, 2, 3),
        dim=(16, 48, 64),
        page_size=(16, 48, 64),
        dtype=(torch.float32, torch.float16),
        rotary=(-1, None, 16),
        learned=(False, True),
        softcap=(0.0, 5.0),
        split=(20, 4096),
    )
    for i, case in enumerate(grid):
        label = dict(case)
        call = attended(i, streams=STREAMS, **case)
        compare.check("paged_attention", *call, label, got=run("paged_attention", call))


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_every_code_reads_exactly(fmt):
    """A value row for each of two halves of the codes; every query sees one slot."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(fmt)
    v = codes.view(1, 1, 16, 16)
    k, one = torch.zeros(1, 1, 16, 16, dtype=torch.uint8).view(fmt), torch.ones(1, 1, 1)
    far = samples.UNLIMITED
    entries = torch.tensor([[0, i, 1, 0, far, 0, far] for i in range(16)])
    args = (
        torch.zeros(16, 1, 16), k, v, entries, torch.arange(17).int(), torch.arange(17).int(),
        torch.zeros(16, dtype=torch.int64),
    )  # fmt: skip
    o, _ = run("paged_attention", (args, {"k_scale": one, "v_scale": one}))
    assert torch.equal(o.view(-1).nan_to_num(9e9), codes.float().nan_to_num(9e9))


@pytest.mark.parametrize("what", ["k_scale", "v_scale"])
def test_a_nan_scale_reaches_those_who_see_it_and_nobody_else(what):
    args, kwargs = attended(5, streams=[StreamShape(40, 4, 12)], fmt=torch.int8, each=True, dim=32)
    clean = run("paged_attention", (args, kwargs))
    page, first = args[3][0, :2].tolist()
    kwargs[what][page, 1, first] = torch.nan
    o, lse = run("paged_attention", (args, kwargs))
    assert o[0, 2:].isnan().all()
    assert bool(lse[0, 2:].isnan().all()) == (what == "k_scale")
    assert compare.same_bits(o[1:], clean[0][1:])
    assert compare.same_bits(o[0, :2], clean[0][0, :2])


def test_append():
    grid = samples.cover(
        42,
        14,
        pages=(torch.float32, torch.float16, *views.FORMATS, *views.FORMATS),
        each=(True, False),
        axes=(None, "sections", "turns"),
        dtype=(torch.float32, torch.float16),
        tokens=(0, 1, 16, 19),
        kv_heads=(1, 2),
        dim=(16, 48),
        page_size=(16, 32),
        rotary=(-1, None, 6),
        scattered=(False, True),
        offset=(0, -7, 4_000_000),
    )
    for i, case in enumerate(grid):
        call = views.appended(i, case)
        other = views.copied(call)
        run("append", call)
        if case["pages"] in samples.DTYPES:
            limit = ops.specs()["append"].tolerance(case["pages"], {}, {})
            wanted = compare.reference("append", *other)
            for got, exact in zip(views.written(call), wanted, strict=True):
                assert compare.distance(got, exact).rms <= limit, case
            continue
        compare.run("append", *other)
        for got, want in zip(views.written(call), views.written(other), strict=True):
            if got.element_size() == 1:
                assert views.same_codes(got, want, 0.02), case
            else:
                torch.testing.assert_close(got, want, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_rows_that_are_not_numbers_and_codes_beyond(fmt):
    for each in (True, False):
        call = views.blank(samples.append(2, 12, 2, 32, rotary=None), fmt, each)
        for x in call[0][:2]:
            x[0], x[1], x[2] = 0.0, 2.0**-110, torch.linspace(-9, 9, 32)
            x[3, 0, 5], x[4, 0, 31], x[5, 0, 0] = torch.nan, torch.inf, -torch.inf
        other = views.copied(call)
        compare.run("append", *other)
        run("append", call)
        for got, want in zip(views.written(call), views.written(other), strict=True):
            got, want = (x.float() for x in (got, want))
            assert torch.equal(got.isnan(), want.isnan())
            same = got.nan_to_num(9) == want.nan_to_num(9)
            assert same.double().mean() > 0.99
