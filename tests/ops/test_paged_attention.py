# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from headrace.kernels.attention.reference import CAP, COUNT, FIRST, ORDER, ORIGIN, PAGE, REACH
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples
from tests.ops.paged import both, edited, plus, replaced
from tests.ops.samples import UNLIMITED, StreamShape

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "paged_attention"
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


@st.composite
def random_calls(draw, rows, entries, page_sizes, streams, split):
    """Calls over random tables, with a label of their sizes, which are up to those given; rows are
    in the order of their positions, or in one of their own."""
    sizes = {
        "seed": draw(st.integers(0, 2**20)),
        "rows": draw(st.integers(0, rows)),
        "entries": draw(st.integers(0, entries)),
        "page_size": draw(st.sampled_from(page_sizes)),
        "streams": draw(st.integers(1, streams)),
        "far": draw(st.sampled_from([20, 300, 2**32])),
    }
    args, kwargs = random_table(**sizes)
    kwargs["split"] = draw(st.integers(1, split))
    if not draw(st.booleans()):
        kwargs["q_order"] = None
    return args, kwargs, sizes | {"split": kwargs["split"]}


@given(random_calls(40, 7, (16, 48, 64), 4, 300))
def test_random_tables(call):
    compare.check_levels(OP, *call)


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


@pytest.mark.parametrize(
    "streams",
    [
        [StreamShape(257, 65, 100, 4), StreamShape(257, 1), StreamShape(67, 67)],
        [StreamShape(257, 1), StreamShape(130, 1, 100, 4)],  # heads share items here
        [StreamShape(67, 3)],
    ],
)
def test_threads_leave_no_trace(isa, streams):
    args, kwargs = samples.paged(10, streams, kv_heads=5, group=4, split=64)
    torch.set_num_threads(1)
    one = both(args, **kwargs)
    for threads in (2, 3, 8):  # another number of heads an item, too
        torch.set_num_threads(threads)
        for a, b in zip(one, both(args, **kwargs), strict=True):
            assert compare.same_bits(a, b), threads


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
