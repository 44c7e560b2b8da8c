# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, samples

pytestmark = pytest.mark.usefixtures("two_threads")
PAIRS = [(a, b) for a in samples.DTYPES for b in samples.DTYPES]


def check(args, kwargs, label=""):
    """Named slots against the reference in fp64; every other slot of the pages keeps its bits."""
    want = compare.reference("append", args, kwargs)
    before = [args[2].clone(), args[3].clone()]
    assert compare.run("append", args, kwargs) == (None,)
    named = torch.zeros(args[3].shape[0], args[3].shape[2], dtype=torch.bool)  # [N, P]
    named[args[4][:, 0], args[4][:, 1]] = True
    bound, axes = compare.bind("append", args, kwargs)
    limit = ops.specs()["append"].tolerance(args[2].dtype, axes, bound)
    for name, got, ref, old, slots_last in (
        ("k", args[2], want[0], before[0], True),
        ("v", args[3], want[1], before[1], False),
    ):
        if slots_last:
            got, ref, old = (x.transpose(2, 3) for x in (got, ref, old))
        got, ref, old = (x.transpose(1, 2) for x in (got, ref, old))  # [N, P, Hkv, D]
        d = compare.distance(got[named], ref[named])
        print(f"append {name} {label}: rms {d.rms:.2e} peak {d.peak:.2e} of {limit:.2e}")
        assert d.rms <= limit, (name, label)
        assert d.peak <= 8 * limit, (name, label)
        assert compare.same_bits(got[~named], old[~named]), (
            f"{name}: wrote beside the slots, {label}"
        )


def test_grid(isa):
    grid = samples.cover(
        1,
        54,
        pair=PAIRS,
        tokens=samples.LENGTHS,
        kv_heads=(1, 2, 5),
        dim=(16, *samples.HEAD_DIMS),
        page_size=samples.PAGE_SIZES,
        layout=samples.LAYOUTS,
        page_layout=("plain", "sliced"),
        rotary=(-1, None, 16, 6),
        scattered=(False, False, True),
        offset=(0, -7, 4_000_000),
    )
    for i, case in enumerate(grid):
        dtype, page_dtype = case.pop("pair")
        check(*samples.append(i, dtype=dtype, page_dtype=page_dtype, **case), (dtype, case))


def test_every_run_length_and_start(isa):
    """Runs of 1..33 tokens from every slot of a page, into the next one."""
    for tokens in (1, 2, 3, 5, 15, 16, 17, 33):
        for start in range(0, 32, 3 if tokens > 2 else 1):
            (k, v, k_pages, v_pages, _), kwargs = samples.append(
                start, tokens, 1, 32, page_size=32, dtype=torch.float32
            )
            slots = torch.arange(start, start + tokens)
            where = torch.stack([slots // 32, slots % 32, slots], 1)
            check((k, v, k_pages, v_pages, where), kwargs, (tokens, start))


@pytest.mark.parametrize("page_dtype", samples.DTYPES, ids=str)
def test_values_and_unrotated_keys_round_as_torch_does(isa, page_dtype):
    gen = samples.rng(2)
    exponent = torch.randint(-30, 18, (257, 2, 64), generator=gen)
    k = torch.randn(257, 2, 64, generator=gen) * 2.0**exponent
    k[0, 0, :8] = torch.tensor([0.0, -0.0, 65504, 65519.9, 65520, -70000, 1e-8, torch.inf])
    k[1, 0, 0] = torch.nan
    k_pages, v_pages = samples.page_pool(gen, 5, 2, 64, 64, page_dtype)
    slots = torch.arange(257)
    where = torch.stack([slots // 64, slots % 64, slots], 1)
    ops.append(k, k, k_pages, v_pages, where)
    want = k.to(page_dtype)
    for t in (0, 1, 63, 64, 255, 256):
        stored = (k_pages[t // 64, :, :, t % 64], v_pages[t // 64, :, t % 64])
        for got in stored:
            assert torch.equal(got.nan_to_num(9.0), want[t].nan_to_num(9.0)), t
    everything = torch.cat([v_pages[i, :, : min(64, 257 - 64 * i)] for i in range(5)], 1)
    assert torch.equal(everything.transpose(0, 1).nan_to_num(9.0), want.nan_to_num(9.0))


@pytest.mark.parametrize("far", [4_000, 4_000_000, 2**31 + 5, -4_000_000])
def test_far_offsets(isa, far):
    """The error of the rotation does not grow with the offset."""
    errors = []
    for offset in (100, far):
        args, kwargs = samples.append(3, 257, 2, 128, 64, offset=offset)
        want = compare.reference("append", args, kwargs)[0]
        compare.run("append", args, kwargs)
        errors.append(compare.distance(args[2], want).rms)
    print(f"offset {far}: rms {errors[1]:.2e}, at 100 {errors[0]:.2e}")
    assert errors[1] <= (1.5 if abs(far) < 2**31 else 3) * errors[0]


def test_a_token_alone_has_the_same_bits(isa):
    (k, v, k_pages, v_pages, where), kwargs = samples.append(4, 67, dtype=torch.bfloat16)
    ops.append(k, v, k_pages, v_pages, where, **kwargs)
    again, v_again = torch.full_like(k_pages, torch.nan), torch.full_like(v_pages, torch.nan)
    for t in reversed(range(67)):
        one = slice(t, t + 1)
        ops.append(k[one], v[one], again, v_again, where[one], **kwargs)
    assert compare.same_bits(again, k_pages)
    assert compare.same_bits(v_again, v_pages)


def test_threads_leave_no_trace(isa):
    (k, v, k_pages, v_pages, where), kwargs = samples.append(5, 257, 8, 128)
    torch.set_num_threads(1)
    ops.append(k, v, k_pages, v_pages, where, **kwargs)
    again, v_again = torch.full_like(k_pages, torch.nan), torch.full_like(v_pages, torch.nan)
    torch.set_num_threads(2)
    ops.append(k, v, again, v_again, where, **kwargs)
    assert compare.same_bits(again, k_pages)
    assert compare.same_bits(v_again, v_pages)


def test_poison_of_one_token_stays_there(isa):
    (k, v, k_pages, v_pages, where), kwargs = samples.append(6, 20, 2, 32, page_size=32)
    k[7], v[7] = torch.nan, torch.nan
    k_pages.zero_(), v_pages.zero_()
    ops.append(k, v, k_pages, v_pages, where, **kwargs)
    page, slot, _ = where[7].tolist()
    assert k_pages[page, :, :, slot].isnan().all()
    assert v_pages[page, :, slot].isnan().all()
    assert int(k_pages.isnan().sum()) == int(v_pages.isnan().sum()) == 64


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 31)), unique=True, max_size=60),
    st.integers(-(2**33), 2**33),
    st.sampled_from(PAIRS),
    st.sampled_from(_C.available_isas()),
    st.integers(0, 24),
)
def test_random_slots(slots, offset, pair, isa, half):
    (k, v, k_pages, v_pages, _), _ = samples.append(len(slots), len(slots), 2, 48, 32, *pair)
    k_pages, v_pages = (
        torch.full((4, *x.shape[1:]), torch.nan, dtype=x.dtype) for x in (k_pages, v_pages)
    )
    where = torch.tensor([(*s, offset + 3 * i) for i, s in enumerate(slots)], dtype=torch.int64)
    with headrace.use_isa(isa):
        check(
            (k, v, k_pages, v_pages, where.reshape(-1, 3)),
            {"inv_freq": samples.frequencies(2 * half) if half else None},
        )


def test_sensitive_to_every_term():
    args, kwargs = samples.append(7, 40, 2, 64)
    want = compare.reference("append", args, kwargs)
    zero = args[4].clone()
    zero[:, 2] = 0
    moved = args[4].clone()
    moved[:, 2] += 1
    swapped = (args[1], args[0], *args[2:])
    for term, other, other_kwargs in (
        ("offset", (*args[:4], zero), kwargs),
        ("offset by one", (*args[:4], moved), kwargs),
        ("rotation", args, {}),
        ("half the rotation", args, {"inv_freq": kwargs["inv_freq"][:16]}),
        ("keys and values", swapped, kwargs),
    ):
        got = compare.reference("append", other, other_kwargs)
        assert compare.distance(got[0], want[0]).rms > 20 * 1e-5, term


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy_pages_change_in_place(dtype):
    (k, v, k_pages, v_pages, where), kwargs = samples.append(8, 9)
    arrays = [x.numpy().astype(dtype) for x in (k, v, k_pages, v_pages)]
    tensors = [torch.from_numpy(x.copy()) for x in arrays]
    assert ops.append(*arrays, where.numpy(), inv_freq=kwargs["inv_freq"].numpy()) is None
    ops.append(*tensors, where, **kwargs)
    for got, want in zip(arrays[2:], tensors[2:], strict=True):
        assert np.array_equal(got, want.numpy(), equal_nan=True)
    assert int(np.isfinite(arrays[2]).sum()) == 9 * 2 * 64


def test_numpy_pages_that_must_not_change():
    (k, v, k_pages, v_pages, where), _ = samples.append(8, 9)
    arrays = [x.numpy() for x in (k, v, k_pages, v_pages, where)]
    arrays[3].setflags(write=False)
    before = arrays[2].copy()
    text = "append(v_pages): expected an array that may be written, got one that is read-only"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ops.append(*arrays)
    assert np.array_equal(arrays[2], before, equal_nan=True)


def test_beyond_two_to_the_31_elements(isa):
    """Addresses in a pool of more than 2^31 elements; only the last page is ever touched."""
    heads, dim, size = 1, 256, 128
    pages = 2**31 // (heads * dim * size) + 2
    try:
        k_pages = torch.empty(pages, heads, dim, size, dtype=torch.bfloat16)
        v_pages = torch.empty(pages, heads, size, dim, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for two pools of 4.3 GB: {error}")
    (k, v, small_k, small_v, _), kwargs = samples.append(
        9, 20, heads, dim, size, page_dtype=torch.bfloat16
    )
    slots = torch.arange(20)
    where = torch.stack([torch.full_like(slots, pages - 1), slots + 3, slots], 1)
    assert (pages - 1) * heads * dim * size > 2**31
    ops.append(k, v, k_pages, v_pages, where, **kwargs)
    where[:, 0] = 0
    ops.append(k, v, small_k, small_v, where, **kwargs)
    assert compare.same_bits(k_pages[-1, :, :, 3:23], small_k[0, :, :, 3:23])
    assert compare.same_bits(v_pages[-1, :, 3:23], small_v[0, :, 3:23])


def make(**changes):
    (k, v, k_pages, v_pages, where), kwargs = samples.append(10, 5, 2, 32, 32)
    named = {"k": k, "v": v, "k_pages": k_pages, "v_pages": v_pages, "where": where, **kwargs}
    return {**named, **{n: f(named[n]) for n, f in changes.items()}}


def put(row, column, value):
    def change(where):
        where = where.clone()
        where[row, column] = value
        return where

    return change


def narrow(x):
    return x[..., :40].contiguous() if x.shape[-1] > 40 else torch.zeros(*x.shape[:-1], 40)


WHERE = "append(where): expected pages in [0, 3) and slots in [0, 32), got page "
ERRORS = [
    ({"k": torch.Tensor.double}, TypeError,
     "append(k): expected one of float32, bfloat16, float16, got float64"),
    ({"v": torch.Tensor.half}, TypeError, "append(v): expected float32, as k, got float16"),
    ({"k_pages": torch.Tensor.int}, TypeError,
     "append(k_pages): expected one of float32, bfloat16, float16, int8, float8_e4m3fn,"
     " got int32"),
    ({"v_pages": torch.Tensor.half}, TypeError,
     "append(v_pages): expected float32, as k_pages, got float16"),
    ({"where": torch.Tensor.int}, TypeError, "append(where): expected int64, got int32"),
    ({"inv_freq": torch.Tensor.float}, TypeError,
     "append(inv_freq): expected float64, got float32"),
    ({"where": lambda x: x.tolist()}, TypeError, "append(where): expected a tensor, got list"),
    ({"k": lambda x: None}, TypeError, "append(k): expected a tensor, got None"),
    ({"k": lambda x: x[:, :1]}, ValueError,
     "append(v): expected Hkv = 1 in [T Hkv D], got shape (5, 2, 32)"),
    ({"v": lambda x: x[:4]}, ValueError,
     "append(v): expected T = 5 in [T Hkv D], got shape (4, 2, 32)"),
    ({"where": lambda x: x[:, :2].contiguous()}, ValueError,
     "append(where): expected 3 or 5 in [T 3|5], got shape (5, 2)"),
    ({"k_pages": lambda x: x[0]}, ValueError,
     "append(k_pages): expected 4 axes [N Hkv D P], got shape (2, 32, 32)"),
    ({"v_pages": lambda x: x[:, :, :16]}, ValueError,
     "append(v_pages): expected P = 32 in [N Hkv P D], got shape (3, 2, 16, 32)"),
    ({"where": lambda x: x.to("meta")}, ValueError,
     "append(where): expected a tensor on cpu, got meta"),
    ({"k": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)}, ValueError,
     "append(k): expected stride 1 along the last axis, got strides (64, 1, 2);"
     " call .contiguous() first"),
    ({"where": lambda x: torch.cat([x, x], 1)[:, :3]}, ValueError,
     "append(where): expected a contiguous tensor, got strides (6, 1)"),
    ({"k_pages": lambda x: x.transpose(2, 3)}, ValueError,
     "append(k_pages): expected the last two axes contiguous, got strides (2048, 1024, 1, 32)"),
    ({"v_pages": lambda x: x.transpose(2, 3)}, ValueError,
     "append(v_pages): expected the last two axes contiguous, got strides (2048, 1024, 1, 32)"),
    ({"inv_freq": lambda x: torch.cat([x, x])}, ValueError,
     "append(inv_freq): expected at most 16 frequencies, got 32"),
    ({"k": narrow, "v": narrow, "k_pages": lambda x: torch.zeros(3, 2, 40, 32),
      "v_pages": narrow}, NotImplementedError,
     "append(k): expected one of the head dimensions multiples of 16 from 16 to 256, got 40"),
    ({"k_pages": lambda x: x[..., :24].contiguous(), "v_pages": lambda x: x[:, :, :24]},
     NotImplementedError, "append(k_pages): expected one of page sizes that 16 divides, got 24"),
    ({"where": put(4, 0, 3)}, ValueError, WHERE + "3 and slot "),
    ({"where": put(4, 0, -1)}, ValueError, WHERE + "-1 and slot "),
    ({"where": put(3, 1, 32)}, ValueError, " and slot 32 for token 3"),
    ({"where": put(0, 1, -1)}, ValueError, " and slot -1 for token 0"),
    ({"k": lambda x: x.clone().requires_grad_()}, ValueError,
     "append(inputs): expected tensors without requires_grad, got one that requires grad;"
     " the op has no backward; call it under torch.no_grad()"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "text"), ERRORS, ids=[e[2][:60] for e in ERRORS])
def test_errors_come_before_anything_is_written(changes, kind, text):
    named = make(**changes)
    before = [named[n].clone() for n in ("k_pages", "v_pages")]
    with pytest.raises(kind) as caught:
        ops.append(**named)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("append(")
    for name, old in zip(("k_pages", "v_pages"), before, strict=True):
        assert torch.equal(named[name].nan_to_num(7), old.nan_to_num(7))
