# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from headrace.kernels.attention.reference import CAP, COUNT, FIRST, ORDER, ORIGIN, PAGE, REACH
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples
from tests.ops.samples import UNLIMITED, StreamShape

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "paged_attention"
NAMES = ("q", "k_pages", "v_pages", "entries", "entry_indptr", "q_indptr", "q_pos")
BATCHES = (
    [StreamShape(1, 1)],
    [StreamShape(257, 1, 64, 4)],
    [StreamShape(67, 67)],
    [StreamShape(64, 2), StreamShape(0, 0), StreamShape(63, 63, 17, 3), StreamShape(2, 1, 1)],
    [
        StreamShape(257, 65, 100, 70),
        StreamShape(1, 1),
        StreamShape(65, 0),
        StreamShape(67, 3, 2, 1),
    ],
    [StreamShape(130, 64, None, 20, base=4_000_000, shift=3), StreamShape(64, 64, 16, base=-500)],
)


def both(args, **kwargs):
    return ops.paged_attention(*args, **kwargs)


def replaced(args, **changes):
    """The arguments with some of them, by name, changed."""
    return tuple(changes.get(n, a) for n, a in zip(NAMES, args, strict=True))


def edited(args, column, f):
    """The arguments with one column of the table mapped."""
    entries = args[3].clone()
    entries[:, column] = f(entries[:, column])
    return replaced(args, entries=entries)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(dtype):
    grid = samples.cover(
        1,
        36,
        streams=BATCHES,
        kv_heads=(1, 2, 3),
        group=(1, 2, 3, 4, 5, 6, 7, 8, 16),
        dim=(16, *samples.HEAD_DIMS),
        page_size=samples.PAGE_SIZES,
        page_dtype=(None, *samples.DTYPES),
        q_layout=samples.LAYOUTS,
        page_layout=("plain", "sliced"),
        rotary=(-1, -1, None, 16, 6),
        learned=(False, True),
        softcap=(0.0, 0.0, 5.0, 50.0),
        scale=(None, None, 0.02, 1.0),
        split=(1, 17, 4096),
    )
    for i, case in enumerate(grid):
        args, kwargs = samples.paged(i, dtype=dtype, **case)
        compare.check_levels(OP, args, kwargs, case)


def test_lengths():
    for length in samples.LENGTHS:
        for page_size in samples.PAGE_SIZES:
            streams = [
                StreamShape(length, min(length, 5)),
                StreamShape(length, min(length, 1), 16, 4),
            ]
            args, kwargs = samples.paged(length, streams, page_size=page_size, dim=32)
            compare.check_levels(OP, args, kwargs, (length, page_size))


def test_128_query_heads_on_one(isa):
    streams = [StreamShape(70, 3, 40, 4), StreamShape(20, 1)]
    args, kwargs = samples.paged(2, streams, kv_heads=1, group=128)
    compare.check(OP, args, kwargs)


def random_table(seed, rows, entries, page_size, streams=1, sign=1, far=300):
    """A table that no memory would write: any order, origin, cap and reach, overlapping pages."""
    pick, gen = random.Random(seed), samples.rng(seed)
    table = []
    for _ in range(entries * streams):
        first = pick.randrange(page_size)
        table.append(
            [
                pick.randrange(5),
                first,
                pick.randint(0, page_size - first),
                pick.randint(-far, far),
                pick.choice([0, 1, pick.randint(0, far), UNLIMITED]),
                pick.randint(-far, far),
                pick.choice([0, 1, pick.randint(0, far), UNLIMITED, 2**63 - 1]),
            ]
        )
    k_pages, v_pages = samples.page_pool(gen, 5, 2, 32, page_size, torch.float32)
    samples.fill(gen, k_pages, v_pages, table)
    cuts = sorted(pick.randint(0, rows) for _ in range(streams - 1))
    args = (
        samples.normal(gen, rows, 4, 32),
        k_pages,
        v_pages,
        torch.tensor(table, dtype=torch.int64).reshape(-1, 7),
        samples.indptr([entries] * streams),
        torch.tensor([0, *cuts, rows], dtype=torch.int32),
        torch.tensor([pick.randint(-far, far) for _ in range(rows)], dtype=torch.int64),
    )
    order = torch.tensor([pick.randint(-far, far) for _ in range(rows)], dtype=torch.int64)
    return args, {"inv_freq": samples.frequencies(32), "q_order": order}


@given(
    st.integers(0, 2**20),
    st.integers(0, 40),
    st.integers(0, 7),
    st.sampled_from([16, 48, 64]),
    st.integers(1, 4),
    st.integers(1, 300),
    st.booleans(),
    st.sampled_from([20, 300, 2**32]),
)
def test_random_tables(seed, rows, entries, page_size, streams, split, own_order, far):
    args, kwargs = random_table(seed, rows, entries, page_size, streams, far=far)
    if not own_order:
        kwargs["q_order"] = None
    compare.check_levels(OP, args, {**kwargs, "split": split}, (rows, entries, page_size, streams))


def test_far_orders_and_reaches(isa):
    """Nothing overflows at the ends of what a table may hold."""
    args, kwargs = samples.paged(3, [StreamShape(40, 5)], page_size=16)
    want = both(args, **kwargs)
    for reach in (UNLIMITED, 2**63 - 1):
        for shift in (0, 2**61, -(2**61)):
            moved = edited(
                edited(args, REACH, lambda x, r=reach: x * 0 + r), ORDER, lambda x, s=shift: x + s
            )
            got = both(moved, **kwargs, q_order=args[6] + shift)
            assert compare.same_bits(got[0], want[0]), (reach, shift)
            assert compare.same_bits(got[1], want[1]), (reach, shift)


def test_origins_ahead_of_and_behind_the_query(isa):
    args, kwargs = samples.paged(4, [StreamShape(40, 5)], page_size=16)
    for shift in (-1000, -1, 1, 1000):
        moved = edited(args, ORIGIN, lambda x, s=shift: x + s)
        compare.check(OP, moved, kwargs, shift)


def test_caps(isa):
    args, kwargs = samples.paged(5, [StreamShape(100, 20)], page_size=16)
    seen = []
    for cap in (0, 1, 30, 200, UNLIMITED):
        capped = edited(args, CAP, lambda x, c=cap: x * 0 + c)
        compare.check(OP, capped, kwargs, cap)
        seen.append(both(capped, **kwargs)[0])
    assert compare.same_bits(seen[3], seen[4])
    assert all(not torch.equal(a, b) for a, b in pairwise(seen[:4]))


def test_order_apart_from_position(isa):
    """Causality and reach go by order alone, rotation by position alone."""
    args, kwargs = samples.paged(6, [StreamShape(67, 9, 20, 3)], page_size=16)
    for shift in (-500, 500):
        ordered = edited(args, ORDER, lambda x, s=shift: x + s)
        got = both(ordered, **kwargs, q_order=args[6] + shift)
        for a, b in zip(got, both(args, **kwargs), strict=True):
            assert compare.same_bits(a, b)
        compare.check(OP, ordered, {**kwargs, "q_order": args[6] + shift - 3}, shift)
    mixed = args[6].flip(0).clone()
    mixed[::2] += 7
    compare.check(OP, args, {**kwargs, "q_order": mixed}, "orders that rise and fall")


def test_rows_that_see_nothing(isa):
    args, kwargs = samples.paged(
        7, [StreamShape(40, 5), StreamShape(20, 3)], page_size=16, learned=True
    )
    order = args[6].clone()
    order[1], order[5:] = -1, -1
    o, lse = both(args, **kwargs, q_order=order)
    for row in (1, 5, 6, 7):
        assert not o[row].any()
        assert (lse[row] == -torch.inf).all()
    assert o[0].any()
    compare.check(OP, args, {**kwargs, "q_order": order})
    for none in (edited(args, REACH, torch.zeros_like), edited(args, COUNT, torch.zeros_like)):
        o, lse = both(none, **kwargs)
        assert not o.any()
        assert (lse == -torch.inf).all()


# Properties.


def test_a_permutation_of_the_pages_keeps_the_bits(isa):
    streams = [StreamShape(257, 9, 100, 4), StreamShape(67, 1)]
    args, kwargs = samples.paged(8, streams, page_size=32, dtype=torch.bfloat16)
    o, lse = both(args, **kwargs)
    turn = torch.randperm(args[1].shape[0], generator=samples.rng(8))
    back = turn.argsort()
    moved = edited(args, PAGE, lambda p: back[p])
    moved = replaced(moved, k_pages=args[1][turn], v_pages=args[2][turn])
    for a, b in zip(both(moved, **kwargs), (o, lse), strict=True):
        assert compare.same_bits(a, b)


def alone(args, kwargs, b):
    """The arguments of stream b alone."""
    entries = slice(*args[4][b : b + 2].tolist())
    rows = slice(*args[5][b : b + 2].tolist())
    one = replaced(
        args,
        q=args[0][rows],
        entries=args[3][entries],
        entry_indptr=samples.indptr([entries.stop - entries.start]),
        q_indptr=samples.indptr([rows.stop - rows.start]),
        q_pos=args[6][rows],
    )
    return one, rows


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_a_stream_alone_and_in_a_batch_of_16_has_the_same_bits(isa, dtype):
    pick = random.Random(9)
    for split in (17, 4096):
        streams = []
        for _ in range(16):
            length = pick.choice(samples.LENGTHS[1:])
            rows = pick.choice([1, 1, min(length, 7), length])
            streams.append(
                StreamShape(length, rows, pick.choice([None, 16, 100]), pick.choice([0, 4]))
            )
        args, kwargs = samples.paged(9, streams, dim=32, group=3, dtype=dtype, split=split)
        o, lse = both(args, **kwargs)
        for b in range(16):
            one, rows = alone(args, kwargs, b)
            got = both(one, **kwargs)
            assert compare.same_bits(got[0], o[rows]), (b, split)
            assert compare.same_bits(got[1], lse[rows]), (b, split)


def test_threads_leave_no_trace(isa):
    streams = [StreamShape(257, 65, 100, 4), StreamShape(257, 1), StreamShape(67, 67)]
    args, kwargs = samples.paged(10, streams, kv_heads=4, group=4, split=64)
    torch.set_num_threads(1)
    one = both(args, **kwargs)
    torch.set_num_threads(2)
    for a, b in zip(one, both(args, **kwargs), strict=True):
        assert compare.same_bits(a, b)


def test_views_have_the_bits_of_copies(isa):
    for q_layout in samples.LAYOUTS:
        args, kwargs = samples.paged(
            11, [StreamShape(67, 9)], q_layout=q_layout, page_layout="sliced", page_size=16
        )
        copy = replaced(args, q=args[0].clone(), k_pages=args[1].clone(), v_pages=args[2].clone())
        for a, b in zip(both(args, **kwargs), both(copy, **kwargs), strict=True):
            assert compare.same_bits(a, b), q_layout


def test_split_changes_only_rounding(isa):
    """And counts the learned sink, and the position sinks, once."""
    streams = [StreamShape(257, 3, 200, 4), StreamShape(257, 65)]
    args, kwargs = samples.paged(12, streams, page_size=32, learned=True)
    want = compare.reference(OP, args, kwargs)
    for split in (1, 2, 3, 16, 17, 63, 64, 65, 256, 257, 4096, 2**40):
        compare.check(OP, args, {**kwargs, "split": split}, split, want=want)


def test_entries_of_one_page_cut_up(isa):
    """One entry of n slots and n entries of one slot mean the same."""
    args, kwargs = samples.paged(13, [StreamShape(60, 7, 30, 2)], page_size=64)
    pieces = [
        [e[PAGE], e[FIRST] + i, 1, e[ORIGIN], e[CAP], e[ORDER] + i, e[REACH]]
        for e in args[3].tolist()
        for i in range(e[COUNT])
    ]
    cut = replaced(args, entries=torch.tensor(pieces), entry_indptr=samples.indptr([len(pieces)]))
    for a, b in zip(both(cut, **kwargs), both(args, **kwargs), strict=True):
        assert compare.distance(a, b).rms < 1e-6


def test_the_order_of_entries_changes_only_rounding(isa):
    args, kwargs = samples.paged(14, [StreamShape(257, 7, 100, 4)], page_size=16)
    turned = replaced(args, entries=args[3].flip(0).contiguous())
    for a, b in zip(both(turned, **kwargs), both(args, **kwargs), strict=True):
        assert compare.distance(a, b).rms < 1e-6


def test_two_halves_merge_to_the_whole(isa):
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 6e-3)):
        args, kwargs = samples.paged(15, [StreamShape(257, 40, 200, 4)], page_size=16, dtype=dtype)
        n = len(args[3])
        halves = [
            both(
                replaced(args, entries=part.contiguous(), entry_indptr=samples.indptr([len(part)])),
                **kwargs,
            )
            for part in args[3].split([n // 3, n - n // 3])
        ]
        got = ops.merge_states(*halves[0], *halves[1])
        for a, b in zip(got, both(args, **kwargs), strict=True):
            assert compare.distance(a, b).rms < limit


def test_shifting_position_and_origin_together_keeps_the_bits(isa):
    args, kwargs = samples.paged(16, [StreamShape(130, 9, 60, 4)], page_size=16)
    o, lse = both(args, **kwargs, q_order=args[6])
    for shift in (1, -77, 4_000_000, 2**40, -(2**40)):
        moved = edited(args, ORIGIN, lambda x, s=shift: x + s)
        got = both(replaced(moved, q_pos=args[6] + shift), **kwargs, q_order=args[6])
        assert compare.same_bits(got[0], o), shift
        assert compare.same_bits(got[1], lse), shift


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_error_at_position_4_million(isa, base):
    """Absolute positions from 4 thousand to beyond 2^31: the error against fp64 does not grow."""
    errors = {}
    for far in (4_000, 4_000_000, 2**31 + 5):
        args, kwargs = samples.paged(
            17, [StreamShape(200, 16)], dim=128, page_size=64, kv_heads=2, group=4
        )
        moved = edited(args, ORIGIN, lambda x, f=far: x - f)  # keys written at the start of all
        kwargs["inv_freq"] = samples.frequencies(128, base=base)
        got, want = both(moved, **kwargs), compare.reference(OP, moved, kwargs)
        errors[far] = compare.distance(got[0], want[0]).rms
    print({k: f"{v:.2e}" for k, v in errors.items()})
    assert errors[4_000_000] <= 1.5 * errors[4_000]
    assert errors[2**31 + 5] <= 3 * errors[4_000]


def test_a_stream_written_by_append_equals_dense_attention(isa):
    """Keys turned about the origins of their pages, queries by distance: as if both absolute."""
    gen, length, dim, size = samples.rng(18), 150, 64, 32
    q, k, v = (samples.normal(gen, length, h, dim) for h in (4, 2, 2))
    inv_freq = samples.frequencies(dim)
    k_pages, v_pages = samples.page_pool(gen, 5, 2, dim, size, torch.float32)
    t = torch.arange(length)
    where = torch.stack([4 - t // size, t % size, t % size], 1)
    ops.append(k, v, k_pages, v_pages, where, inv_freq=inv_freq)
    entries = [
        [4 - i, 0, min(size, length - i * size), i * size, UNLIMITED, i * size, 40]
        for i in range(5)
    ]
    args = (
        q,
        k_pages,
        v_pages,
        torch.tensor(entries),
        samples.indptr([5]),
        samples.indptr([length]),
        t,
    )
    o, lse = both(args, inv_freq=inv_freq)

    def turned(x):  # [T, H, D] -> [1, H, T, D] at absolute positions, fp64
        angle = t[:, None, None] * inv_freq
        a, b = x.double().chunk(2, -1)
        out = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        return out.transpose(0, 1)[None]

    args = (turned(q), turned(k), v.double().transpose(0, 1)[None])
    spec = ops.specs()["attention"]
    want = spec.reference(*args, 40, 0, None, True, dim**-0.5, 0.0)
    assert compare.distance(o, want[0][0].transpose(0, 1)).rms < 2e-6
    assert compare.distance(lse, want[1][0].T).rms < 2e-6


# Poison. The pages of every sample are NaN outside the named slots, so all tests above hold it off.


def test_poison_of_another_stream_stays_there(isa):
    streams = [StreamShape(67, 9), StreamShape(67, 9), StreamShape(40, 1)]
    args, kwargs = samples.paged(19, streams, page_size=16)
    clean = both(args, **kwargs)
    for page in args[3][slice(*args[4][1:3].tolist()), PAGE].unique().tolist():
        args[1][page], args[2][page] = torch.nan, torch.inf
    o, lse = both(args, **kwargs)
    assert o[9:18].isnan().all()
    rest = [*range(9), 18]
    assert compare.same_bits(o[rest], clean[0][rest])
    assert compare.same_bits(lse[rest], clean[1][rest])


def test_poison_before_first_and_behind_count(isa):
    """Evicted within a page, or not written yet, whatever the alignment of the first slot."""
    args, kwargs = samples.paged(20, [StreamShape(1, 1)], page_size=64, dim=32)
    for first in (0, 1, 3, 4, 7, 8, 15, 17, 31):
        for count in (1, 2, 15, 16, 17, 33):
            entries = torch.tensor([[1, first, count, 0, UNLIMITED, 0, UNLIMITED]])
            k, v = (torch.full_like(x, torch.nan) for x in args[1:3])
            samples.fill(samples.rng(20), k, v, entries.tolist())
            named = replaced(
                args, k_pages=k, v_pages=v, entries=entries, q_pos=torch.tensor([count - 1])
            )
            compare.check(OP, named, kwargs, (first, count))


@pytest.mark.parametrize("what", ["q", "k", "v"])
def test_a_row_that_sees_a_nan_gives_nan(isa, what):
    args, kwargs = samples.paged(21, [StreamShape(150, 5)], page_size=32)
    for entry in (0, 2, 4):
        for split in (17, 4096):
            q, k, v = (x.clone() for x in args[:3])
            page, first = args[3][entry, :2].tolist()
            if what == "q":
                q[entry, 1, 3] = torch.nan
            elif what == "k":
                k[page, 1, 3, first] = torch.nan
            else:
                v[page, 1, first, 3] = torch.nan
            got = both(replaced(args, q=q, k_pages=k, v_pages=v), **kwargs, split=split)
            if what == "q":
                assert got[0][entry, 1].isnan().all()
                assert int(got[1].isnan().sum()) == 1
            elif what == "k":
                assert got[0][:, 2:].isnan().all()
                assert got[1][:, 2:].isnan().all()
            else:
                assert got[0][:, 2:, 3].isnan().all()
            assert got[0][:, :2].isnan().sum() == (64 if what == "q" else 0)


@pytest.mark.parametrize("what", ["k", "v"])
@pytest.mark.parametrize("split", [17, 4096])
def test_the_future_of_a_chunk_does_not_reach_its_past(isa, what, split):
    """NaN in the last token of a chunk: the rows of the tokens before keep their bits."""
    args, kwargs = samples.paged(22, [StreamShape(40, 20)], page_size=64, split=split)
    clean = both(args, **kwargs)
    e = args[3][-1].tolist()
    args[1 if what == "k" else 2][e[PAGE]].select(
        -1 if what == "k" else -2, e[FIRST] + e[COUNT] - 1
    )[:] = torch.nan
    o, lse = both(args, **kwargs)
    assert o[-1].isnan().all()
    assert compare.same_bits(o[:-1], clean[0][:-1])
    assert compare.same_bits(lse[:-1], clean[1][:-1])


@pytest.mark.parametrize("what", ["k", "v"])
def test_what_left_the_reach_of_a_row_does_not_reach_it(isa, what):
    """NaN in a key that only the first row of a chunk still sees."""
    args, kwargs = samples.paged(23, [StreamShape(40, 20, 12)], page_size=64)
    clean = both(args, **kwargs)
    page, first = args[3][0, :2].tolist()
    args[1 if what == "k" else 2][page].select(-1 if what == "k" else -2, first)[:] = torch.nan
    o, lse = both(args, **kwargs)
    assert o[0].isnan().all()
    assert compare.same_bits(o[1:], clean[0][1:])
    assert compare.same_bits(lse[1:], clean[1][1:])


# Sensitivity: the samples can tell when a term is left out.


def plus(column, by):
    return lambda args: edited(args, column, lambda x: x + by)


def column(which, value):
    return lambda args: edited(args, which, lambda x: torch.full_like(x, value))


def without(entry):
    def change(args):
        rest = args[3][[i for i in range(len(args[3])) if i != entry % len(args[3])]]
        return replaced(args, entries=rest, entry_indptr=samples.indptr([len(rest)]))

    return change


def every_entry_as(which):
    return lambda args: edited(args, which, lambda x: x[:1].expand_as(x))


def shorter(args):
    return edited(args, COUNT, lambda x: (x - 1).clamp(min=0))


TERMS = {
    "the sink entry": (without(0), {}),
    "the last entry": (without(-1), {}),
    "the first slot of a page": (plus(FIRST, -1), {}),
    "the last slot of every entry": (shorter, {}),
    "the cap": (column(CAP, UNLIMITED), {}),
    "the cap by one": (
        lambda a: edited(a, CAP, lambda x: torch.where(x < UNLIMITED, x + 1, x)), {}),
    "the reach": (column(REACH, UNLIMITED), {}),
    "the reach by one": (
        lambda a: edited(a, REACH, lambda x: torch.where(x < UNLIMITED, x + 1, x)), {}),
    "the order": (plus(ORDER, 1), {}),
    "causality": (plus(ORDER, -1), {}),
    "the origin": (plus(ORIGIN, 1), {}),
    "a new rotation for every origin": (every_entry_as(ORIGIN), {}),
    "the position": (lambda a: a, {"q_pos": True}),
    "the rotation": (lambda a: a, {"inv_freq": None}),
    "softcap": (lambda a: a, {"softcap": 0.0}),
    "scale": (lambda a: a, {"scale": None}),
    "the learned sink": (lambda a: a, {"sink_logits": None}),
    "the right kv head": (lambda a: replaced(a, k_pages=a[1].flip(1)), {}),
    "the right page": (lambda a: edited(a, PAGE, lambda x: x.roll(1)), {}),
}  # fmt: skip


def sensitive_sample():
    """One stream, sinks capped below the distance, several pages, every switch on, no NaN."""
    args, kwargs = samples.paged(
        24,
        [StreamShape(150, 9, 40, 4)],
        page_size=16,
        learned=True,
        softcap=3.0,
        scale=0.4,
        split=17,
    )
    gen = samples.rng(24)
    for pages in args[1:3]:
        pages.copy_(torch.where(pages.isnan(), samples.normal(gen, *pages.shape), pages))
    entries = args[3].clone()
    entries[0, FIRST] = 2  # so that every entry may start one slot earlier
    kwargs["sink_logits"] = torch.tensor([0.5, 2.0, 1.0, -0.5])
    return replaced(args, entries=entries), kwargs


@pytest.mark.parametrize("term", TERMS)
def test_sensitive_to_every_term(term):
    args, kwargs = sensitive_sample()
    compare.check(OP, args, kwargs)
    change, other = TERMS[term]
    if term == "the first slot of a page":
        args = edited(args, FIRST, lambda x: x.clamp(min=1, max=8))
        args = edited(args, COUNT, lambda x: x.clamp(max=8))
    changed = change(args)
    if other.pop("q_pos", None):
        changed, other = replaced(args, q_pos=args[6] - 1), {"q_order": args[6]}
    o = compare.reference(OP, changed, {**kwargs, **other})[0]
    limit = compare.tolerances(OP, args, kwargs, (args[0],))[0]
    assert compare.distance(o, compare.run(OP, args, kwargs)[0]).rms > 20 * limit


def test_sensitive_to_a_lost_split_and_a_lost_rescale():
    """What a kernel gives that drops a split, or adds up tiles of different maxima."""
    args, kwargs = sensitive_sample()
    kwargs["sink_logits"] = None
    want = both(args, **kwargs)[0]
    limit = compare.tolerances(OP, args, kwargs, (want,))[0]
    parts = []
    for i in range(len(args[3])):
        lost = compare.reference(OP, without(i)(args), kwargs)[0]
        assert compare.distance(lost, want).rms > 20 * limit, i
        one = replaced(args, entries=args[3][i : i + 1], entry_indptr=samples.indptr([1]))
        parts.append(compare.reference(OP, one, kwargs)[0])
    assert compare.distance(sum(parts) / len(parts), want).rms > 20 * limit


def test_lse_leaves_the_learned_sink_out(isa):
    args, kwargs = samples.paged(
        25, [StreamShape(70, 5), StreamShape(9, 1)], learned=True, split=17
    )
    with_sink, free = both(args, **kwargs), both(args, **{**kwargs, "sink_logits": None})
    assert compare.same_bits(with_sink[1], free[1])
    gate = torch.sigmoid(free[1] - kwargs["sink_logits"])[..., None]
    assert compare.distance(with_sink[0], free[0] * gate).rms < 1e-6


# Edges of the interface.


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy(dtype):
    args, kwargs = samples.paged(26, [StreamShape(40, 5), StreamShape(9, 1)], learned=True)
    arrays = [x.numpy().astype(dtype) if x.is_floating_point() else x.numpy() for x in args]
    named = {k: v.numpy() for k, v in kwargs.items()}
    o, lse = ops.paged_attention(*arrays, **named)
    assert isinstance(o, np.ndarray)
    assert o.dtype == dtype
    want = ops.paged_attention(*map(torch.from_numpy, arrays), **kwargs)
    assert np.array_equal(o, want[0].numpy())
    assert np.array_equal(lse, want[1].numpy())


def test_beyond_two_to_the_31_elements(isa):
    """Addresses in a pool of more than 2^31 elements; only the last pages are ever touched."""
    heads, dim, size = 2, 64, 64
    args, kwargs = samples.paged(
        27, [StreamShape(100, 5)], dim=dim, kv_heads=heads, page_size=size, dtype=torch.bfloat16
    )
    few = args[1].shape[0]
    pages = 2**31 // (heads * dim * size) + few
    try:
        big = [torch.empty(pages, heads, dim, size, dtype=torch.bfloat16) for _ in range(2)]
    except RuntimeError as error:
        pytest.skip(f"no address space for two pools of 4.3 GB: {error}")
    big[0][-few:], big[1][-few:] = args[1], args[2]
    far = replaced(plus(PAGE, pages - few)(args), k_pages=big[0], v_pages=big[1])
    assert (pages - few) * heads * dim * size >= 2**31
    for a, b in zip(both(far, **kwargs), both(args, **kwargs), strict=True):
        assert compare.same_bits(a, b)


def test_nothing_at_all():
    args, kwargs = samples.paged(28, [], group=2)
    o, lse = both(args, **kwargs)
    assert o.shape == (0, 4, 64)
    assert lse.shape == (0, 4)


def put(name, where, value):
    def change(named):
        named[name] = named[name].clone()
        named[name][where] = value

    return change


def use(name, f):
    return lambda named: named.update({name: f(named[name])})


def bad_dim(named):
    for name in ("q", "k_pages", "v_pages"):
        x = named[name]
        named[name] = torch.zeros(*(40 if n == 32 else n for n in x.shape))
    named["inv_freq"] = None


def bad_page(named):
    named["k_pages"] = named["k_pages"][..., :24].contiguous()
    named["v_pages"] = named["v_pages"][:, :, :24].contiguous()


def error_sample():
    args, kwargs = samples.paged(
        29, [StreamShape(40, 5), StreamShape(9, 1)], dim=32, page_size=64, kv_heads=2, group=2
    )
    named = dict(zip(NAMES, args, strict=True)) | kwargs
    named["k_pages"], named["v_pages"] = named["k_pages"][:6].clone(), named["v_pages"][:6].clone()
    named["entries"][:, PAGE] %= 6
    named["entries"][:, FIRST] = 0
    return named


FLOATS = "expected one of float32, bfloat16, float16, got "
ENTRY = "paged_attention(entries): expected "
WITHIN = ENTRY + "first and count within a page of 64 slots, got first "
NOT_NEGATIVE = ENTRY + "reach and cap of 0 or more, got reach "
ERRORS = [
    (use("q", torch.Tensor.double), TypeError, f"paged_attention(q): {FLOATS}float64"),
    (use("k_pages", torch.Tensor.int), TypeError, f"paged_attention(k_pages): {FLOATS}int32"),
    (use("v_pages", torch.Tensor.half), TypeError,
     "paged_attention(v_pages): expected float32, as k_pages, got float16"),
    (use("entries", torch.Tensor.int), TypeError,
     "paged_attention(entries): expected int64, got int32"),
    (use("entry_indptr", torch.Tensor.long), TypeError,
     "paged_attention(entry_indptr): expected int32, got int64"),
    (use("q_indptr", torch.Tensor.long), TypeError,
     "paged_attention(q_indptr): expected int32, got int64"),
    (use("q_pos", torch.Tensor.int), TypeError,
     "paged_attention(q_pos): expected int64, got int32"),
    (use("inv_freq", torch.Tensor.float), TypeError,
     "paged_attention(inv_freq): expected float64, got float32"),
    (use("q_pos", torch.Tensor.tolist), TypeError,
     "paged_attention(q_pos): expected a tensor, got list"),
    (lambda n: n.update(scale="1"), TypeError,
     "paged_attention(scale): expected a number, got str"),
    (lambda n: n.update(split=1.5), TypeError,
     "paged_attention(split): expected an integer, got float"),
    (use("q", lambda x: x[0]), ValueError,
     "paged_attention(q): expected 3 axes [T Hq D], got shape (4, 32)"),
    (use("k_pages", lambda x: x[:, :, :16]), ValueError,
     "paged_attention(k_pages): expected D = 32 in [N Hkv D P], got shape (6, 2, 16, 64)"),
    (use("v_pages", lambda x: x[:5]), ValueError,
     "paged_attention(v_pages): expected N = 6 in [N Hkv P D], got shape (5, 2, 64, 32)"),
    (use("entries", lambda x: x[:, :6].contiguous()), ValueError,
     "paged_attention(entries): expected 7 = 7 in [E 7], got shape (2, 6)"),
    (use("q_indptr", lambda x: x[:2]), ValueError,
     "paged_attention(q_indptr): expected B+1 = 3 in [B+1], got shape (2,)"),
    (use("entry_indptr", lambda x: x[:0]), ValueError,
     "paged_attention(entry_indptr): expected 1 element or more in [B+1], got shape (0,)"),
    (use("q_pos", lambda x: x[:5]), ValueError,
     "paged_attention(q_pos): expected T = 6 in [T], got shape (5,)"),
    (lambda n: n.update(q_order=n["q_pos"][:5]), ValueError,
     "paged_attention(q_order): expected T = 6 in [T], got shape (5,)"),
    (lambda n: n.update(sink_logits=torch.zeros(2)), ValueError,
     "paged_attention(sink_logits): expected Hq = 4 in [Hq], got shape (2,)"),
    (lambda n: n.update(q_pos=n["q_pos"].to("meta")), ValueError,
     "paged_attention(q_pos): expected a tensor on cpu, got meta"),
    (lambda n: n.update(q=n["q"].mT.contiguous().mT), ValueError,
     "paged_attention(q): expected stride 1 along the last axis, got strides (128, 1, 4);"
     " call .contiguous() first"),
    (lambda n: n.update(entries=n["entries"].T.contiguous().T), ValueError,
     "paged_attention(entries): expected a contiguous tensor, got strides (1, 2)"),
    (use("k_pages", lambda x: x.mT.contiguous().mT), ValueError,
     "paged_attention(k_pages): expected the last two axes contiguous,"
     " got strides (4096, 2048, 1, 32)"),
    (use("q", lambda x: x[:, :3]), ValueError,
     "paged_attention(q): expected query heads that are a multiple of 2 kv heads, got 3"),
    (use("inv_freq", lambda x: torch.cat([x, x])), ValueError,
     "paged_attention(inv_freq): expected at most 16 frequencies, got 32"),
    (lambda n: n.update(softcap=-1.0), ValueError,
     "paged_attention(softcap): expected 0 (off) or a finite number above, got -1.0"),
    (lambda n: n.update(scale=float("nan")), ValueError,
     "paged_attention(scale): expected a finite number or None, got nan"),
    (lambda n: n.update(split=0), ValueError,
     "paged_attention(split): expected 1 token or more, got 0"),
    (bad_dim, NotImplementedError,
     "paged_attention(q): expected one of the head dimensions multiples of 16 from 16 to 256,"
     " got 40"),
    (bad_page, NotImplementedError,
     "paged_attention(k_pages): expected one of page sizes that 16 divides, got 24"),
    (put("entries", (1, PAGE), 6), ValueError, ENTRY + "pages in [0, 6), got 6 in entry 1"),
    (put("entries", (0, PAGE), -1), ValueError, ENTRY + "pages in [0, 6), got -1 in entry 0"),
    (put("entries", (0, FIRST), 25), ValueError, WITHIN + "25 and count 40 in entry 0"),
    (put("entries", (0, FIRST), -1), ValueError, WITHIN + "-1 and count 40 in entry 0"),
    (put("entries", (0, COUNT), -1), ValueError, WITHIN + "0 and count -1 in entry 0"),
    (put("entries", (0, COUNT), 65), ValueError, WITHIN + "0 and count 65 in entry 0"),
    (put("entries", (0, FIRST), 2**63 - 1), ValueError,
     WITHIN + f"{2**63 - 1} and count 40 in entry 0"),
    (put("entries", (0, COUNT), 2**63 - 1), ValueError,
     WITHIN + f"0 and count {2**63 - 1} in entry 0"),
    (put("entries", (1, REACH), -1), ValueError,
     NOT_NEGATIVE + f"-1 and cap {UNLIMITED} in entry 1"),
    (put("entries", (1, CAP), -1), ValueError, NOT_NEGATIVE + f"{UNLIMITED} and cap -1 in entry 1"),
    (put("entry_indptr", 1, 5), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 2, got others"),
    (put("entry_indptr", 0, 1), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 2, got others"),
    (put("entry_indptr", 2, 3), ValueError,
     "paged_attention(entry_indptr): expected offsets that rise from 0 to 2, got others"),
    (put("q_indptr", 1, 7), ValueError,
     "paged_attention(q_indptr): expected offsets that rise from 0 to 6, got others"),
    (put("q_indptr", 1, -1), ValueError,
     "paged_attention(q_indptr): expected offsets that rise from 0 to 6, got others"),
    (lambda n: n["q"].requires_grad_(), ValueError,
     "paged_attention(inputs): expected tensors without requires_grad, got one that requires grad;"
     " the op has no backward; call it under torch.no_grad()"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=[e[2][16:80] for e in ERRORS])
def test_errors(change, kind, text):
    named = error_sample()
    ops.paged_attention(**named)
    change(named)
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.paged_attention(**named)
