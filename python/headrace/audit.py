# SPDX-License-Identifier: Apache-2.0
"""Debug mode: full checks of what an op is given, values included.

The CPU kernels and the reference refuse values that are out of bounds at any time; a GPU cannot
raise, so there they are masked, and refused in debug mode: `with headrace.debug():` or
HEADRACE_DEBUG=1. What costs more, such as whether a page is free or two ranges overlap, is looked
at in debug mode only, everywhere. Off, it costs one look at a flag.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from . import tables
from .errors import bad_value

_OFF = ("", "0")
on: bool = os.environ.get("HEADRACE_DEBUG", "0") not in _OFF

# Who knows which pages of a tensor are taken, by where the tensor's memory starts.
_owners: WeakValueDictionary[int, Any] = WeakValueDictionary()


@contextmanager
def debug(enabled: bool = True) -> Iterator[None]:
    """Runs the block with full checks of every table that an op or a step is given (or without).

    In debug mode paged_attention refuses pages that their pool says are free, lists that name one
    slot twice, and lists whose entries go back in logical time; append refuses free pages and a
    slot written twice in one call; a step of an engine refuses pages that its streams do not hold.
    On a GPU all ops then refuse what they refuse on the CPU at any time: pages, slots, rows and
    offsets that do not exist. ValueError, before anything runs. Tables on a GPU are read back, so
    it cannot be on while a CUDA graph is captured.
    """
    global on
    before, on = on, enabled
    try:
        yield
    finally:
        on = before


def owns(pages: Tensor, pool: Any) -> None:
    """Notes that `pool`, which has holders(page), hands out the pages of this tensor."""
    if pages.numel():
        _owners[pages.untyped_storage().data_ptr()] = pool


def check(name: str, bound: Mapping[str, Any]) -> None:
    """All that debug mode knows to check of op `name`."""
    tables.check(name, bound)
    if name in _CHECKS:
        _CHECKS[name](bound)


def _live(op: str, arg: str, pages: Tensor, named: set[int], where: str) -> None:
    pool = _owners.get(pages.untyped_storage().data_ptr())
    if pool is None:
        return
    for page in sorted(named):
        if 0 <= page < pool.pages and pool.holders(page) == 0:
            raise bad_value(op, arg, "pages that a stream holds", f"page {page}, free, {where}")


def _paged_attention(bound: Mapping[str, Any]) -> None:
    op = "paged_attention"
    entries: list[list[int]] = bound["entries"].tolist()
    owners: list[int] = bound["entry_indptr"].tolist()
    _live(op, "entries", bound["k_pages"], {e[0] for e in entries if e[2] > 0}, "in entries")
    for number, (first, last) in enumerate(pairwise(owners)):
        ranges: dict[int, list[tuple[int, int, int]]] = {}
        previous: int | None = None
        for i in range(first, last):
            page, slot, count, _, _, order = entries[i][:6]
            if count <= 0:
                continue
            if previous is not None and order < previous:
                raise bad_value(
                    op,
                    "entries",
                    f"orders that rise along list {number}",
                    f"order {order} after {previous} in entry {i}",
                )
            previous = order
            for begin, end, other in ranges.get(page, []):
                if slot < end and begin < slot + count:
                    raise bad_value(
                        op,
                        "entries",
                        f"every slot once in list {number}",
                        f"slots of page {page} both in entry {other} and in entry {i}",
                    )
            ranges.setdefault(page, []).append((slot, slot + count, i))


def _held(op: str, bound: Mapping[str, Any]) -> list[list[int]]:
    """Where tokens go, which are pages that a stream holds."""
    where: list[list[int]] = bound["where"].tolist()
    _live(op, "where", bound["k_pages"], {row[0] for row in where}, "in where")
    return where


def _append(bound: Mapping[str, Any]) -> None:
    written: dict[tuple[int, int], int] = {}
    for t, (page, slot, *_) in enumerate(_held("append", bound)):
        other = written.setdefault((page, slot), t)
        if other != t:
            raise bad_value(
                "append",
                "where",
                "every slot once",
                f"slot {slot} of page {page} for tokens {other} and {t}",
            )


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "paged_attention": _paged_attention,
    "append": _append,
    "append_absorb": partial(_held, "append_absorb"),
}
