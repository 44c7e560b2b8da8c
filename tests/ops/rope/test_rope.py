# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re

import pytest
import torch

from headrace import ops
from headrace.ops import rope
from tests.ops import samples

LLAMA = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def exactly(name, got, want):
    assert got.dtype == torch.float64
    want = torch.as_tensor(want, dtype=torch.float64)
    assert (got / want - 1).abs().max() < 1e-12, name


def test_default_and_linear():
    plain, gain = rope.frequencies(8, 10000.0)
    exactly("default", plain, [1.0, 0.1, 0.01, 0.001])
    assert gain == 1.0
    exactly("linear", rope.frequencies(8, scaling={"type": "linear", "factor": 4})[0], plain / 4)
    part = rope.frequencies(64, 10000.0, rotary_dim=8)[0]
    exactly("partial", part, plain)
    again = rope.frequencies(
        64, 5.0, scaling={"rope_theta": 10000.0, "partial_rotary_factor": 0.125}
    )[0]
    exactly("fields", again, plain)
    mrope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    exactly("mrope", rope.frequencies(8, scaling=mrope)[0], plain)


def test_llama3_in_the_words_of_the_release():
    """Long waves are slowed down, short ones kept, those between interpolated; by hand."""
    got, gain = rope.frequencies(128, 500000.0, scaling=LLAMA)
    assert gain == 1.0
    kinds = set()
    for i, f in enumerate(got.tolist()):
        base = 500000.0 ** (-2 * i / 128)
        wave = 2 * math.pi / base
        if wave < 8192 / 4:
            kinds.add("kept")
            want = base
        elif wave > 8192 / 1:
            kinds.add("slowed")
            want = base / 8
        else:
            kinds.add("between")
            smooth = (8192 / wave - 1) / (4 - 1)
            want = (1 - smooth) * base / 8 + smooth * base
        assert math.isclose(f, want, rel_tol=1e-12), i
    assert kinds == {"kept", "slowed", "between"}


def test_yarn():
    """Qwen2.5's own numbers: head 128, theta 1e6, factor 4 of 32768."""
    got, gain = rope.frequencies(128, 1e6, scaling=YARN)
    assert math.isclose(gain, (0.1 * math.log(4) + 1) ** 2, rel_tol=1e-15)
    low = math.floor(128 * math.log(32768 / (32 * 2 * math.pi)) / (2 * math.log(1e6)))
    high = math.ceil(128 * math.log(32768 / (1 * 2 * math.pi)) / (2 * math.log(1e6)))
    assert (low, high) == (23, 40)
    for i, f in enumerate(got.tolist()):
        base = 1e6 ** (-2 * i / 128)
        ramp = min(max((i - low) / (high - low), 0), 1)
        assert math.isclose(f, base / 4 * ramp + base * (1 - ramp), rel_tol=1e-12), i


def test_the_factors_of_yarn():
    def factor(**fields):
        return math.sqrt(rope.frequencies(64, scaling={**YARN, **fields})[1])

    assert math.isclose(factor(attention_factor=1.5), 1.5)
    assert math.isclose(factor(factor=1.0), 1.0)
    want = (0.1 * 0.707 * math.log(40) + 1) / (0.1 * 1.2 * math.log(40) + 1)
    assert math.isclose(factor(factor=40, mscale=0.707, mscale_all_dim=1.2), want)
    assert math.isclose(factor(mscale=1.0, mscale_all_dim=1.0), 1.0)
    narrow = rope.frequencies(64, scaling={**YARN, "beta_fast": 8, "beta_slow": 4})[0]
    smooth = rope.frequencies(64, scaling={**YARN, "truncate": False})[0]
    base = rope.frequencies(64, scaling=YARN)[0]
    assert not torch.equal(narrow, base)
    assert not torch.equal(smooth, base)


@pytest.mark.parametrize(
    ("theta", "scaling"),
    [(10000.0, {"rope_type": "linear", "factor": 3.0}), (500000.0, LLAMA), (1e6, YARN),
     (1e6, {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25})],
    ids=["linear", "llama3", "yarn", "yarn with its numbers"],
)  # fmt: skip
def test_as_transformers_computes_them(theta, scaling):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_theta=theta, max_position_embeddings=131072,
        rope_scaling=dict(scaling),
    )  # fmt: skip
    want, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    got, gain = rope.frequencies(128, theta, scaling=scaling)
    torch.testing.assert_close(got.float(), want, rtol=1e-5, atol=0)
    assert math.isclose(gain, factor**2, rel_tol=1e-6)


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope", "original_max_position_embeddings": 64, "max_position_embeddings": 256,
    "short_factor": [1.0 + 0.125 * i for i in range(32)],
    "long_factor": [1.0 + 0.5 * i for i in range(32)],
}  # fmt: skip


@pytest.mark.parametrize("length", [None, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("extra", [{}, {"factor": 2.0}, {"attention_factor": 1.5}], ids=str)
@pytest.mark.parametrize("scaling", [DYNAMIC, LONG], ids=["dynamic", "longrope"])
def test_kinds_that_know_a_length_as_transformers_computes_them(scaling, extra, length):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {**scaling, **extra}
    fields = dict(scaling)
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4,
        max_position_embeddings=fields.pop("max_position_embeddings"),
        rope_parameters={"rope_theta": 10000.0, **fields},
    )  # fmt: skip
    want, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=length)
    got, gain = rope.frequencies(64, scaling=scaling, length=length)
    torch.testing.assert_close(got.float(), want, rtol=1e-5, atol=0)
    assert math.isclose(gain, factor**2, rel_tol=1e-6)


def test_dynamic_slows_the_slowest_by_what_is_beyond():
    plain = rope.frequencies(64)[0]
    exactly("within", rope.frequencies(64, scaling=DYNAMIC, length=64)[0], plain)
    got, gain = rope.frequencies(64, scaling=DYNAMIC, length=160)
    slower = plain / got
    assert gain == 1.0
    assert math.isclose(slower[0], 1.0)
    assert math.isclose(slower[-1], 4.0 * 160 / 64 - 3.0, rel_tol=1e-12)
    assert bool((slower.diff() > 0).all())


def test_longrope_takes_a_set_of_factors_by_length():
    plain = rope.frequencies(64)[0]
    for length, name in ((None, "short"), (64, "short"), (65, "long")):
        got, gain = rope.frequencies(64, scaling=LONG, length=length)
        exactly(name, got, plain / torch.tensor(LONG[f"{name}_factor"]))
        assert math.isclose(gain, 1 + math.log(4) / math.log(64))


def test_sections():
    blocks = rope.sections(64, [16, 24, 24])
    assert blocks.tolist() == [0] * 16 + [1] * 24 + [2] * 24
    assert blocks.dtype == torch.int32
    mixed = rope.sections(64, [24, 20, 20], interleaved=True)
    assert mixed.tolist() == [0, 1, 2] * 20 + [0] * 4


def test_video_of_wan():
    inv_freq, axis = rope.video(128)
    assert axis.bincount().tolist() == [22, 21, 21]
    exactly("time", inv_freq[:22], 10000.0 ** (-torch.arange(22).double() * 2 / 44))
    exactly("height", inv_freq[22:43], 10000.0 ** (-torch.arange(21).double() * 2 / 42))
    exactly("width", inv_freq[43:], 10000.0 ** (-torch.arange(21).double() * 2 / 42))
    assert rope.video(96, sizes=(32, 32, 32))[1].bincount().tolist() == [16, 16, 16]


def interleaved(x, at, inv_freq, axis):
    """x [T, H, D] as complex pairs (2i, 2i+1), turned about positions `at` [T, 3]."""
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
    angle = at[:, axis.long()].double() * inv_freq
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None])
    return turned.flatten(-2)


def test_a_video_model_of_interleaved_pairs_through_pages():
    """Complex pairs over 3-D positions, in dense torch, against append and paged_attention."""
    gen = samples.rng(1)
    inv_freq, axis = rope.video(64)
    at = torch.cartesian_prod(*map(torch.arange, (3, 4, 5)))
    t = len(at)
    q, k, v = (samples.normal(gen, t, 2, 64) for _ in range(3))
    rotated = [interleaved(x, at, inv_freq, axis).transpose(0, 1) for x in (q, k)]
    want = torch.nn.functional.scaled_dot_product_attention(
        *rotated, v.double().transpose(0, 1)
    ).transpose(0, 1)
    k_pages, v_pages = samples.page_pool(gen, 1, 2, 64, 64, torch.float32)
    origin = torch.tensor([1, 2, 1])
    slots = torch.arange(t)[:, None]
    where = torch.cat([torch.zeros_like(slots), slots, at - origin], 1)
    q, k = (rope.half_split(x, 64, axis=-1) for x in (q, k))
    turns = {"inv_freq": inv_freq, "freq_axis": axis}
    ops.append(k, v, k_pages, v_pages, where, **turns)
    far = samples.UNLIMITED
    entries = torch.tensor([[0, 0, t, 1, far, 0, far, 2, far, 1, far]])
    order = torch.full((t,), t)
    o, _ = ops.paged_attention(
        q, k_pages, v_pages, entries, samples.indptr([1]), samples.indptr([t]), at,
        q_order=order, **turns,
    )  # fmt: skip
    assert (o - want).abs().max() < 2e-6


def test_the_gain_is_both_factors_of_yarn():
    """The factor on cos and sin of queries and keys, as in transformers; partial rotary."""
    gen = samples.rng(2)
    inv_freq, gain = rope.frequencies(64, rotary_dim=32, scaling=YARN)
    t, factor = 40, math.sqrt(gain)
    q, k, v = (samples.normal(gen, t, 2, 64) for _ in range(3))
    angle = torch.arange(t).double()[:, None] * inv_freq

    def turn(x):
        a, b, rest = x.double()[..., :16], x.double()[..., 16:32], x.double()[..., 32:]
        cos, sin = (factor * angle.cos())[:, None], (factor * angle.sin())[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).transpose(0, 1)

    want = torch.nn.functional.scaled_dot_product_attention(
        turn(q), turn(k), v.double().transpose(0, 1), is_causal=True
    ).transpose(0, 1)
    k_pages, v_pages = samples.page_pool(gen, 1, 2, 64, 64, torch.float32)
    slots = torch.arange(t)
    where = torch.stack([torch.zeros_like(slots), slots, slots], 1)
    ops.append(k, v, k_pages, v_pages, where, inv_freq=inv_freq)
    entries = torch.tensor([[0, 0, t, 0, samples.UNLIMITED, 0, samples.UNLIMITED]])
    o, _ = ops.paged_attention(
        q, k_pages, v_pages, entries, samples.indptr([1]), samples.indptr([t]), slots,
        inv_freq=inv_freq, rope_gain=gain,
    )  # fmt: skip
    assert (o - want).abs().max() < 2e-6


def test_half_split():
    x = torch.arange(2 * 8)
    assert rope.half_split(x, 8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert rope.half_split(x[:8], 8, rotary_dim=4).tolist() == [0, 2, 1, 3, 4, 5, 6, 7]
    gen = samples.rng(3)
    weight, tokens = samples.normal(gen, 16, 5), samples.normal(gen, 3, 5)
    split = rope.half_split(weight, 8)
    by_head = (tokens @ weight.T).view(3, 2, 8)
    torch.testing.assert_close(
        (tokens @ split.T).view(3, 2, 8), rope.half_split(by_head, 8, axis=-1)
    )


ERRORS = [
    (lambda: rope.frequencies(64, scaling={"rope_type": "proportional"}), NotImplementedError,
     "frequencies(scaling): expected one of the types default, linear, llama3, yarn, dynamic, "
     "longrope, got proportional"),
    (lambda: rope.frequencies(64, scaling={"rope_type": "dynamic", "factor": 2.0}), ValueError,
     "frequencies(scaling): expected max_position_embeddings above 0 for dynamic, got None"),
    (lambda: rope.frequencies(64, scaling={**LONG, "long_factor": [1.0] * 31 + [0]}), ValueError,
     f"frequencies(scaling): expected long_factor, 32 numbers above 0, got {[1.0] * 31 + [0]}"),
    (lambda: rope.frequencies(64, scaling={**LONG, "short_factor": [1.0]}), ValueError,
     "frequencies(scaling): expected short_factor, 32 numbers above 0, got [1.0]"),
    (lambda: rope.frequencies(64, scaling=DYNAMIC, length=0), ValueError,
     "frequencies(length): expected 1 token or more, or None, got 0"),
    (lambda: rope.frequencies(64, scaling={"rope_type": "yarn", "factor": 4.0}), ValueError,
     "frequencies(scaling): expected original_max_position_embeddings above 0 for yarn, got None"),
    (lambda: rope.frequencies(64, scaling={"rope_type": "linear", "factor": -1}), ValueError,
     "frequencies(scaling): expected factor above 0 for linear, got -1"),
    (lambda: rope.frequencies(64, rotary_dim=66), ValueError,
     "frequencies(rotary_dim): expected even, up to 64, got 66"),
    (lambda: rope.frequencies(64, 0.0), ValueError,
     "frequencies(theta): expected a number above 0, got 0.0"),
    (lambda: rope.sections(64, [16, 24, 23]), ValueError,
     "sections(sizes): expected three sizes that add up to 64, got [16, 24, 23]"),
    (lambda: rope.sections(64, [16, 24, 24], interleaved=True), ValueError,
     "sections(sizes): expected sizes that interleave, time the largest, got [16, 24, 24]"),
    (lambda: rope.video(64, sizes=(30, 17, 17)), ValueError,
     "video(sizes): expected three even sizes that add up to 64, got [30, 17, 17]"),
    (lambda: rope.half_split(torch.zeros(12), 8), ValueError,
     "half_split(x): expected an axis that 8 divides, got 12"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[e[2][:50] for e in ERRORS])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()
