# SPDX-License-Identifier: Apache-2.0
"""Who is alive, by definition: for memories with regions that choose, token by token.

Nothing here is shared with what the page table runs on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import unsupported
from ..memory import Keep, Region, Rest, Sink, Tagged, Then, Union, Window
from .piece import Piece


class Token(NamedTuple):
    """What the definitions know of a token; nth among those of its tag."""

    number: int
    nth: int
    tag: str | None
    score: float
    at: float
    frame: float


class Now(NamedTuple):
    """What is about to be read."""

    coming: int
    tag: str | None
    at: float
    frame: float
    held: bool = False  # by a region to the left of >>


def seen_by(memory: Region, pieces: Sequence[Piece], chunk: int) -> Tensor:
    """Whether query t sees key j, bool [T, T], when pieces are read `chunk` tokens at a time.

    Scores stand in the pieces, for Keep("surprisal") too: what the reports say (their nll).
    """
    alive: list[Token] = []
    rows: list[set[int]] = []
    counts: dict[str | None, int] = {}
    at = frame = -math.inf
    for piece in pieces:
        tokens = _list(piece.tokens)
        at = at if piece.at is None else piece.at
        frame = frame if piece.frame is None else piece.frame
        if piece.keep is not None:
            alive = [token for token in alive if token.number in set(piece.keep)]
        scores = [math.nan] * len(tokens) if piece.scores is None else _list(piece.scores)
        for lo in range(0, len(tokens), chunk):
            count = min(chunk, len(tokens) - lo)
            room = count if lo or piece.room is None else piece.room
            stay = _stay(memory, alive, Now(room, piece.tag, at, frame), 0, False)
            alive = [token for token in alive if token.number in stay]
            for i in range(lo, lo + count):
                nth = counts.get(piece.tag, 0)
                counts[piece.tag] = nth + 1
                score = math.inf if not rows and math.isnan(scores[i]) else scores[i]
                alive.append(Token(len(rows), nth, piece.tag, score, at, frame))
                rows.append({token.number for token in alive})
    seen = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for t, row in enumerate(rows):
        seen[t, list(row)] = True
    return seen


def _stay(region: Region, held: list[Token], now: Now, taken: int, within: bool) -> set[int]:
    """Numbers of those that a region keeps. within: it counts the tokens of one tag."""
    if isinstance(region, Sink):
        return {x.number for x in held if (x.nth if within else x.number) < region.tokens}
    if isinstance(region, Window):
        if region.seconds is not None:
            return {x.number for x in held if now.at - x.at < region.seconds}
        if region.frames is not None:
            return {x.number for x in held if now.frame - x.frame < region.frames}
        coming = 0 if now.held else now.coming
        return _newest(held, math.inf if region.tokens is None else region.tokens - coming)
    if isinstance(region, Rest):
        return _newest(held, region.total - now.coming - taken)
    if isinstance(region, Keep) and (region.budget is None or isinstance(region.score, str)):
        budget = math.inf if region.budget is None else region.budget
        budget -= now.coming if region.room else 0
        order = sorted(held, key=lambda x: -x.score)
        return {x.number for i, x in enumerate(order) if i < budget}
    if isinstance(region, Tagged):
        mine = [x for x in held if x.tag == region.tag]
        count = now.coming if now.tag == region.tag else 0
        return _stay(region.region, mine, now._replace(coming=count), 0, True)
    if isinstance(region, Then):
        near = _stay(region.near, held, now, taken, within)
        left = [x for x in held if x.number not in near]
        now = now._replace(held=now.held or _has_window(region.near, now.tag))
        return near | _stay(region.far, left, now, taken + len(near), within)
    if isinstance(region, Union):
        return set().union(*(_stay(part, held, now, taken, within) for part in region.regions))
    supported = "Sink, Window, Keep by given scores or surprisal, Rest and Tagged"
    raise unsupported("oracle", "memory", supported, repr(region), "put `keep` into the pieces")


def _has_window(region: Region, tag: str | None) -> bool:
    """Whether what was read last is in the region."""
    if isinstance(region, Union | Then):
        parts = region.regions if isinstance(region, Union) else (region.near, region.far)
        return any(_has_window(part, tag) for part in parts)
    if isinstance(region, Tagged):
        return tag == region.tag and _has_window(region.region, tag)
    return isinstance(region, Window | Rest)


def _newest(held: list[Token], count: float) -> set[int]:
    return {x.number for i, x in enumerate(reversed(held)) if i < count}


def _list(values: object) -> list:
    tolist = getattr(values, "tolist", None)
    if callable(tolist):
        return list(tolist())
    return list(values)  # type: ignore[call-overload]
