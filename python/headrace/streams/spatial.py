# SPDX-License-Identifier: Apache-2.0
"""Streams whose tokens are in time, rows and columns: `Keep3D` for models with M-RoPE.

Tables count tokens in a row, as always, for that says who came before whom and who stays; where a
token is, is said beside. A page is turned about a time of its own, and about row and column 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported
from ..memory import UNLIMITED, Placed, Plan, Table, View
from ..memory.view import CAP, ORIGIN, PAGE
from .positions import Keep3D, Positions

if TYPE_CHECKING:
    from .engine import Engine
    from .reading import Reading

EPOCH = 64
"""Pages that begin within so many ticks of time share an origin: one rotated query serves them."""
FAR = 2**61


def check(op: str, model: Any, positions: Positions, plan: Plan, archived: bool) -> None:
    """ValueError or NotImplementedError where model and memory do not fit a place for each token,
    or the model wants one and the positions have none.
    """
    axes = getattr(model, "freq_axis", None)
    if not isinstance(positions, Keep3D):
        if axes is not None:
            got = f"{positions!r} for a {type(model).__name__} with freq_axis"
            raise unsupported(op, "positions", "Keep3D() where frequencies have axes", got)
        return
    if axes is None:
        expected = "a model whose freq_axis [head_dim / 2] says what turns each frequency"
        raise bad_value(op, "model", expected, f"a {type(model).__name__} without one")
    if plan.choice is not None or plan.fold is not None or archived:
        raise unsupported(op, "memory", "Sink and Window in tokens with Keep3D", "other regions")


def places(table: Table, given: Any, count: int, device: torch.device) -> Tensor:
    """int64 [count, 3] of tokens that come next: as given, or as text, one after the other along
    all axes, from behind all that came before.
    """
    if given is None:
        top = table.start - 1 if table.placed is None else table.placed.top
        return torch.arange(top + 1, top + 1 + count, device=device)[:, None].repeat(1, 3)
    if not isinstance(given, Tensor):
        try:
            given = torch.from_numpy(np.asarray(given))
        except (TypeError, ValueError) as error:
            raise bad_type("feed", "places", "whole numbers [T, 3]", str(error)) from None
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise bad_type("feed", "places", "whole numbers [T, 3]", str(given.dtype))
    if tuple(given.shape) != (count, 3):
        raise bad_value("feed", "places", [count, 3], list(given.shape))
    made = given.to(device, torch.int64)
    if count and not 0 <= int(made.min()) <= int(made.max()) < FAR:
        raise bad_value("feed", "places", "0 or more, below 2**61", int(made.min()))
    return made


def placed(
    tables: Sequence[Table], runs: Sequence[Reading], at: int, counts: Sequence[int]
) -> tuple[list[Table], Tensor]:
    """The tables with where the tokens at..at+count of each run are, and these places [T, 3]."""
    made, where = [], []
    for table, run, n in zip(tables, runs, counts, strict=True):
        assert run.places is not None
        mine = run.places[at : at + n]
        where.append(mine)
        old, before = table.placed, table.end - n
        times = mine[:, 0].tolist()
        first = times[0] if old is None else old.first
        known: dict[int, int] = {} if old is None else dict(old.times)
        known |= dict.fromkeys((page.start for page in table.pinned), first)
        for page in table.window:
            if page.start not in known:
                time = times[page.start - before]
                known[page.start] = time - time % EPOCH
        held = {page.start for page in (*table.pinned, *table.window)}
        new = Placed(
            {start: time for start, time in known.items() if start in held},
            first,
            max(int(mine.max()), -1 if old is None else old.top),
            run.given or (old is not None and old.given),
        )
        made.append(replace(table, placed=new, cell=table.cell))
    return made, torch.cat(where)


def widened(engine: Engine, step: View, tables: Sequence[Table], where: Tensor) -> View:
    """A step along three axes: origins in time, and caps along it, where there was one axis."""
    device = engine.device
    pages, times = [], []
    for table in tables:
        assert table.placed is not None
        for page in (*table.pinned, *table.window):
            pages.append(page.id)
            times.append(table.placed.times[page.start])
    origin = torch.zeros(engine.pool.pages, dtype=torch.int64, device=device)
    origin[torch.tensor(pages, device=device)] = torch.tensor(times, device=device)
    shift = torch.zeros_like(where)
    shift[:, 0] = origin[step.where[:, 0]]
    old = step.entries
    entries = old.new_zeros(len(old), 11)
    entries[:, :7] = old
    entries[:, ORIGIN] = origin[old[:, PAGE]]
    entries[:, CAP] = old[:, CAP]
    entries[:, [8, 10]] = UNLIMITED
    return replace(
        step,
        where=torch.cat([step.where[:, :2], where - shift], 1),
        entries=entries,
        q_pos=where.contiguous(),
        q_order=step.q_pos,
    )
