# SPDX-License-Identifier: Apache-2.0
"""Small changes to the arguments of paged_attention."""

from __future__ import annotations

import torch
from headrace.kernels.attention.reference import ORDER, PAGE, REACH

from headrace import ops

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
