# SPDX-License-Identifier: Apache-2.0
"""One call of the model for many streams: their tables grow, it reads, and they let go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import audit, interrupts, ops
from ..memory import Edit, Table, view
from . import owning, spatial
from .folding import Folds
from .reading import Reading, apart, known, score
from .report import Scored

if TYPE_CHECKING:
    from .engine import Engine


def advance(
    engine: Engine,
    edit: Edit,
    runs: list[Reading],
    at: int,
    linear: Callable[..., Tensor],
    tokens: Tensor | None = None,
) -> None:
    """Reads the tokens at..at+chunk of each run, or `tokens`, which are the same."""
    if tokens is None:
        counts = [min(engine.chunk, run.count - at) for run in runs]
        tokens = torch.cat([run.chunk(at, n) for run, n in zip(runs, counts, strict=True)])
    else:
        counts = [run.count for run in runs]
    plain = all([run.plain for run in runs])
    if not plain:
        with interrupts.deferred():
            for run, count in zip(runs, counts, strict=True):
                run.make_room(edit, count)
    sheet = engine._sheet
    tables = edit.grow([run.table for run in runs], counts, sheet.slots(len(tokens)))
    reads = [] if plain else [run.read for run in runs]
    recalled = [] if plain else by_layer(engine, runs, tables, counts)
    if engine.spatial:
        tables, places = spatial.placed(tables, runs, at, counts)
    step = view.View.after(tables, counts, sheet, reads, recalled)
    if engine.spatial:
        step = spatial.widened(engine, step, tables, places)
    if audit.on:
        owning.check(engine, step, [run.stream for run in runs], tables)
    overdue = edit.overdue(tables)
    ahead = [run.ahead for run in runs]
    rows, told, cell, lo = known(ahead), Scored(), list[Tensor](), 0
    for i, (run, table, count) in enumerate(zip(runs, tables, counts, strict=True)):
        run.table, run.ahead = table, (cell, i)
        run.told = (*run.told, (told, lo, lo + count)) if at else ((told, lo, lo + count),)
        lo += count
    folds = None
    if not plain and any(table.plan.fold is not None for table in tables):
        folds = Folds(engine, tables, counts)
    # What concerns every stream has been done: the model leaves nothing of it in a cache.
    logits = engine.model(tokens, attend(engine, step, folds), linear=linear).float()
    if folds is not None:
        tables = folds.kept(tables)
        for run, table in zip(runs, tables, strict=True):
            run.table = table
    if overdue:
        stages = None if plain else [None if run.shelf is None else run.shelf.stage for run in runs]
        tables = edit.let_go(tables, stages, overdue)
        for i in overdue:
            runs[i].table = tables[i]
    lasts = score(told, ahead, rows, counts, tokens, logits)
    cell.append(lasts)
    for i, own in enumerate(apart(lasts)):
        runs[i].ahead = own
    if not plain or runs[0].keep:
        for run in runs:
            run.note(logits)


def by_layer(
    engine: Engine, runs: list[Reading], tables: list[Table], counts: list[int]
) -> list[list[list[view.Row]]]:
    """Entries of every run for every layer; none while nothing is recalled."""
    if all(run.recalled is None for run in runs):
        return []
    return [
        [
            run.read
            + view.entries(table, table.end - n, run.recalled.rows[layer] if run.recalled else ())
            for run, table, n in zip(runs, tables, counts, strict=True)
        ]
        for layer in range(engine.pool.k.shape[0])
    ]


def attend(
    engine: Engine, step: view.View, folds: Folds | None = None
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """What a model calls for every layer of a step: keys and values go to pages, and are read."""
    pool = engine.pool
    inv_freq, axis = engine._inv_freq, engine.freq_axis
    written = step.where.shape[0] * pool.row_bytes

    def read(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pages, scales = pool.layer(layer)
        sink_logits = engine.model.sink_logits(layer)
        ops.append(k, v, *pages, step.where, inv_freq=inv_freq, freq_axis=axis, **scales)
        pool.written_bytes += written
        lists = step.lists(layer) if engine._seen is None else engine._seen(layer, q, step)
        o, lse = ops.paged_attention(
            q,
            *pages,
            *lists,
            step.q_indptr,
            step.q_pos,
            q_order=step.q_order,
            inv_freq=inv_freq,
            freq_axis=axis,
            sink_logits=None if sink_logits is None else sink_logits.float().contiguous(),
            max_rows=step.max_rows,
            **scales,
        )
        if folds is not None:
            folds.attend(layer, q, o, lse)
        if engine._listen is not None:
            engine._listen(layer, q, lse)
        return o

    return read
