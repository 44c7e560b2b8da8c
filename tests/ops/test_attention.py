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
DENSE_LAYOUTS = (*samples.LAYOUTS, "heads last", "every third")
GROUPS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
WINDOWS = (None, None, 1, 2, 7, 16, 63, 64, 65, 100, 10_000)
SINKS = (0, 1, 4, 17, 64, 70, 1000)


def both(args, **kwargs):
    return ops.attention(*args, return_lse=True, **kwargs)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(dtype):
    grid = samples.cover(
        1,
        36,
        batch=(1, 1, 2, 3),
        kv_heads=(1, 2),
        group=GROUPS,
        q_len=samples.LENGTHS,
        k_len=samples.LENGTHS,
        dim=(16, *samples.HEAD_DIMS),
        layout=DENSE_LAYOUTS,
        window=WINDOWS,
        sinks=SINKS,
        causal=(True, True, False),
        learned=(False, True),
        softcap=(0.0, 0.0, 5.0, 50.0),
        scale=(None, None, 0.02, 1.0),
        split=(1, 17, 4096),
    )
    for i, case in enumerate(grid):
        if case["split"] == 1 and case["k_len"] == 257:
            case["q_len"] = min(case["q_len"], 2)
        args, kwargs = samples.dense(i, dtype=dtype, **case)
        compare.check_levels("attention", args, kwargs, case)


@pytest.mark.parametrize("causal", [True, False])
def test_every_small_window_and_sink(causal):
    for window in (None, 1, 2, 3, 15, 16, 17, 40):
        for sinks in (0, 1, 5, 16, 39):
            args, _ = samples.dense(sinks, 1, 1, 2, 33, 40, 32)
            kwargs = {"window": window, "sinks": sinks, "causal": causal}
            compare.check_levels("attention", args, kwargs, kwargs)


def test_128_query_heads_on_one(isa):
    args, kwargs = samples.dense(2, 1, 1, 128, 3, 70, 64, window=40, sinks=4)
    compare.check("attention", args, kwargs)


@pytest.mark.parametrize("causal", [True, False])
def test_matches_torch_own(isa, causal):
    (q, k, v), _ = samples.dense(3, 2, 2, 4, 65, 65, 64)
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=True
    )
    assert compare.distance(ops.attention(q, k, v, causal=causal), want).rms < 1e-6


def test_rows_that_see_nothing(isa):
    """Lq > Lk: the first rows stand before the first key."""
    for sinks, learned in ((0, False), (4, True)):
        args, kwargs = samples.dense(4, 2, 2, 2, 67, 3, 32, learned=learned, sinks=sinks, window=9)
        o, lse = both(args, **kwargs)
        assert not o[:, :, :64].any()
        assert (lse[:, :, :64] == -torch.inf).all()
        assert o[:, :, 64:].any(-1).all()
        compare.check("attention", args, kwargs)
    args, _ = samples.dense(4, 2, 2, 2, 5, 0, 32)
    o, lse = both(args)
    assert not o.any()
    assert (lse == -torch.inf).all()
    args, _ = samples.dense(4, 1, 1, 0, 5, 7, 32)
    assert both(args)[0].shape == (1, 0, 5, 32)


def test_split_changes_only_rounding(isa):
    args, kwargs = samples.dense(5, 1, 2, 4, 3, 257, 64, window=200, sinks=4, learned=True)
    want = compare.reference("attention", args, kwargs)
    for split in (1, 2, 3, 16, 17, 63, 64, 65, 256, 257, 4096, 2**40):
        compare.check("attention", args, {**kwargs, "split": split}, split, want=want)


def test_bits_alone_and_in_a_batch(isa):
    for dtype in samples.DTYPES:
        args, kwargs = samples.dense(6, 16, 2, 3, 5, 130, 64, dtype, window=70, sinks=4)
        o, lse = both(args, **kwargs)
        for b in (0, 7, 15):
            alone = both([x[b : b + 1] for x in args], **kwargs)
            assert compare.same_bits(alone[0], o[b : b + 1])
            assert compare.same_bits(alone[1], lse[b : b + 1])


def test_bits_of_a_head_alone(isa):
    (q, k, v), _ = samples.dense(7, 1, 3, 4, 5, 67, 64)
    o = ops.attention(q, k, v)
    alone = ops.attention(q[:, 4:8], k[:, 1:2], v[:, 1:2])
    assert compare.same_bits(alone, o[:, 4:8])


def test_threads_leave_no_trace(isa):
    args, kwargs = samples.dense(8, 2, 2, 4, 65, 257, 64, window=100, sinks=4, split=64)
    torch.set_num_threads(1)
    one = compare.run("attention", args, kwargs)
    torch.set_num_threads(2)
    for a, b in zip(one, compare.run("attention", args, kwargs), strict=True):
        assert compare.same_bits(a, b)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_views_have_the_bits_of_copies(isa, dtype):
    for layout in DENSE_LAYOUTS:
        args, kwargs = samples.dense(9, 2, 2, 2, 20, 33, 48, dtype, layout, window=9, sinks=2)
        got, copy = both(args, **kwargs), both([x.clone() for x in args], **kwargs)
        assert compare.same_bits(got[0], copy[0]), layout
        assert compare.same_bits(got[1], copy[1]), layout


def test_one_head_expanded_over_many(isa):
    (q, k, v), _ = samples.dense(10, 2, 1, 4, 20, 33, 64)
    wide = [x.expand(-1, 4, -1, -1) for x in (k, v)]
    assert compare.distance(ops.attention(q, *wide), ops.attention(q, k, v)).rms < 1e-6


@pytest.mark.parametrize("cap", [1e-2, 1.0, 30.0, 1e3, 1e5, 1e7])
def test_softcap_of_any_size(isa, cap):
    """A cap far above the logits must leave them as they are, digits included."""
    args, _ = samples.dense(11, 1, 1, 2, 9, 65, 64)
    compare.check("attention", args, {"softcap": cap, "scale": 1.0}, cap)


def test_rising_and_falling_maximum(isa):
    """Tiles whose maximum lies far above, or far below, that of the tiles before."""
    for factor in (1.0, -1.0):
        (q, k, v), _ = samples.dense(12, 1, 1, 2, 4, 257, 64)
        ramp = factor * torch.linspace(-6, 6, 257)[:, None]  # logits from -19 to 19
        q, k = torch.ones_like(q), (k * 0.1 + ramp).contiguous()
        for split in (17, 4096):
            kwargs = {"scale": 0.05, "split": split}
            compare.check("attention", (q, k, v), kwargs, (factor, split))


def test_large_logits(isa):
    args, _ = samples.dense(13, 1, 1, 2, 9, 130, 64)
    o, lse = both(args, scale=40.0)
    want = compare.reference("attention", args, {"scale": 40.0})
    assert compare.distance(o, want[0]).rms < 1e-4
    assert compare.distance(lse, want[1]).rms < 1e-6


def test_learned_sink_far_above_and_below(isa):
    args, _ = samples.dense(14, 1, 2, 2, 5, 67, 64)
    for value in (-1e30, -200.0, 0.0, 80.0, 200.0, -torch.inf):
        logits = torch.full((4,), value)
        if value > 100:  # the sink takes everything: 0 to the last digit that fp32 has
            assert ops.attention(*args, sink_logits=logits).abs().max() < 1e-30
        else:
            compare.check("attention", args, {"sink_logits": logits}, value)


# Poison.


def test_poison_outside_the_window_is_never_read(isa):
    (q, k, v), _ = samples.dense(15, 1, 2, 2, 1, 257, 64)
    kwargs = {"window": 70, "sinks": 4}
    clean = both((q, k, v), **kwargs)
    k[:, :, 4 : 257 - 70], v[:, :, 4 : 257 - 70] = torch.nan, torch.nan
    for split in (17, 4096):
        o, lse = compare.run("attention", (q, k, v), {**kwargs, "split": split})
        assert compare.distance(o, clean[0]).rms < 1e-6
        assert compare.distance(lse, clean[1]).rms < 1e-6


def test_poison_of_one_head_or_batch_stays_there(isa):
    (q, k, v), _ = samples.dense(16, 3, 2, 2, 20, 33, 64)
    clean = both((q, k, v))
    k[1, 0], v[1, 0] = torch.nan, torch.inf
    o, lse = both((q, k, v))
    assert o[1, :2].isnan().all()
    assert lse[1, :2].isnan().all()
    o[1, :2], lse[1, :2] = clean[0][1, :2], clean[1][1, :2]
    assert compare.same_bits(o, clean[0])
    assert compare.same_bits(lse, clean[1])


@pytest.mark.parametrize("what", ["q", "k", "v"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_row_that_sees_a_nan_gives_nan(isa, what, learned):
    args, kwargs = samples.dense(17, 1, 1, 2, 20, 150, 64, learned=learned)
    for at in (0, 70, 128, 129):
        one = [x.clone() for x in args]
        one["qkv".index(what)][0, 0, min(at, 19) if what == "q" else at, 3] = torch.nan
        for split in (17, 4096):
            o, lse = compare.run("attention", one, {**kwargs, "split": split})
            if what == "q":
                assert o[0, 0, min(at, 19)].isnan().all()
                assert lse[0, 0, min(at, 19)].isnan()
                assert int(lse.isnan().sum()) == 1
            else:
                hit = slice(None) if what == "k" else 3
                assert o[0, :, max(0, at - 130) :][..., hit].isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["k", "v"])
def test_the_future_of_a_chunk_does_not_reach_its_past(isa, what, value):
    """NaN in the last token of a chunk: the rows before it keep their bits."""
    (q, k, v), _ = samples.dense(18, 1, 1, 2, 20, 33, 64)
    clean = both((q, k, v))
    {"k": k, "v": v}[what][:, :, -1] = value
    o, lse = both((q, k, v))
    assert compare.same_bits(o[:, :, :-1], clean[0][:, :, :-1])
    assert compare.same_bits(lse[:, :, :-1], clean[1][:, :, :-1])


@pytest.mark.parametrize("what", ["k", "v"])
def test_what_left_the_window_of_a_row_does_not_reach_it(isa, what):
    """NaN in a key that only the first row of a chunk still sees."""
    (q, k, v), _ = samples.dense(19, 1, 1, 2, 20, 33, 64)
    clean = both((q, k, v), window=14)
    {"k": k, "v": v}[what][:, :, 0] = torch.nan
    o, lse = both((q, k, v), window=14)
    assert o[:, :, 0].isnan().all()
    assert compare.same_bits(o[:, :, 1:], clean[0][:, :, 1:])
    assert compare.same_bits(lse[:, :, 1:], clean[1][:, :, 1:])


# Sensitivity: the samples can tell when a term is left out.

SAMPLE = dict(batch=1, kv_heads=1, group=2, q_len=9, k_len=150, dim=64)
BASE = {"window": 40, "sinks": 4, "softcap": 3.0, "scale": 0.4, "split": 17}


def shifted(q, k, v):
    return q, k.roll(1, 2), v


TERMS = {
    "a sink": ({"sinks": 3}, None),
    "all sinks": ({"sinks": 0}, None),
    "the window": ({"window": None}, None),
    "one of the window": ({"window": 41}, None),
    "the query itself": ({"window": 39}, None),
    "causality": ({"causal": False}, None),
    "softcap": ({"softcap": 0.0}, None),
    "scale": ({"scale": None}, None),
    "the learned sink": ({"sink_logits": None}, None),
    "the learned sink of the other head": ("flip", None),
    "the last key": ({}, lambda q, k, v: (q, k[:, :, :-1], v[:, :, :-1])),
    "the right key": ({}, shifted),
}


@pytest.mark.parametrize("term", TERMS)
def test_sensitive_to_every_term(term):
    args, kwargs = samples.dense(20, **SAMPLE, learned=True, **BASE)
    kwargs["sink_logits"] = torch.tensor([0.5, 2.0])
    compare.check("attention", args, kwargs)
    change, turn = TERMS[term]
    other = {**kwargs, "sink_logits": kwargs["sink_logits"].flip(0)} if change == "flip" else None
    other = other or {**kwargs, **change}
    o = compare.reference("attention", turn(*args) if turn else args, other)[0]
    limit = compare.tolerances("attention", args, kwargs, (args[0],))[0]
    assert compare.distance(o, compare.run("attention", args, kwargs)[0]).rms > 20 * limit


def test_sensitive_to_a_lost_split_and_a_lost_rescale():
    """What a kernel gives that drops a split, or adds up tiles of different maxima."""
    args, kwargs = samples.dense(21, **SAMPLE, split=50)
    q, k, v = args
    want = compare.run("attention", args, kwargs)
    limit = compare.tolerances("attention", args, kwargs, want)[0]
    for lost in range(3):
        rest = [i for i in range(150) if i // 50 != lost]
        o = compare.reference("attention", (q, k[:, :, rest], v[:, :, rest]), {})[0]
        assert compare.distance(o, want[0]).rms > 20 * limit
    parts = [
        compare.reference("attention", (q, a, b), {"causal": False})
        for a, b in zip(k.split(50, 2), v.split(50, 2), strict=True)
    ]
    assert compare.distance(sum(o for o, _ in parts) / 3, want[0]).rms > 20 * limit


@pytest.mark.parametrize("rise", [-6, 3, 6])
@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_logits_that_rise(isa, rise, dtype):
    """By `rise` from one tile of 64 keys to the next: below and beyond what a row's state bears."""
    (q, k, v), _ = samples.dense(23, 1, 2, 4, 9, 200, 64)
    q[..., 0], k[..., 0] = 8, torch.arange(200) * rise / 64
    args = tuple(x.to(dtype) for x in (q, k, v))
    compare.check("attention", args, {})
    o, lse = both(args)
    alone = both((args[0][:, :, 4:5], *(x[:, :, :196] for x in args[1:])))
    assert compare.same_bits(o[:, :, 4:5], alone[0])
    assert compare.same_bits(lse[:, :, 4:5], alone[1])


@pytest.mark.parametrize("where", [0, 40, 130])
def test_a_weight_that_would_be_subnormal_is_nothing(isa, where):
    """e^-88 of the largest is 2^-127: of a value of 10^38 not even 1 is left."""
    q, k = torch.ones(1, 1, 3, 16), torch.zeros(1, 1, 131, 16)
    k[0, 0, where] = -88 / 16
    v = torch.ones(1, 1, 131, 16)
    v[0, 0, where] = 1e38
    o, lse = ops.attention(q, k, v, scale=1.0, causal=False, return_lse=True)
    torch.testing.assert_close(o, torch.full_like(o, 1.0), rtol=1e-6, atol=0.0)
    assert torch.allclose(lse, torch.tensor(130.0).log())


def test_lse_leaves_the_learned_sink_out(isa):
    args, kwargs = samples.dense(22, learned=True)
    with_sink, without = both(args, **kwargs), both(args)
    assert compare.same_bits(with_sink[1], without[1])
    gate = torch.sigmoid(without[1] - kwargs["sink_logits"][:, None])[..., None]
    assert compare.distance(with_sink[0], without[0] * gate).rms < 1e-6


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    group, dtype = draw(st.integers(1, 16)), draw(st.sampled_from(samples.DTYPES))
    q_len, k_len = draw(st.integers(0, 70)), draw(st.integers(0, 140))
    args, kwargs = samples.dense(
        draw(st.integers(0, 2**20)),
        draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        group,
        q_len,
        k_len,
        16 * draw(st.integers(1, 8)),
        dtype,
        draw(st.sampled_from(DENSE_LAYOUTS)),
        draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 150)),
        sinks=draw(st.integers(0, 80)),
        causal=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 2.0, 30.0])),
        split=draw(st.integers(1, 200)),
    )
    compare.check_levels("attention", args, kwargs, [tuple(x.shape) for x in args])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy(dtype):
    args, _ = samples.dense(23, 1, 2, 2, 5, 9, 32)
    arrays = [x.numpy().astype(dtype) for x in args]
    o = ops.attention(*arrays, window=3)
    assert isinstance(o, np.ndarray)
    assert o.dtype == dtype
    want, want_lse = ops.attention(*map(torch.from_numpy, arrays), window=3, return_lse=True)
    assert np.array_equal(o, want.numpy())
    o, lse = ops.attention(*arrays, window=3, return_lse=True)
    assert np.array_equal(lse, want_lse.numpy())
    turned = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in arrays]
    assert np.array_equal(ops.attention(*turned, window=3), o)


def test_beyond_two_to_the_31_elements(isa):
    """Key rows so far apart that the last lies behind element 2^31; little of it is touched."""
    rows, apart = 5, 2**29 + 64
    try:
        big = torch.empty(rows * apart, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for 5.4 GB: {error}")
    (q, k, v), _ = samples.dense(24, 1, 1, 2, 1, rows, 32, torch.bfloat16)
    far_k = big.as_strided((1, 1, rows, 32), (0, 0, apart, 1))
    far_v = big.as_strided((1, 1, rows, 32), (0, 0, apart, 1), 32)
    far_k.copy_(k), far_v.copy_(v)
    assert (rows - 1) * apart > 2**31
    assert compare.same_bits(ops.attention(q, far_k, far_v), ops.attention(q, k, v))


Q, K = torch.zeros(2, 4, 3, 32), torch.zeros(2, 2, 5, 32)
N = torch.zeros(2, 4, 3, 40), torch.zeros(2, 2, 5, 40)
ERRORS = [
    ((Q.double(), K, K), {}, TypeError,
     "attention(q): expected one of float32, bfloat16, float16, got float64"),
    ((Q, K.half(), K), {}, TypeError, "attention(k): expected float32, as q, got float16"),
    ((Q, K, K.bfloat16()), {}, TypeError, "attention(v): expected float32, as q, got bfloat16"),
    ((Q, K, K), {"sink_logits": torch.zeros(4).double()}, TypeError,
     "attention(sink_logits): expected float32, got float64"),
    ((Q, K, 3), {}, TypeError, "attention(v): expected a tensor, got int"),
    ((Q, K, K), {"window": 2.5}, TypeError, "attention(window): expected an integer, got float"),
    ((Q, K, K), {"sinks": None}, TypeError, "attention(sinks): expected an integer, got None"),
    ((Q, K, K), {"scale": "1"}, TypeError, "attention(scale): expected a number, got str"),
    ((Q[0], K, K), {}, ValueError,
     "attention(q): expected 4 axes [B Hq Lq D], got shape (4, 3, 32)"),
    ((Q, K[:1], K), {}, ValueError,
     "attention(k): expected B = 2 in [B Hkv Lk D], got shape (1, 2, 5, 32)"),
    ((Q, K, K[:, :, :4]), {}, ValueError,
     "attention(v): expected Lk = 5 in [B Hkv Lk D], got shape (2, 2, 4, 32)"),
    ((Q, K, K), {"sink_logits": torch.zeros(2)}, ValueError,
     "attention(sink_logits): expected Hq = 4 in [Hq], got shape (2,)"),
    ((Q[:, :3], K, K), {}, ValueError,
     "attention(q): expected query heads that are a multiple of 2 kv heads, got 3"),
    ((Q, K[:, :0], K[:, :0]), {}, ValueError,
     "attention(q): expected query heads that are a multiple of 0 kv heads, got 4"),
    ((Q, K, K), {"window": 0}, ValueError,
     "attention(window): expected 1 or more, or None, got 0; the window counts the query itself"),
    ((Q, K, K), {"window": -3}, ValueError,
     "attention(window): expected 1 or more, or None, got -3; the window counts the query itself"),
    ((Q, K, K), {"window": 2**70}, ValueError,
     f"attention(window): expected an integer of 64 bits, got {2**70}"),
    ((Q, K, K), {"sinks": -1}, ValueError, "attention(sinks): expected 0 or more, got -1"),
    ((Q, K, K), {"softcap": -1.0}, ValueError,
     "attention(softcap): expected 0 (off) or a finite number above, got -1.0"),
    ((Q, K, K), {"softcap": float("nan")}, ValueError,
     "attention(softcap): expected 0 (off) or a finite number above, got nan"),
    ((Q, K, K), {"scale": float("inf")}, ValueError,
     "attention(scale): expected a finite number or None, got inf"),
    ((*N, N[1]), {}, NotImplementedError,
     "attention(q): expected one of the head dimensions multiples of 16 from 16 to 256, got 40"),
    ((Q, K.to("meta"), K), {}, ValueError, "attention(k): expected a tensor on cpu, got meta"),
    ((Q, K.mT.contiguous().mT, K), {}, ValueError,
     "attention(k): expected stride 1 along the last axis, got strides (320, 160, 1, 5);"
     " call .contiguous() first"),
    ((Q, K.clone().requires_grad_(), K), {}, ValueError,
     "attention(inputs): expected tensors without requires_grad, got one that requires grad;"
     " the op has no backward; call it under torch.no_grad()"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "kind", "text"), ERRORS, ids=[e[3][:60] for e in ERRORS]
)
def test_errors(args, kwargs, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.attention(*args, **kwargs)


def test_bad_split():
    text = "attention(split): expected 1 token or more, got 0"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        torch.ops.headrace.attention(Q, K, K, split=0)
