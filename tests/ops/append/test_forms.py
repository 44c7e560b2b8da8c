# SPDX-License-Identifier: Apache-2.0
"""append into int8 and fp8 pages, and about origins of three axes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, samples, views
from tests.ops.views import blank, three_offsets

pytestmark = pytest.mark.usefixtures("two_threads")


def rows(pages, scale, where, keys):
    """What pages hold in named slots: [T, Hkv, D] in fp64, times the scales, if there are any."""
    page, slot = where[:, 0], where[:, 1]
    x = (pages.transpose(2, 3) if keys else pages).double()[page, :, slot]
    if scale is None:
        return x
    return (
        x * (scale[page, :, slot] if scale.shape[2] > 1 else scale[page, :, 0]).double()[..., None]
    )


def check(args, kwargs, fmt, label=""):
    """Within half a code of the exact rows; what no token names keeps its bits."""
    plain = {n: None if n.endswith("scale") else x for n, x in kwargs.items()}
    exact = [torch.zeros_like(x, dtype=torch.float64) for x in args[2:4]]
    compare.ops.specs()["append"].reference(
        *(x.double() for x in args[:2]), *exact, args[4], **{"freq_axis": None, **plain}
    )
    before = [x.clone() for x in (*args[2:4], kwargs["k_scale"], kwargs["v_scale"])]
    compare.run("append", args, kwargs)
    named = torch.zeros(args[3].shape[0], args[3].shape[2], dtype=torch.bool)
    named[args[4][:, 0], args[4][:, 1]] = True
    for i, name in enumerate(("k_scale", "v_scale")):
        scale = kwargs[name]
        want = rows(exact[i], None, args[4], i == 0)
        got = rows(args[2 + i], scale, args[4], i == 0)
        each = scale.shape[2] > 1
        own = rows(torch.ones_like(exact[i]), scale, args[4], i == 0)  # the scale of every element
        if each and len(want):
            top = want.abs().amax(-1, keepdim=True)
            assert (own - top * (1 / views.LARGEST[fmt])).abs().max() <= 1e-6 * top.max(), label
        want = want.clamp(-own * views.LARGEST[fmt], own * views.LARGEST[fmt])
        half = own / 2 if fmt == torch.int8 else torch.maximum(want.abs() * 2.0**-4, own * 2.0**-10)
        if len(want):
            far = ((got - want).abs() - half).max()
            assert far <= 3e-6 * (1 + want.abs().max()), (name, label, float(far))
        old, new = (x.view(torch.int8) for x in (before[i], args[2 + i]))
        old, new = (x.transpose(2, 3) if i == 0 else x for x in (old, new))
        assert torch.equal(old.transpose(1, 2)[~named], new.transpose(1, 2)[~named]), (name, label)
        if each:
            old, new = (x.transpose(1, 2)[~named] for x in (before[2 + i], scale))
            assert compare.same_bits(old, new), (name, label)
        else:
            assert compare.same_bits(before[2 + i], scale), (name, label)


def test_grid(isa):
    grid = samples.cover(
        21,
        40,
        fmt=views.FORMATS,
        each=(True, True, False),
        axes=(None, "sections", "turns"),
        dtype=samples.DTYPES,
        tokens=samples.LENGTHS,
        kv_heads=(1, 2, 5),
        dim=(16, *samples.HEAD_DIMS),
        page_size=samples.PAGE_SIZES,
        layout=samples.LAYOUTS,
        rotary=(-1, None, 16, 6),
        scattered=(False, False, True),
        offset=(0, -7, 4_000_000),
    )
    for i, case in enumerate(grid):
        label = dict(case)
        fmt, each, axes = (case.pop(n) for n in ("fmt", "each", "axes"))
        args, kwargs = blank(samples.append(i, **case), fmt, each)
        if axes:
            args, kwargs = three_offsets(i, (args, kwargs), axes)
        check(args, kwargs, fmt, label)


@pytest.mark.parametrize("axes", ["sections", "turns"])
def test_three_axes_into_floats(isa, axes):
    for i, dtype in enumerate(samples.DTYPES):
        args, kwargs = three_offsets(i, samples.append(i, 67, dtype=dtype), axes)
        want = compare.reference("append", args, kwargs)
        compare.run("append", args, kwargs)
        limit = ops.specs()["append"].tolerance(dtype, {}, {})
        for got, ref in zip(args[2:4], want, strict=True):
            assert compare.distance(got, ref).rms <= limit


def test_codes_round_as_torch_does(isa):
    """Scale 1: every bf16 number of the range, and what lies halfway between two codes."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = bits.float()[bits.float().abs() < 600]
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    half = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([x, half, -half, half.nextafter(codes[1:]), half.nextafter(codes[:-1])])
    x = torch.cat([x, torch.arange(-130, 130) + 0.5, torch.tensor([448.1, 464, 1e6, -1e30])])
    x = torch.cat([x, torch.zeros(-len(x) % 64)]).view(-1, 1, 64)
    size = 128
    slots = torch.arange(len(x))
    where = torch.stack([slots // size, slots % size, slots], 1)
    for fmt in views.FORMATS:
        top = views.LARGEST[fmt]
        k_pages = torch.zeros(len(x) // size + 1, 1, 64, size, dtype=torch.uint8).view(fmt)
        v_pages = k_pages.transpose(2, 3).contiguous()
        one = torch.ones(len(k_pages), 1, 1)
        ops.append(x, x, k_pages, v_pages, where, k_scale=one, v_scale=one)
        want = x.clamp(-top, top)
        want = (want.round() if fmt == torch.int8 else want).to(fmt).float()
        assert torch.equal(rows(k_pages, None, where, True).float(), want)
        assert torch.equal(rows(v_pages, None, where, False).float(), want)


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_zero_tiny_and_not_finite_rows(isa, fmt):
    args, kwargs = blank(samples.append(2, 12, 2, 32), fmt)
    k, v = args[:2]
    for x in (k, v):
        x[0] = 0.0
        x[1] = 2.0**-110
        x[2] *= 2.0**-90
        x[3, 0, 5], x[4, 0, 31], x[5, 0, 0] = torch.nan, torch.inf, -torch.inf
        x[6] *= 2.0**60
    ops.append(*args, **kwargs)
    for i, name in enumerate(("k_scale", "v_scale")):
        got = rows(args[2 + i], kwargs[name], args[4], i == 0)
        assert torch.equal(got[:2], torch.zeros_like(got[:2]))
        assert got[3:6, 0].isnan().all()
        assert got[[0, 1, 2, *range(6, 12)]].isfinite().all()
        assert got[3:6, 1].isfinite().all()
        for row in (2, 6):
            assert 0.5 < got[row].norm() / (v if i else k)[row].double().norm() < 2


def test_page_scales_saturate(isa):
    """A row beyond the scale of its page, NaN and infinity, in both formats."""
    for fmt, nan, inf in ((torch.int8, 0.0, 127.0), (torch.float8_e4m3fn, torch.nan, torch.nan)):
        args, kwargs = blank(samples.append(3, 4, 1, 16, rotary=None), fmt, each=False, step=0.5)
        x = torch.zeros(4, 1, 16)
        x[0, 0, :4] = torch.tensor([1e4, -1e4, torch.nan, torch.inf])
        ops.append(x, x, *args[2:], **kwargs)
        top = float(views.LARGEST[fmt])
        got = rows(args[3], None, args[4], False)[0, 0, :5].float()
        assert torch.equal(got.nan_to_num(9), torch.tensor([top, -top, nan, inf, 0]).nan_to_num(9))
        kwargs["k_scale"].zero_()
        ops.append(x + 1, x, *args[2:], **kwargs)
        assert torch.equal(rows(args[2], None, args[4], True)[1:].float(), torch.zeros(3, 1, 16))


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_a_token_alone_has_the_same_bits(isa, fmt):
    args, kwargs = blank(samples.append(4, 67, dtype=torch.bfloat16), fmt)
    again, scales = blank((args, {}), fmt)
    ops.append(*args, **kwargs)
    for t in reversed(range(67)):
        one = slice(t, t + 1)
        ops.append(
            args[0][one], args[1][one], *again[2:4], args[4][one],
            inv_freq=kwargs["inv_freq"], **scales,
        )  # fmt: skip
    for got, want in zip(again[2:4], args[2:4], strict=True):
        assert torch.equal(got.view(torch.int8), want.view(torch.int8))
    for name, scale in scales.items():
        assert compare.same_bits(scale, kwargs[name])


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_what_was_written_attends_as_what_was_meant(isa, fmt):
    """append, then paged_attention, against attention over the floats that came in."""
    (k, v, *pages, where), kwargs = blank(samples.append(5, 60, 2, 64, 64), fmt)
    where = torch.stack([torch.ones(60, dtype=torch.int64), torch.arange(60), torch.arange(60)], 1)
    ops.append(k, v, *pages, where, **kwargs)
    floats = [torch.zeros_like(x, dtype=torch.float32) for x in pages]
    ops.append(k, v, *floats, where, inv_freq=kwargs["inv_freq"])
    entries = torch.tensor([[1, 0, 60, 0, samples.UNLIMITED, 0, samples.UNLIMITED]])
    q = samples.normal(samples.rng(5), 7, 4, 64)
    rest = (entries, samples.indptr([1]), samples.indptr([7]), torch.arange(53, 60))
    o, lse = ops.paged_attention(q, *pages, *rest, **kwargs)
    want, want_lse = ops.paged_attention(q, *floats, *rest, inv_freq=kwargs["inv_freq"])
    loss = compare.distance(o, want).rms
    print(f"{fmt}: rms {loss:.2e}")
    assert loss < (0.02 if fmt == torch.int8 else 0.06)
    assert (lse - want_lse).abs().max() < 0.1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 31)), unique=True, max_size=40),
    st.sampled_from(views.FORMATS),
    st.booleans(),
    st.sampled_from(_C.available_isas()),
    st.integers(0, 24),
)
def test_random_slots(slots, fmt, each, isa, half):
    (k, v, *_), _ = samples.append(len(slots), len(slots), 2, 48, 32)
    pages = torch.zeros(4, 2, 48, 32), torch.zeros(4, 2, 32, 48)
    where = torch.tensor([(*s, 3 * i) for i, s in enumerate(slots)], dtype=torch.int64)
    kwargs = {"inv_freq": samples.frequencies(2 * half) if half else None}
    args, kwargs = blank(((k, v, *pages, where.reshape(-1, 3)), kwargs), fmt, each)
    with headrace.use_isa(isa):
        check(args, kwargs, fmt)


def test_numpy_pages_of_int8_change_in_place():
    args, kwargs = blank(samples.append(8, 9), torch.int8)
    arrays = [x.numpy().copy() for x in args]
    named = {n: x.numpy().copy() for n, x in kwargs.items()}
    assert ops.append(*arrays, **named) is None
    ops.append(*args, **kwargs)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(arrays[2:4], args[2:4], strict=True))
    for name in ("k_scale", "v_scale"):
        assert np.array_equal(named[name], kwargs[name].numpy(), equal_nan=True)


def edit(name, f):
    return lambda named: named.update({name: f(named[name])})


ERRORS = [
    (edit("k_scale", lambda x: None), ValueError,
     "append(k_scale): expected a scale, for pages of int8, got None"),
    (edit("v_scale", lambda x: None), ValueError,
     "append(v_scale): expected a scale, for pages of int8, got None"),
    (edit("k_scale", torch.Tensor.double), TypeError,
     "append(k_scale): expected float32, got float64"),
    (edit("k_scale", lambda x: x[..., :16].contiguous()), ValueError,
     "append(v_scale): expected S = 16 in [N Hkv S], got shape (3, 2, 32)"),
    (lambda n: n.update({s: n[s][..., :16].contiguous() for s in ("k_scale", "v_scale")}),
     ValueError,
     "append(k_scale): expected one scale for a page or 32, one for a slot,"
     " got shape (3, 2, 16)"),
    (edit("v_scale", lambda x: x[:2]), ValueError,
     "append(v_scale): expected N = 3 in [N Hkv S], got shape (2, 2, 32)"),
    (edit("k_scale", lambda x: x[:, :1]), ValueError,
     "append(k_scale): expected Hkv = 2 in [N Hkv S], got shape (3, 1, 32)"),
    (edit("k_scale", lambda x: x.mT.contiguous().mT), ValueError,
     "append(k_scale): expected stride 1 along the last axis, got strides (64, 1, 2);"
     " call .contiguous() first"),
    (edit("freq_axis", lambda x: None), ValueError,
     "append(freq_axis): expected the axis of every frequency, with 3 axes, got None"),
    (edit("inv_freq", lambda x: None), ValueError,
     "append(freq_axis): expected None, with no inv_freq, got a tensor"),
    (edit("where", lambda x: x[:, :3].contiguous()), ValueError,
     "append(freq_axis): expected None, with 1 axis, got a tensor"),
    (edit("where", lambda x: x[:, :4].contiguous()), ValueError,
     "append(where): expected 3 or 5 in [T 3|5], got shape (5, 4)"),
    (edit("freq_axis", lambda x: x[:5]), ValueError,
     "append(freq_axis): expected R = 16 in [R], got shape (5,)"),
    (edit("freq_axis", lambda x: x - 1), ValueError,
     "append(freq_axis): expected axes in [0, 3), got -1 for frequency 0"),
    (edit("freq_axis", lambda x: x + 1), ValueError,
     "append(freq_axis): expected axes in [0, 3), got 3 for frequency 2"),
    (edit("freq_axis", torch.Tensor.long), TypeError,
     "append(freq_axis): expected int32, got int64"),
    (edit("v_pages", lambda x: x.view(torch.float8_e4m3fn)), TypeError,
     "append(v_pages): expected int8, as k_pages, got float8_e4m3fn"),
    (lambda n: n.update({p: n[p].float() for p in ("k_pages", "v_pages")}), ValueError,
     "append(k_scale): expected None, for pages of float32, got a tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=[e[2][:60] for e in ERRORS])
def test_errors_come_before_anything_is_written(change, kind, text):
    args, kwargs = three_offsets(10, blank(samples.append(10, 5, 2, 32, 32), torch.int8), "turns")
    named = dict(zip(("k", "v", "k_pages", "v_pages", "where"), args, strict=True)) | kwargs
    ops.append(**named)
    change(named)
    before = {n: x.clone() for n, x in named.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.append(**named)
    for name, old in before.items():
        kind = torch.uint8 if old.itemsize == 1 else old.dtype
        assert torch.equal(named[name].view(kind).nan_to_num(7), old.view(kind).nan_to_num(7))
