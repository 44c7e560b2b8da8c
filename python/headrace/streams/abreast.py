# SPDX-License-Identifier: Apache-2.0
"""The step that is most frequent: each stream reads a few tokens, and nothing but its own window.

It is what `headrace.streams.call` does for all others, in columns instead of an object for each
stream. All that can be done before the model call is, for that leaves nothing in a cache.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch import Tensor

from .. import audit, interrupts
from ..memory import Edit, Lease, view
from . import owning
from .call import attend
from .reading import apart, known, score
from .report import Report, Scored, late
from .stream import Stream

if TYPE_CHECKING:
    from .engine import Engine


def leases(streams: list[Stream], counts: list[int], chunk: int) -> list[Lease] | None:
    """Of streams that can step abreast; None where one does more, or reads more than a chunk."""
    if not counts or min(counts) == 0 or max(counts) > chunk:
        return None
    made, good = [], None
    for s in streams:
        if s.reads or s.follows is not None or s._adapter is not None or s._history is not None:
            return None
        if s._shelf is not None or s._recalled is not None:
            return None
        lease = s._lease
        plan = lease.table.plan
        if plan is not good:  # most share one
            if plan.choice is not None or plan.fold is not None:
                return None
            good = plan
        made.append(lease)
    return made


def step(
    engine: Engine,
    streams: list[Stream],
    leases: list[Lease],
    counts: list[int],
    tokens: Tensor,
    began: float,
) -> dict[Stream, Report]:
    """One model call for all of them. tokens: of all in a row."""
    edit, sheet = Edit(engine.pool), engine._sheet
    try:
        with engine._inference:
            tables = [lease.table for lease in leases]
            tables = edit.grow(tables, counts, sheet.slots(len(tokens)))
            overdue = edit.overdue(tables)
            seen = view.View.after(tables, counts, sheet)
            if audit.on:
                owning.check(engine, seen, streams, tables)
            before = [stream._ahead for stream in streams]
            rows, scored, cell, lo = known(before), Scored(), list[Tensor](), 0
            told: dict[Stream, Report] = {}
            for stream, table, count in zip(streams, tables, counts, strict=True):
                told[stream] = late(scored, lo, lo + count, table)
                lo += count
            ahead = [(cell, i) for i in range(len(streams))]
            logits = engine.model(tokens, attend(engine, seen), linear=engine._linear).float()
            tables = edit.let_go(tables, overdue=overdue) if overdue else tables
            lasts = score(scored, before, rows, counts, tokens, logits)
            cell.append(lasts)
            ahead = apart(lasts) or ahead
        scored.ms = (time.perf_counter() - began) * 1e3
        with interrupts.deferred():
            for stream, lease, table, one in zip(streams, leases, tables, ahead, strict=True):
                lease.table, stream._ahead = table, one
            edit.commit()
    except BaseException:
        with interrupts.deferred():
            edit.undo()  # nothing, once committed
        raise
    return told
