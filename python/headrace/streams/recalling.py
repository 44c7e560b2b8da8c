# SPDX-License-Identifier: Apache-2.0
"""How a stream asks its archive: a question is read on the side, and each layer finds its pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import interrupts
from ..errors import bad_type, bad_value
from ..memory import ArchiveStore, Asked, Recalled, Shelf, Told, by_mass, by_score, check_bound
from .positions import InCache
from .tokens import Tokens

if TYPE_CHECKING:
    from .stream import Stream


def open_shelf(store: ArchiveStore | None, name: str | None, position: int | None) -> Shelf | None:
    """The place in the archive of a stream that opens at `position` (None: after what is there)."""
    if name is not None and not isinstance(name, str):
        raise bad_type("open", "archive", "a name", repr(name))
    if store is None:
        if name is not None:
            raise bad_value("open", "archive", "None", repr(name), "wrap with memory >> Archive()")
        return None
    shelf = store.shelf(name)
    if position is not None and position < shelf.end:
        end = shelf.end
        shelf.close()
        raise bad_value("open", "position", f"{end} or more, after the archive", position)
    return shelf


def cut(stream: Stream) -> None:
    """The stream went back: what it recalled may never have been."""
    stream.forget()
    if stream._shelf is not None:
        stream._shelf.cut(stream._lease.table)


def recall(
    stream: Stream, question: Tokens, top: int | None, mass: float | None, bound: str
) -> Recalled:
    """What `Stream.recall` does."""
    stream._check_open("recall")
    engine, shelf = stream.engine, stream._shelf
    if shelf is None:
        hint = "wrap the model with memory >> Archive()"
        raise bad_value("recall", "stream", "one with an archive", "none", hint)
    if top is not None and mass is not None:
        raise bad_value("recall", "top", "None beside mass", top)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 0):
        raise bad_value("recall", "top", "0 pages or more", repr(top))
    if mass is not None and not 0 <= mass <= 1:
        raise bad_value("recall", "mass", "a share from 0 to 1", mass)
    check_bound(bound, mass)
    layers = engine.pool.k.shape[0]
    told: list[Told] = []
    mine = [[]] * layers if stream._recalled is None else stream._recalled.blocks
    if top is None and mass is None:
        chosen = [np.arange(len(shelf.index))] * layers
    else:
        asked = ask(stream, question)
        if top is not None:
            chosen = [by_score(shelf, n, asked[n], top) for n in range(layers)]
        else:
            assert mass is not None
            reach = engine.plan.reach if isinstance(engine.positions, InCache) else None
            found = [
                by_mass(shelf, n, asked[n], mass, bound, reach, engine._inv_freq, mine[n])
                for n in range(layers)
            ]
            chosen, told = [picked for picked, _ in found], [said for _, said in found]
    store = shelf.store.near()
    for layer, picked in enumerate(chosen):
        store.check_room(shelf.index.blocks[picked].tolist(), layer, mine[layer])
    with interrupts.deferred():
        table = stream._lease.table
        stream.forget()
        in_cache = isinstance(engine.positions, InCache)
        stream._recalled = Recalled(shelf, table, chosen, in_cache, told)
    return stream._recalled


def ask(stream: Stream, question: Tokens) -> list[Asked]:
    """What every layer asks when the stream reads the question now, without its archive."""
    engine, at = stream.engine, stream.position
    heard: dict[int, list[tuple[Tensor, Tensor]]] = {}
    shelf, stream._shelf = stream._shelf, None
    recalled, stream._recalled = stream._recalled, None
    try:
        side = stream.fork()
    finally:
        stream._shelf, stream._recalled = shelf, recalled
    engine._listen = lambda layer, q, lse: heard.setdefault(layer, []).append(
        (q.float().cpu(), lse.cpu())
    )
    try:
        read = side.feed(question).tokens
    finally:
        engine._listen = None
        side.close()
    if not read:
        raise bad_value("recall", "question", "at least one token", "none")
    return [
        Asked(torch.cat([q for q, _ in parts]), torch.cat([lse for _, lse in parts]), at)
        for _, parts in sorted(heard.items())
    ]
