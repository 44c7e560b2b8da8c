# SPDX-License-Identifier: Apache-2.0
"""Small changes to the arguments of paged_attention."""

from __future__ import annotations

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
