# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
NOTHING = -torch.inf


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(dtype):
    grid = samples.cover(
        1, 24, tokens=(0, 1, 2, 15, 67), heads=(1, 3, 8), dim=(16, *samples.HEAD_DIMS, 512)
    )
    for i, case in enumerate(grid):
        args, kwargs = samples.states(i, dtype=dtype, **case)
        compare.check_levels("merge_states", args, kwargs, case)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_identity_keeps_the_bits(isa, dtype):
    (o, lse, junk, _), _ = samples.states(2, dtype=dtype)
    nothing = torch.full_like(lse, NOTHING)
    junk.fill_(torch.nan)
    for got in (ops.merge_states(o, lse, junk, nothing), ops.merge_states(junk, nothing, o, lse)):
        assert compare.same_bits(got[0], o)
        assert compare.same_bits(got[1], lse)
    o_none, lse_none = ops.merge_states(junk, nothing, junk, nothing)
    assert not o_none.any()
    assert (lse_none == NOTHING).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_number_passes_unchanged(isa, dtype):
    bits = (
        torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).view(64, 8, 128)
    )
    lse = torch.zeros(64, 8)
    got = ops.merge_states(bits, lse, bits, torch.full_like(lse, NOTHING))[0]
    number = ~bits.isnan()
    assert torch.equal(got[number], bits[number])
    assert got[~number].isnan().all()


def test_commutes(isa):
    (o_a, lse_a, o_b, lse_b), _ = samples.states(3, tokens=300)
    o, lse = ops.merge_states(o_a, lse_a, o_b, lse_b)
    o_swapped, lse_swapped = ops.merge_states(o_b, lse_b, o_a, lse_a)
    assert compare.distance(o, o_swapped).rms < 1e-7
    assert compare.same_bits(lse, lse_swapped)


def test_associates(isa):
    (o_a, lse_a, o_b, lse_b), _ = samples.states(4)
    (o_c, lse_c, _, _), _ = samples.states(5)
    left = ops.merge_states(*ops.merge_states(o_a, lse_a, o_b, lse_b), o_c, lse_c)
    right = ops.merge_states(o_a, lse_a, *ops.merge_states(o_b, lse_b, o_c, lse_c))
    for x, y in zip(left, right, strict=True):
        assert compare.distance(x, y).rms < 5e-7


@pytest.mark.parametrize("group", [1, 3])
def test_two_halves_make_the_whole(isa, group):
    (q, k, v), _ = samples.dense(6, q_len=1, k_len=131, group=group, batch=3)
    sizes = (40, 91)
    halves = [
        ops.attention(q, a, b, return_lse=True)
        for a, b in zip(k.split(sizes, 2), v.split(sizes, 2), strict=True)
    ]
    flat = [(o.flatten(0, 1), lse.flatten(0, 1)) for o, lse in halves]
    got = ops.merge_states(
        *(x.view(-1, 1, 64) if x.dim() == 3 else x.view(-1, 1) for pair in flat for x in pair)
    )
    want = compare.reference("attention", (q, k, v), {})
    assert compare.distance(got[0].view_as(want[0]), want[0]).rms < 1e-6
    assert compare.distance(got[1].view_as(want[1]), want[1]).rms < 1e-6


@pytest.mark.parametrize("gap", [0.0, 1e-3, 20.0, 90.0, 200.0, 1e6])
def test_far_apart(isa, gap):
    (o_a, lse_a, o_b, _), _ = samples.states(7)
    args = (o_a, lse_a, o_b, lse_a - gap)
    compare.check("merge_states", args, {}, gap)
    compare.check("merge_states", (o_b, lse_a - gap, o_a, lse_a), {}, gap)


def test_weight_of_nothing_is_not_read_but_a_lost_state_shows(isa):
    (o_a, lse_a, o_b, lse_b), _ = samples.states(8, tokens=1, heads=1, dim=16)
    lost = torch.full_like(lse_a, torch.nan)
    nothing = torch.full_like(lse_a, NOTHING)
    for a, b in ((lost, lse_b), (lse_a, lost), (lost, nothing), (nothing, lost), (lost, lost)):
        o, lse = ops.merge_states(o_a, a, o_b, b)
        assert o.isnan().all(), (a, b)
        assert lse.isnan().all(), (a, b)


def test_nan_of_one_row_stays_there(isa):
    (o_a, lse_a, o_b, lse_b), _ = samples.states(9, tokens=6)
    clean = ops.merge_states(o_a, lse_a, o_b, lse_b)
    o_a[2, 1, 5] = torch.nan
    got = ops.merge_states(o_a, lse_a, o_b, lse_b)
    assert torch.equal(got[0].isnan(), o_a.isnan())
    assert torch.equal(got[0].nan_to_num(7.0)[~o_a.isnan()], clean[0][~o_a.isnan()])
    assert compare.same_bits(got[1], clean[1])


def test_threads_leave_no_trace(isa):
    args, _ = samples.states(10, tokens=4000)
    torch.set_num_threads(1)
    one = ops.merge_states(*args)
    torch.set_num_threads(2)
    for a, b in zip(one, ops.merge_states(*args), strict=True):
        assert compare.same_bits(a, b)


@given(
    st.lists(st.floats(-60, 60, width=32) | st.just(NOTHING), min_size=2, max_size=24),
    st.sampled_from(samples.DTYPES),
)
def test_random_states(values, dtype):
    n = len(values) // 2
    (o_a, _, o_b, _), _ = samples.states(len(values), tokens=n, heads=1, dim=48, dtype=dtype)
    lse = torch.tensor(values[: 2 * n]).view(2, n, 1)
    compare.check_levels("merge_states", (o_a, lse[0], o_b, lse[1]), {}, values)


def test_sensitive_to_every_term():
    (o_a, lse_a, o_b, lse_b), _ = samples.states(11)
    args = (o_a, lse_a, o_b, lse_b)
    whole = compare.reference("merge_states", args, {})
    limit = compare.tolerances("merge_states", args, {}, whole[:1] and (o_a,))[0]
    nothing = torch.full_like(lse_a, NOTHING)
    dropped = {
        "first state": (o_a, nothing, o_b, lse_b),
        "second state": (o_a, lse_a, o_b, nothing),
        "weights": (o_a, torch.zeros_like(lse_a), o_b, torch.zeros_like(lse_b)),
        "natural logarithm": (o_a, lse_a * 0.6931, o_b, lse_b * 0.6931),
    }
    for term, other in dropped.items():
        o, lse = compare.reference("merge_states", other, {})
        assert compare.distance(o, whole[0]).rms > 20 * limit, term
        assert compare.distance(lse, whole[1], 1.0).rms > 20 * limit, term


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy(dtype):
    args, _ = samples.states(12)
    arrays = [
        args[0].numpy().astype(dtype),
        args[1].numpy(),
        args[2].numpy().astype(dtype),
        args[3].numpy(),
    ]
    o, lse = ops.merge_states(*arrays)
    assert isinstance(o, np.ndarray)
    assert o.dtype == dtype
    assert lse.dtype == np.float32
    want = ops.merge_states(*map(torch.from_numpy, arrays))
    assert np.array_equal(o, want[0].numpy())
    assert np.array_equal(lse, want[1].numpy())


STATE, LSE = torch.zeros(3, 2, 32), torch.zeros(3, 2)
ERRORS = [
    ((STATE.double(), LSE, STATE, LSE), TypeError,
     "merge_states(o_a): expected one of float32, bfloat16, float16, got float64"),
    ((STATE, LSE.half(), STATE, LSE), TypeError,
     "merge_states(lse_a): expected float32, got float16"),
    ((STATE, LSE, STATE.half(), LSE), TypeError,
     "merge_states(o_b): expected float32, as o_a, got float16"),
    ((STATE[0], LSE, STATE, LSE), ValueError,
     "merge_states(o_a): expected 3 axes [T H D], got shape (2, 32)"),
    ((STATE, LSE[:2], STATE, LSE), ValueError,
     "merge_states(lse_a): expected T = 3 in [T H], got shape (2, 2)"),
    ((STATE, LSE, STATE[:, :1], LSE), ValueError,
     "merge_states(o_b): expected H = 2 in [T H D], got shape (3, 1, 32)"),
    ((STATE.transpose(0, 1).contiguous().transpose(0, 1), LSE, STATE, LSE), ValueError,
     "merge_states(o_a): expected a contiguous tensor, got strides (32, 96, 1)"),
    ((STATE[..., :24].contiguous(), LSE, STATE[..., :24].contiguous(), LSE), NotImplementedError,
     "merge_states(o_a): expected one of last axes that 16 divides, got 24"),
    ((STATE, LSE, STATE, LSE.to("meta")), ValueError,
     "merge_states(lse_b): expected a tensor on cpu, got meta"),
    ((STATE.clone().requires_grad_(), LSE, STATE, LSE), ValueError,
     "merge_states(inputs): expected tensors without requires_grad, got one that requires grad;"
     " the op has no backward; call it under torch.no_grad()"),
    ((STATE, 0.0, STATE, LSE), TypeError, "merge_states(lse_a): expected a tensor, got float"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kind", "text"), ERRORS, ids=[e[2][:50] for e in ERRORS])
def test_errors(args, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.merge_states(*args)
