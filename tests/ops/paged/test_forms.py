# SPDX-License-Identifier: Apache-2.0
"""Every form of a view: quantised pages, three position axes, a gain, lists per kv head."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from headrace.kernels.attention.reference import CAP, COUNT, FIRST, ORIGIN, PAGE, REACH
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, samples, views
from tests.ops.paged import NAMES, both, edited, replaced
from tests.ops.samples import UNLIMITED, StreamShape

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "paged_attention"
BATCHES = (
    [StreamShape(1, 1)],
    [StreamShape(257, 1, 64, 4)],
    [StreamShape(67, 67)],
    [StreamShape(64, 2), StreamShape(0, 0), StreamShape(63, 63, 17, 3), StreamShape(2, 1, 1)],
    [StreamShape(130, 64, None, 20, base=4_000_000, shift=3), StreamShape(64, 64, 16, base=-500)],
)


def form(seed, *, fmt=None, each=True, axes=None, lists=None, **case):
    """A sample in the form asked for."""
    call = samples.paged(seed, **case)
    if fmt is not None:
        call = views.quantised(call, fmt, each)
    if axes is not None:
        call = views.three_axes(seed, call, axes)
    if lists is not None:
        call = views.per_head(seed, call, lists == "pages")
    return call


def test_grid():
    grid = samples.cover(
        11,
        48,
        streams=BATCHES,
        kv_heads=(1, 2, 3),
        group=(1, 2, 4, 7),
        dim=(16, *samples.HEAD_DIMS),
        page_size=samples.PAGE_SIZES,
        dtype=samples.DTYPES,
        fmt=(None, *views.FORMATS, *views.FORMATS),
        each=(True, False),
        axes=(None, "sections", "turns"),
        lists=(None, "pages", "shared"),
        rope_gain=(1.0, 1.3),
        rotary=(-1, -1, None, 16, 6),
        learned=(False, True),
        softcap=(0.0, 5.0),
        split=(17, 4096),
    )
    for i, case in enumerate(grid):
        args, kwargs = form(i, **case)
        compare.check_levels(OP, args, kwargs, case)


def test_every_code_reads_exactly(isa):
    """One key per code, its other dimensions zero: the logits are the codes."""
    for fmt in views.FORMATS:
        codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(fmt)
        k = torch.zeros(16, 1, 16, 16, dtype=torch.uint8).view(fmt)
        k[:, 0, 0, :] = codes.view(16, 16)
        v = k.transpose(2, 3).contiguous()
        one = torch.ones(16, 1, 1)
        entries = torch.tensor([[p, s, 1, 0, UNLIMITED, 0, UNLIMITED] for p in range(16)
                                for s in range(16)])  # fmt: skip
        q = torch.zeros(256, 1, 16)
        q[..., 0] = 1
        o, lse = ops.paged_attention(
            q, k, v, entries, torch.arange(257).int(), torch.arange(257).int(),
            torch.zeros(256, dtype=torch.int64), scale=1.0, k_scale=one, v_scale=one,
        )  # fmt: skip
        want = codes.float()
        assert torch.equal(o[:, 0, 0].nan_to_num(9e9), want.nan_to_num(9e9))
        finite = want.isfinite()
        assert torch.equal(lse[finite, 0].isnan(), want[finite].isnan())
        assert (lse[finite, 0] - want[finite]).abs().max() <= 1e-6 * 448
        assert lse[~finite].isnan().all()


@pytest.mark.parametrize("dim", [16, 48, 64, 112, 256])
def test_every_code_in_every_column_is_a_value(isa, dim):
    """One key a row, whose weight is 1: the row is its values, of which none meets another."""
    for fmt in views.FORMATS:
        codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
        v = torch.stack([codes.roll(d) for d in range(dim)], 1).view(16, 1, 16, dim).view(fmt)
        k, one = torch.zeros(16, 1, dim, 16, dtype=torch.uint8).view(fmt), torch.ones(16, 1, 1)
        entries = torch.tensor([[p, s, 1, 0, UNLIMITED, 0, UNLIMITED] for p in range(16)
                                for s in range(16)])  # fmt: skip
        o, lse = ops.paged_attention(
            torch.ones(256, 1, dim, dtype=torch.bfloat16), k, v, entries, torch.arange(257).int(),
            torch.arange(257).int(), torch.zeros(256, dtype=torch.int64), k_scale=one, v_scale=one,
        )  # fmt: skip
        want = v.view(256, dim).float()
        assert torch.equal(o[:, 0].float().nan_to_num(9e9), want.nan_to_num(9e9))
        assert not lse.any()


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_bits_of_a_row_alone_and_in_a_batch(isa, fmt):
    streams = [StreamShape(130, 5, 40, 4), StreamShape(67, 1), StreamShape(90, 9)]
    args, kwargs = form(3, streams=streams, fmt=fmt, axes="sections", lists="shared", page_size=32)
    o, lse = both(args, **kwargs)
    for b, rows in enumerate(((0, 5), (5, 6), (6, 15))):
        for row in range(*rows):
            lists = args[4][2 * b : 2 * b + 3]
            alone = replaced(
                args,
                q=args[0][row : row + 1],
                entries=args[3][int(lists[0]) : int(lists[-1])],
                entry_indptr=lists - lists[0],
                q_indptr=torch.tensor([0, 1], dtype=torch.int32),
                q_pos=args[6][row : row + 1],
            )
            one = both(alone, **{**kwargs, "q_order": kwargs["q_order"][row : row + 1]})
            assert compare.same_bits(one[0][0], o[row])
            assert compare.same_bits(one[1][0], lse[row])


@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
@pytest.mark.parametrize("what", ["k", "v"])
def test_a_nan_scale_reaches_those_who_see_it_and_nobody_else(isa, fmt, what):
    args, kwargs = form(5, streams=[StreamShape(40, 20, 12)], fmt=fmt, page_size=64)
    clean = both(args, **kwargs)
    page, first = args[3][0, [PAGE, FIRST]].tolist()
    kwargs[what + "_scale"][page, 1, first] = torch.nan  # of a key that only row 0 sees
    o, lse = both(args, **kwargs)
    assert o[0, 2:].isnan().all()
    assert bool(lse[0, 2:].isnan().all()) == (what == "k")
    assert compare.same_bits(o[1:], clean[0][1:])
    assert compare.same_bits(o[0, :2], clean[0][0, :2])
    assert compare.same_bits(lse[1:], clean[1][1:])


def test_a_list_per_head_that_is_the_same_for_all_changes_nothing(isa):
    streams = [StreamShape(130, 5, 40, 4), StreamShape(0, 0), StreamShape(67, 30)]
    args, kwargs = samples.paged(6, streams, kv_heads=3, page_size=32)
    want = both(args, **kwargs)
    parts = [args[3][int(a) : int(b)] for a, b in zip(args[4], args[4][1:], strict=False)]
    entries = torch.cat([part for part in parts for _ in range(3)])
    counts = samples.indptr([len(part) for part in parts for _ in range(3)])
    got = both(replaced(args, entries=entries, entry_indptr=counts), **kwargs)
    assert all(map(compare.same_bits, got, want))


def test_pages_of_a_head_of_its_own_give_the_same_bits(isa):
    streams = [StreamShape(130, 5, 40, 4), StreamShape(67, 30)]
    for fmt in (None, *views.FORMATS):
        got = [
            both(args, **kwargs)
            for args, kwargs in (
                form(7, streams=streams, fmt=fmt, lists=lists, page_size=32)
                for lists in ("shared", "pages")
            )
        ]
        assert all(map(compare.same_bits, *got))


def test_three_equal_axes_are_one(isa):
    """All three positions, origins and caps the same: whatever axis a frequency has."""
    args, kwargs = samples.paged(8, [StreamShape(130, 9, 40, 4)], page_size=32)
    want = both(args, **kwargs)
    pair = args[3][:, [ORIGIN, CAP]]
    entries, q_pos = torch.cat([args[3], pair, pair], 1), torch.stack([args[6]] * 3, 1)
    got = both(
        replaced(args, entries=entries, q_pos=q_pos),
        **kwargs,
        q_order=args[6],
        freq_axis=views.freq_axis(32, "turns"),
    )
    assert all(map(compare.same_bits, got, want))


@st.composite
def shapes(draw):
    length = draw(st.integers(0, 80))
    rows, window = draw(st.integers(0, min(length, 9))), draw(st.sampled_from([None, 1, 17]))
    return StreamShape(length, rows, window, draw(st.integers(0, 5)))


@given(st.data())
def test_random_forms(data):
    draw = data.draw
    case = dict(
        streams=draw(st.lists(shapes(), min_size=1, max_size=3)),
        fmt=draw(st.sampled_from([None, *views.FORMATS])),
        each=draw(st.booleans()),
        axes=draw(st.sampled_from([None, "sections", "turns"])),
        lists=draw(st.sampled_from([None, "pages", "shared"])),
        rope_gain=draw(st.sampled_from([1.0, 0.5])),
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.integers(1, 3)),
        dim=32,
        page_size=16,
        split=draw(st.sampled_from([5, 4096])),
    )
    args, kwargs = form(draw(st.integers(0, 9)), **case)
    with headrace.use_isa(draw(st.sampled_from(_C.available_isas()))):
        compare.check(OP, args, kwargs, case, floor=0.1)


# Sensitivity: the samples can tell when a term is left out.

TERMS = {
    "the second origin": (lambda a: edited(a, 7, lambda x: x + 1), {}),
    "the second cap": (lambda a: edited(a, 8, lambda x: torch.full_like(x, UNLIMITED)), {}),
    "the third origin": (lambda a: edited(a, 9, lambda x: x + 1), {}),
    "the third cap": (lambda a: edited(a, 10, lambda x: torch.full_like(x, UNLIMITED)), {}),
    "the first cap": (lambda a: edited(a, CAP, lambda x: torch.full_like(x, UNLIMITED)), {}),
    "a new rotation for another second origin": (
        lambda a: edited(a, 7, lambda x: x[:1].expand_as(x)), {}),
    "the axis of a frequency": (lambda a: a, {"freq_axis": torch.zeros(32, dtype=torch.int32)}),
    "the gain": (lambda a: a, {"rope_gain": 1.0}),
    "the order": (lambda a: a, {"q_order": "later"}),
    "the list of a head": (
        lambda a: replaced(a, entry_indptr=a[4][[0, 2, 2, *range(3, len(a[4]))]]), {}),
    "the scales of keys": (lambda a: a, {"k_scale": "ones"}),
    "the scales of values": (lambda a: a, {"v_scale": "ones"}),
    "the slots of scales": (lambda a: a, {"k_scale": "first"}),
    "the reach": (lambda a: edited(a, REACH, lambda x: torch.full_like(x, UNLIMITED)), {}),
    "the count": (lambda a: edited(a, COUNT, lambda x: x - (x > 1).long()), {}),
}  # fmt: skip


@pytest.mark.parametrize("term", TERMS)
def test_sensitive_to_every_term(term):
    args, kwargs = form(
        9,
        streams=[StreamShape(150, 9, 40, 4), StreamShape(60, 2)],
        fmt=torch.int8,
        axes="sections",
        lists="shared",
        page_size=16,
        rope_gain=1.5,
        scale=0.4,
    )
    for name in ("k_scale", "v_scale"):
        kwargs[name] = kwargs[name].nan_to_num(0.01)
    want = compare.run(OP, args, kwargs)[0]
    compare.check(OP, args, kwargs)
    change, other = TERMS[term]
    other = dict(other)
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            continue
        if value == "ones":
            other[name] = torch.full_like(kwargs[name], float(kwargs[name].mean()))
        elif value == "first":
            other[name] = kwargs[name][..., :1].repeat(1, 1, 16)
        elif value == "later":
            other[name] = kwargs[name] + 1
    o = compare.reference(OP, change(args), {**kwargs, **other})[0]
    limit = compare.tolerances(OP, args, kwargs, (args[0],))[0]
    assert compare.distance(o, want).rms > 20 * limit


def test_numpy_takes_int8(isa):
    args, kwargs = form(10, streams=[StreamShape(67, 3)], fmt=torch.int8)
    want = both(args, **kwargs)
    named = {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in kwargs.items()}
    got = ops.paged_attention(*(x.numpy() for x in args), **named)
    assert all(np.array_equal(g, w.numpy()) for g, w in zip(got, want, strict=True))


def use(name, f):
    return lambda named: named.update({name: f(named[name])})


def put(name, where, value):
    def change(named):
        named[name] = named[name].clone()
        named[name][where] = value

    return change


def one_axis(named):
    named["q_pos"] = named["q_pos"][:, 0].contiguous()


ERRORS = [
    (use("k_scale", lambda x: None), ValueError,
     "paged_attention(k_scale): expected a scale, for pages of int8, got None"),
    (use("v_scale", lambda x: None), ValueError,
     "paged_attention(v_scale): expected a scale, for pages of int8, got None"),
    (lambda n: n.update({p: n[p].half() for p in ("k_pages", "v_pages")}), ValueError,
     "paged_attention(k_scale): expected None, for pages of float16, got a tensor"),
    (lambda n: n.update({s: n[s][..., :3].contiguous() for s in ("k_scale", "v_scale")}),
     ValueError,
     "paged_attention(k_scale): expected one scale for a page or 16, one for a slot,"
     " got shape (16, 2, 3)"),
    (use("v_scale", lambda x: x[..., :1]), ValueError,
     "paged_attention(v_scale): expected S = 16 in [N Hp S], got shape (16, 2, 1)"),
    (use("v_scale", torch.Tensor.half), TypeError,
     "paged_attention(v_scale): expected float32, got float16"),
    (one_axis, ValueError,
     "paged_attention(q_pos): expected [T, 3] with entries [E, 11], got shape (6,)"),
    (use("entries", lambda x: x[:, :7].contiguous()), ValueError,
     "paged_attention(q_pos): expected [T] with entries [E, 7], got shape (6, 3)"),
    (use("q_pos", lambda x: x[:, :2].contiguous()), ValueError,
     "paged_attention(q_pos): expected 3 in [T 3?], got shape (6, 2)"),
    (use("q_order", lambda x: None), ValueError,
     "paged_attention(q_order): expected the orders of the queries, with 3 axes, got None"),
    (use("freq_axis", lambda x: None), ValueError,
     "paged_attention(freq_axis): expected the axis of every frequency, with 3 axes, got None"),
    (use("inv_freq", lambda x: None), ValueError,
     "paged_attention(freq_axis): expected None, with no inv_freq, got a tensor"),
    (use("freq_axis", lambda x: x[1:]), ValueError,
     "paged_attention(freq_axis): expected R = 32 in [R], got shape (31,)"),
    (put("freq_axis", 5, 3), ValueError,
     "paged_attention(freq_axis): expected axes in [0, 3), got 3 for frequency 5"),
    (put("freq_axis", 0, -1), ValueError,
     "paged_attention(freq_axis): expected axes in [0, 3), got -1 for frequency 0"),
    (lambda n: n.update(rope_gain=float("inf")), ValueError,
     "paged_attention(rope_gain): expected a finite number, got inf"),
    (put("entries", (0, 10), -1), ValueError,
     f"paged_attention(entries): expected reach and cap of 0 or more, got reach {UNLIMITED} and"
     " cap -1 in entry 0"),
    (use("entry_indptr", lambda x: x[:-1]), ValueError,
     "paged_attention(entry_indptr): expected B+1 = 3 or B*Hkv+1 = 5 elements, got 4"),
    (put("entry_indptr", 2, 99), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 10, got others"),
    (lambda n: n.update({p: n[p][:, :1] for p in ("k_pages", "v_pages", "k_scale", "v_scale")},
                        q=n["q"][:, :3]), ValueError,
     "paged_attention(q): expected query heads that are a multiple of 2 kv heads, got 3"),
    (lambda n: n.update({p: n[p][:, :1] for p in ("k_pages", "v_pages", "k_scale", "v_scale")},
                        entry_indptr=n["entry_indptr"][:-1]), ValueError,
     "paged_attention(entry_indptr): expected B+1 = 3 elements, got 4"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=[e[2][16:80] for e in ERRORS])
def test_errors(change, kind, text):
    streams = [StreamShape(67, 5, 20, 4), StreamShape(30, 1)]
    args, kwargs = form(
        12, streams=streams, fmt=torch.int8, axes="turns", lists="shared", page_size=16
    )
    named = dict(zip(NAMES, args, strict=True)) | kwargs
    ops.paged_attention(**named)
    change(named)
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.paged_attention(**named)
