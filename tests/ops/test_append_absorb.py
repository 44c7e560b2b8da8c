# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, evictions, samples, views

pytestmark = pytest.mark.usefixtures("two_threads")
NAME = "append_absorb"
FORMATS = (*samples.DTYPES, *views.FORMATS)
STATE, NORM = 6, 7  # of the arguments


def copied(call):
    """The call on memory of its own; what it writes keeps its values."""
    args, kwargs = call
    fresh = lambda x: x.clone() if isinstance(x, torch.Tensor) else x  # noqa: E731
    return tuple(map(fresh, args)), {n: fresh(x) for n, x in kwargs.items()}


def appended(call):
    """What append alone makes of pages and scales."""
    args, kwargs = copied(call)
    names = ("inv_freq", "freq_axis", "k_scale", "v_scale")
    kept = {n: kwargs[n] for n in names if kwargs.get(n) is not None}
    ops.append(*args[:5], **kept)
    return (*args[2:4], *(kept[n] for n in names[2:] if n in kept))


def check(call, label=""):
    """Pages and scales to the bit as append makes them; sums within tolerance of the reference.

    Rows of the state that no stream has keep their bits.
    """
    args, kwargs = call
    bound, axes = compare.bind(NAME, args, kwargs)
    limit = ops.specs()[NAME].tolerance(torch.float32, axes, bound)
    spec, pages = ops.specs()[NAME], appended(call)
    changed = [n for n in spec.mutates if bound[n] is not None]
    want = dict(zip(changed, compare.reference(NAME, args, kwargs), strict=True))
    before = args[STATE].clone()
    assert compare.run(NAME, args, kwargs) == (None,)
    got = [*args[2:4], *(kwargs[n] for n in ("k_scale", "v_scale") if kwargs.get(n) is not None)]
    for x, y in zip(got, pages, strict=True):
        assert compare.same_bits(x, y), label
    rows = args[9].long()
    for name, x in (("state", args[STATE]), ("norm", args[NORM])):
        if x is None:
            continue
        far = compare.distance(x[rows], want[name][rows], floor=1.0)
        print(f"{NAME} {name} {label}: rms {far.rms:.2e} of {limit:.2e}")
        assert max(far.rms, far.peak / 8) <= limit, (name, label)
    absent = [i for i in range(before.shape[0]) if i not in rows.tolist()]
    assert compare.same_bits(args[STATE][absent], before[absent]), label
    if kwargs.get("count") is not None:
        assert torch.equal(kwargs["count"], want["count"]), label


def test_grid(isa):
    grid = samples.cover(
        3,
        40,
        lengths=((0,), (1,), (2, 0, 1), (31, 33), (65,), (5, 67, 1)),
        page_dtype=FORMATS,
        dtype=samples.DTYPES,
        each=(True, False),
        kv_heads=(1, 2, 5),
        dim=(16, 48, 80, 128),
        page_size=(16, 48, 64),
        layout=samples.LAYOUTS,
        page_layout=("plain", "sliced"),
        rotary=(-1, None, 16, 6),
        axes=(None, None, "sections", "turns"),
        scattered=(False, False, True),
        held=("some", "some", "all", "none"),
        normed=(True, False),
        decay=(False, True),
        counted=(False, True),
        feature=(0, 1, 2),
        raw=(False, True),
        offset=(0, 4_000_000),
    )
    for i, case in enumerate(grid):
        if case["page_dtype"] in views.FORMATS:
            case["page_layout"] = "plain"
        check(evictions.append_absorb(i, **case), case)


def test_widest_head(isa):
    check(evictions.append_absorb(1, (3, 20), dim=256, page_dtype=torch.bfloat16, raw=True))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 33])
def test_bits_do_not_depend_on_the_chunks(isa, chunk, raw):
    call = evictions.append_absorb(4, (67,), 1, page_dtype=torch.bfloat16, decay=True, raw=raw)
    whole, parts = copied(call), copied(call)
    compare.run(NAME, *whole)
    args, kwargs = parts
    for t in range(0, 67, chunk):
        rows = [x[t : t + chunk] for x in (args[0], args[1], args[4], args[5])]
        ends = torch.tensor([0, len(rows[0])]).int()
        mine = (*rows[:2], *args[2:4], *rows[2:], *args[6:8], ends, args[9])
        compare.run(NAME, mine, kwargs)
    for x, y in zip(whole[0], args, strict=True):
        assert compare.same_bits(x, y)


def test_threads_and_neighbours_leave_no_trace(isa):
    call = evictions.append_absorb(5, (30, 41), 4, dim=64)
    one, two, alone = copied(call), copied(call), copied(call)
    torch.set_num_threads(1)
    compare.run(NAME, *one)
    torch.set_num_threads(2)
    compare.run(NAME, *two)
    for x, y in zip(one[0], two[0], strict=True):
        assert compare.same_bits(x, y)
    args, kwargs = alone
    ends = torch.tensor([0, 41]).int()
    rows = [x[30:] for x in (args[0], args[1], args[4], args[5])]
    mine = (*rows[:2], *args[2:4], *rows[2:], *args[6:8], ends, args[9][1:])
    compare.run(NAME, mine, kwargs)
    row = int(args[9][1])
    assert compare.same_bits(args[STATE][row], one[0][STATE][row])
    assert compare.same_bits(args[NORM][row], one[0][NORM][row])


@pytest.mark.parametrize("feature", ["none", "relu", "elu1"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_ring_folds_what_linear_attention_would_be_given(isa, feature, raw):
    """A ring of two pages over 100 tokens: the sums of the first 68, the window of the last 32.

    Origins are those of the ring's turn, the state's offset is the token's position.
    """
    gen, size, ring = samples.rng(6), 16, 32
    k, v = (samples.normal(gen, 100, 2, 32) for _ in "kv")
    pages = samples.page_pool(gen, 2, 2, 32, size, torch.float32)
    state, norm, rows = torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32), torch.zeros(1).int()
    count, inv_freq = torch.zeros(1).long(), samples.frequencies(32)
    for begin in range(0, 100, 20):
        t = torch.arange(begin, begin + 20)
        origin = t // size * size  # a page begins where its first token is
        where = torch.stack([t // size % 2, t % size, t - origin], 1)
        old = t - ring
        evicted = torch.stack([(old >= 0).long(), old - old // size * size, old], 1)
        ends = torch.tensor([0, 20]).int()
        ops.append_absorb(
            k[t], v[t], *pages, where, evicted, state, norm, ends, rows,
            inv_freq=inv_freq, count=count, feature=feature, raw=raw,
        )  # fmt: skip
    want_s, want_z, first = torch.zeros_like(state), torch.zeros_like(norm), slice(0, 68)
    ops.linear_attention(
        k[first], k[first], v[first], want_s, want_z, torch.tensor([0, 68]).int(), rows,
        inv_freq=inv_freq, offset=torch.arange(68), feature=feature, raw=raw,
    )  # fmt: skip
    torch.testing.assert_close(state, want_s, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm, want_z, rtol=1e-4, atol=1e-4)
    assert count.tolist() == [68]
    slots = torch.arange(68, 100)
    torch.testing.assert_close(pages[1][slots // size % 2, :, slots % size], v[68:])


@pytest.mark.parametrize(
    "part", ["held", "from", "to", "decay", "raw", "feature", "old values", "old keys", "state"]
)
def test_every_term_counts(part):
    call = evictions.append_absorb(7, (9,), decay=True)
    args, kwargs = copied(call)
    want = compare.reference(NAME, *call)[2]
    evicted = args[5].clone()
    if part == "held":
        evicted[int(evicted[:, 0].nonzero()[0]), 0] = 0
    elif part in ("from", "to"):
        evicted[:, 1 if part == "from" else 2] += 1
    elif part == "decay":
        del kwargs["log_decay"]
    elif part == "old values":
        args[3].neg_()
    elif part == "old keys":
        args[2].neg_()
    elif part == "state":
        args[STATE].zero_()
    else:
        kwargs[part] = {"raw": True, "feature": 2}[part]
    changed = (*args[:5], evicted, *args[6:])
    row = int(args[9][0])
    compare.run(NAME, changed, kwargs)
    assert compare.distance(args[STATE][row], want[row]).rms > 1e-3


def test_poison_of_one_token_stays_with_its_stream_and_head(isa):
    args, kwargs = copied(evictions.append_absorb(8, (9, 9), held="all"))
    page, slot, _ = args[4][3].tolist()
    args[2][page, 1, :, slot] = torch.nan
    compare.run(NAME, args, kwargs)
    mine, other = args[9].tolist()
    assert args[STATE][mine, 1].isnan().all()
    assert args[STATE][mine, 0].isfinite().all()
    assert args[STATE][other].isfinite().all()
    assert args[2][page, 1, :, slot].isfinite().all()


@given(
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from(FORMATS),
    st.sampled_from(_C.available_isas()),
    st.sampled_from(["all", "some", "none"]),
    st.booleans(),
    st.integers(0, 2),
)
def test_random_streams(lengths, kind, isa, held, raw, feature):
    with headrace.use_isa(isa):
        check(
            evictions.append_absorb(
                len(lengths), tuple(lengths), page_dtype=kind, held=held, raw=raw,
                feature=feature, scattered=len(lengths) % 2 == 1,
            )
        )  # fmt: skip


def test_numpy():
    call = evictions.append_absorb(10, (9, 4), counted=True, decay=True)
    (want, more), (args, kwargs) = copied(call), call
    compare.run(NAME, want, more)
    arrays = [x.numpy() for x in args]
    named = {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in kwargs.items()}
    assert ops.append_absorb(*arrays, **named) is None
    assert isinstance(arrays[STATE], np.ndarray)
    for x, y in zip((*arrays, named["count"]), (*want, more["count"]), strict=True):
        assert compare.same_bits(torch.from_numpy(x), y)


def of_size(dim, page_size):
    """Arguments with these sizes in place of those of the sample."""
    rows, pages = torch.zeros(21, 2, dim), torch.zeros(4, 2, dim, page_size)
    made = dict(k=rows, v=rows, k_pages=pages, v_pages=pages.mT.contiguous(), inv_freq=None)
    return made | dict(state=torch.zeros(5, 2, dim, dim), norm=torch.zeros(5, 2, dim))


HEADS = "the head dimensions multiples of 16 from 16 to 256"
SLOTS = "one of page sizes that 16 divides"


def test_drift_of_ten_thousand_evictions():
    gen = samples.rng(9)
    state, exact = torch.zeros(1, 1, 16, 16), torch.zeros(16, 16, dtype=torch.float64)
    pages = [torch.zeros(1, 1, 16, 16) for _ in "kv"]
    where, ends = torch.zeros(1, 3).long(), torch.tensor([0, 1]).int()
    evicted = torch.tensor([[1, 0, 0]])
    for _ in range(10_000):
        k, v = (torch.randn(1, 1, 16, generator=gen) + 0.3 for _ in range(2))
        exact += pages[0][0, 0, :, 0, None].double().relu() * pages[1][0, 0, 0].double()
        ops.append_absorb(k, v, *pages, where, evicted, state, None, ends, torch.zeros(1).int())
    assert compare.distance(state[0, 0], exact).rms < 1e-4


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"evicted": torch.zeros(21, 7).long()}, ValueError, r"\(evicted\): expected \[T, 3\] wit"),
        ({"evicted": torch.zeros(20, 3).long()}, ValueError, r"\(evicted\)"),
        ({"evicted": torch.zeros(21, 3)}, TypeError, r"\(evicted\)"),
        ({"state": torch.zeros(5, 2, 32, 48)}, ValueError, r"\(state\)"),
        ({"state": torch.zeros(5, 2, 32, 32).half()}, TypeError, r"\(state\)"),
        ({"norm": torch.zeros(5, 2, 16)}, ValueError, r"\(norm\)"),
        ({"indptr": torch.tensor([0, 3, 2, 21]).int()}, ValueError, "rise from 0 to 21"),
        ({"rows": torch.tensor([0, 1, 1]).int()}, ValueError, "distinct rows"),
        ({"where": torch.zeros(21, 3).long()}, ValueError, "every slot once, got slot 0 of page 0"),
        ({"where": torch.full((21, 3), 99)}, ValueError, r"\(where\): expected pages in"),
        ({"feature": "gelu"}, ValueError, r"\(feature\): expected none, relu or elu1, got gelu"),
        ({"count": torch.zeros(4).long()}, ValueError, r"\(count\)"),
        (of_size(24, 16), NotImplementedError, rf"\(k\): expected one of {HEADS}, got 24$"),
        (of_size(272, 16), NotImplementedError, rf"\(k\): expected one of {HEADS}, got 272$"),
        (of_size(0, 16), NotImplementedError, rf"\(k\): expected one of {HEADS}, got 0$"),
        (of_size(32, 24), NotImplementedError, rf"\(k_pages\): expected {SLOTS}, got 24$"),
        (of_size(32, 8), NotImplementedError, rf"\(k_pages\): expected {SLOTS}, got 8$"),
        (of_size(32, 0), NotImplementedError, rf"\(k_pages\): expected {SLOTS}, got 0$"),
        ({"k_pages": torch.zeros(5, 2, 32, 16).to(torch.int8),
          "v_pages": torch.zeros(5, 2, 16, 32).to(torch.int8)}, ValueError, r"\(k_scale\)"),
    ],
)  # fmt: skip
def test_mistakes(change, kind, told):
    names = (
        "k", "v", "k_pages", "v_pages", "where", "evicted", "state", "norm", "indptr", "rows",
    )  # fmt: skip
    args, kwargs = evictions.append_absorb(1)
    given = dict(zip(names, args, strict=True)) | kwargs | change
    kept = [(given[n], given[n].clone()) for n in ("k_pages", "v_pages", "state", "norm")]
    with pytest.raises(kind, match=told):
        ops.append_absorb(**given)
    for x, before in kept:
        assert compare.same_bits(x, before)
