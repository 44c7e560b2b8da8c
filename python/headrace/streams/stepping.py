# SPDX-License-Identifier: Apache-2.0
"""A step of an engine: what came is checked, read, and only then true of the streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import interrupts
from ..errors import bad_value
from ..memory import Edit
from . import abreast
from .call import advance
from .piece import Piece
from .reading import Reading, commit, reports
from .report import Report
from .stream import Stream
from .tokens import Tokens, ids_of_each

if TYPE_CHECKING:
    from .engine import Engine


def step(
    engine: Engine, batch: Mapping[Stream, Tokens | Piece], logits: bool
) -> dict[Stream, Report]:
    """What `Engine.step` does."""
    began = time.perf_counter()
    streams, given = list(batch), list[Any](batch.values())
    for stream in streams:
        mine = type(stream) is Stream and stream.engine is engine
        if not mine or stream._lease.released or stream.reads:
            _check(engine, stream)
    pieces: list[Piece | None] = []
    if any([issubclass(kind, Piece) for kind in set(map(type, given))]):
        pieces = [x if isinstance(x, Piece) else None for x in given]
        given = [x.tokens if isinstance(x, Piece) else x for x in given]
    elif engine.spatial:
        pieces = [None] * len(given)
    counts, joined = ids_of_each(given, engine.vocab, engine.device)
    if not pieces and not logits:
        leases = abreast.leases(streams, counts, engine.chunk)
        if leases is not None:
            return abreast.step(engine, streams, leases, counts, joined, began)
    fed = joined.split(counts)
    if pieces:
        whats = zip(streams, fed, pieces, strict=True)
        runs = [Reading(stream, tokens, logits, piece) for stream, tokens, piece in whats]
        for run, piece in zip(runs, pieces, strict=True):
            run.place(piece)
    else:
        runs = [Reading(*one, logits) for one in zip(streams, fed, strict=True)]
    return _read(engine, runs, joined, began)


def _read(
    engine: Engine, runs: list[Reading], joined: Tensor, began: float
) -> dict[Stream, Report]:
    """All that each is to read, `joined` in a row, chunk by chunk."""
    odd = [run for run in runs if not run.plain]
    edit = Edit(engine.pool)
    try:
        with engine._inference:
            for run in odd:
                run.settle(edit)
            counts = [run.count for run in runs]
            longest = max(counts, default=0)
            whole = joined if longest <= engine.chunk else None
            for at in range(0, longest, engine.chunk):
                some = runs if all(counts) and not at else [r for r in runs if at < r.count]
                _calls(engine, edit, some, at, whole)
        told = reports(runs, (time.perf_counter() - began) * 1e3, engine.vocab)
        with interrupts.deferred():
            commit(runs)
            edit.commit()
    except BaseException:
        with interrupts.deferred():
            edit.undo()  # nothing, once committed
            for run in odd:
                if run.shelf is not None:
                    run.shelf.undo()
        raise
    return told


def _calls(engine: Engine, edit: Edit, runs: list[Reading], at: int, whole: Tensor | None) -> None:
    """One model call for all runs, or several where they have more adapters than fit.

    whole: all that they read, in a row, where nothing of it is left for other calls.
    """
    if engine._sites is None or not any(run.adapter for run in runs):
        return advance(engine, edit, runs, at, engine._linear, whole)
    counts = [min(engine.chunk, run.count - at) for run in runs]

    def call(chosen: list[int], linear: Callable[..., Tensor]) -> None:
        advance(engine, edit, [runs[i] for i in chosen], at, linear)

    engine._sites.call([run.adapter for run in runs], counts, engine._linear, call)


def _check(engine: Engine, stream: object) -> None:
    if not isinstance(stream, Stream) or stream.engine is not engine:
        raise bad_value("step", "batch", "streams of this engine", repr(stream))
    stream._check_open("feed")
    for lane in stream.reads:
        lane._check_open("feed")
