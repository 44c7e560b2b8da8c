# SPDX-License-Identifier: Apache-2.0
"""Debug mode's look at a step: each stream writes and reads pages that it holds, or is let see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import bad_value
from ..memory import Table, view
from .stream import Stream

if TYPE_CHECKING:
    from .engine import Engine


def check(
    engine: Engine, step: view.View, streams: Sequence[Stream], tables: Sequence[Table]
) -> None:
    """ValueError where a step is about to name a page that is not of its stream. tables: those that
    the streams will have."""
    _counted(engine, dict(zip(streams, tables, strict=True)))
    own = [set(table.page_ids) for table in tables]
    written = step.where[:, 0].tolist()
    spans = list(pairwise(step.q_indptr.tolist()))
    for i, (first, last) in enumerate(spans):
        _within("where", i, written[first:last], own[i])
    for layer in range(len(step.by_layer) or 1):
        entries, ends = step.lists(layer)
        named = entries[:, view.PAGE].tolist()
        for i, (first, last) in enumerate(pairwise(ends.tolist())):
            _within("entries", i, named[first:last], own[i] | _seen(streams[i], layer))


def _seen(stream: Stream, layer: int) -> set[int]:
    """Pages that it is let see in a layer: those of other lanes, and what it recalled."""
    pages = {page for lane in stream.reads for page in lane.table.page_ids}
    if stream._recalled is not None:
        pages.update(row[view.PAGE] for row in stream._recalled.rows[layer])
    return pages


def _within(arg: str, stream: int, named: Sequence[int], its: set[int]) -> None:
    for page in named:
        if page not in its:
            raise bad_value("step", arg, f"pages that stream {stream} of the batch holds", page)


def _counted(engine: Engine, coming: dict[Stream, Table]) -> None:
    """That as many hold a page as there are streams that have it."""
    open_ones = (s for s in engine._streams if s in coming or not s._lease.released)
    had = Counter(
        page
        for stream in open_ones
        for page in set(coming.get(stream, stream._lease.table).page_ids)
    )
    for page, streams in sorted(had.items()):
        holders = engine.pool.holders(page)
        if streams > holders:
            got = f"page {page}, held {holders} times, with {streams}"
            raise bad_value("step", "batch", "streams that hold all pages they have", got)
