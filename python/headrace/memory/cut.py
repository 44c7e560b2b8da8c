# SPDX-License-Identifier: Apache-2.0
"""Tables as they were: the first tokens of a stream, without reading them again.

What a token left in its page depends on nothing that came after it, so a table that ends earlier is
an edit of integers, exact as long as every token that the next query would see is still held.
"""

from __future__ import annotations

from dataclasses import replace

from .pool import PagePool
from .table import Page, Table


def cut(table: Table, tokens: int) -> Table | None:
    """The table of the first `tokens` tokens; None when a page that it needs is gone."""
    end = table.start + tokens
    if tokens == table.tokens:
        return table
    if table.kept is not None:  # who was alive then is not known any more
        empty = replace(table, end=table.start, window=(), kept=None, cell=[])
        return None if tokens else empty
    border = table.start + table.plan.pinned
    pinned = tuple(page for page in table.pinned if page.start < min(end, border))
    window = tuple(page for page in table.window if page.start < end)
    oldest = max(border, end - table.plan.reach + 1)  # what the next query sees first
    if oldest < end and not (window and window[0].start <= oldest):
        return None
    if table.folded is not None and end - table.plan.reach >= border:
        return None  # what was folded since cannot be taken out
    return replace(
        table,
        end=end,
        pinned=pinned,
        window=window if end > border else (),
        folded=None,
        placed=table.placed if tokens else None,
    )


def fresh_pages(pool: PagePool, table: Table, tokens: int) -> int:
    """Pages that `tokens` more tokens take from the pool, at most."""
    end = table.end + tokens
    border = min(max(table.end, table.start + table.plan.pinned), end)
    fresh = _fresh(pool, table.pinned, table.end, border) + _fresh(pool, table.window, border, end)
    packing = 0 if table.kept is None else (len(table.page_ids) + 1) // 2
    return fresh + packing


def _fresh(pool: PagePool, run: tuple[Page, ...], lo: int, hi: int) -> int:
    if lo == hi:
        return 0
    used = lo - run[-1].start if run else pool.page_size
    # Of several holders of a page one may go on in it; nobody knows which.
    mine = run and pool.filled[run[-1].id] == used and pool.holders(run[-1].id) == 1
    return max(0, -(-(hi - lo - (pool.page_size - used if mine else 0)) // pool.page_size))
