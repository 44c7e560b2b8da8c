# SPDX-License-Identifier: Apache-2.0
"""Small changes to the arguments of paged_attention."""

from __future__ import annotations

import torch
from headrace.kernels.attention.reference import ORDER, PAGE, REACH
from hypothesis import strategies as st

from headrace import ops
from tests.ops import samples

UNLIMITED, SIZE = samples.UNLIMITED, 16  # the size of a page of `batch`
NAMES = ("q", "k_pages", "v_pages", "entries", "entry_indptr", "q_indptr", "q_pos")


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


def plus(column, by):
    return lambda args: edited(args, column, lambda x: x + by)


def far(args, kwargs):
    """Calls that mean the same, at the ends of what a table may hold."""
    for reach in (2**62, 2**63 - 1):
        for shift in (0, 2**61, -(2**61)):
            moved = edited(args, REACH, lambda x, r=reach: x * 0 + r)
            moved = edited(moved, ORDER, lambda x, s=shift: x + s)
            yield moved, kwargs | {"q_order": args[6] + shift}


def permuted(args, kwargs, turn):
    """A call that means the same, with the pages in another order."""
    moved = edited(args, PAGE, lambda p: turn.argsort()[p])
    moved = replaced(moved, k_pages=args[1][turn], v_pages=args[2][turn])
    return moved, kwargs | {n: kwargs[n][turn] for n in ("k_scale", "v_scale") if n in kwargs}


def row_alone(args, row):
    """The arguments of one row of the only stream."""
    one = slice(row, row + 1)
    ends = torch.tensor([0, 1], dtype=torch.int32)
    return replaced(args, q=args[0][one], q_indptr=ends, q_pos=args[6][one])


def batch(
    seed,
    prefix,
    own,
    rows=None,
    group=4,
    heads=2,
    dim=32,
    cap=UNLIMITED,
    tail=SIZE,
    dtype=torch.float32,
    **more,
):
    """A call of streams with `prefix` pages in common, then own[b] pages of their own each.

    rows[b] query rows at the end of stream b; `tail` slots are used of the last shared page.
    """
    gen = samples.rng(seed)
    rows = [1] * len(own) if rows is None else rows
    total = prefix + sum(own)
    place = torch.randperm(total, generator=gen).tolist()
    entries, owners, positions, used = [], [0], [], prefix
    for pages, n in zip(own, rows, strict=True):
        at = 0
        for i in range(prefix):
            count = tail if i == prefix - 1 else SIZE
            entries.append([place[i], 0, count, i // 2 * 32, cap, at, UNLIMITED])
            at += count
        for _ in range(pages):
            entries.append(
                [place[used], 0, SIZE, at // 32 * 32, UNLIMITED, at, more.get("reach", UNLIMITED)]
            )
            used, at = used + 1, at + SIZE
        owners.append(len(entries))
        positions.append(torch.arange(at - n, at) + more.get("ahead", 0))
    args = (
        samples.normal(gen, sum(rows), heads * group, dim, dtype=dtype),
        samples.normal(gen, max(total, 1), heads, dim, SIZE, dtype=dtype),
        samples.normal(gen, max(total, 1), heads, SIZE, dim, dtype=dtype),
        torch.tensor(entries, dtype=torch.int64).view(-1, 7),
        torch.tensor(owners, dtype=torch.int32),
        torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32),
        torch.cat(positions),
    )
    return args, {"inv_freq": samples.frequencies(dim), "split": more.get("split", 4096)}


def any_mix(data, splits):
    """What `batch` takes, drawn: prefixes, own pages and rows of up to seven streams."""
    streams = data.draw(st.integers(1, 7))
    return dict(
        prefix=data.draw(st.integers(1, 12)),
        own=data.draw(st.lists(st.integers(0, 5), min_size=streams, max_size=streams)),
        rows=data.draw(st.lists(st.integers(0, 4), min_size=streams, max_size=streams)),
        split=data.draw(st.sampled_from(splits)),
        tail=data.draw(st.sampled_from([SIZE, 3])),
        group=data.draw(st.sampled_from([1, 3])),
    )


def one_by_one(args, kwargs, run=ops.paged_attention):
    """Every stream in a call of its own, which has nobody to share with."""
    q, k, v, entries, owners, rows, pos = args
    each = len(owners[:-1]) // (len(rows) - 1)  # lists of a stream
    outs = []
    for b in range(len(rows) - 1):
        mine, lists = slice(rows[b], rows[b + 1]), owners[b * each : b * each + each + 1]
        alone = (
            q[mine],
            k,
            v,
            entries[lists[0] : lists[-1]],
            (lists - lists[0]).contiguous(),
            torch.tensor([0, mine.stop - mine.start], dtype=torch.int32),
            pos[mine],
        )
        outs.append(run(*alone, **kwargs))
    return tuple(torch.cat(x) for x in zip(*outs, strict=True))
