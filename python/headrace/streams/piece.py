# SPDX-License-Identifier: Apache-2.0
"""Tokens to be read, with what regions that choose want to know of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import bad_type, bad_value, unsupported
from ..memory import Coming, Edit, Kept, PagePool, Region, Table, evict, held
from .tokens import Tokens

if TYPE_CHECKING:
    from .stream import Stream

CHOOSING = "memories with Keep, Rest, Tagged, or a Window in seconds or frames"


@dataclass(frozen=True)
class Piece:
    """Tokens as `Engine.step` may be given them, for memories with regions that choose.

    tokens: as `Stream.feed` takes them. scores: a number for each, which Keep("given") goes by. at:
    seconds, frame: an id, neither ever less than before; None is as before. tag: of all of them,
    for `Tagged`. room: tokens to make room for before the first is read; None is as many as are
    read at a time. keep: numbers of the tokens alive that survive, whatever the regions say; None
    lets them choose. places: int64 [T, 3], time, row and column of each, for `Keep3D` (there alone,
    and whatever the memory).
    """

    tokens: Tokens = ()
    scores: Any = None
    at: float | None = None
    frame: float | None = None
    tag: str | None = None
    room: int | None = None
    keep: Sequence[int] | None = None
    places: Any = None

    @property
    def plain(self) -> bool:
        """Whether it is tokens alone."""
        rest = self.scores, self.at, self.frame, self.tag, self.room, self.keep
        return all(x is None for x in rest)


class Survival:
    """What becomes of the tokens that a stream holds while it reads a piece."""

    def __init__(self, stream: Stream, piece: Piece, count: int) -> None:
        """Raises TypeError or ValueError, one line, when the piece does not fit the memory."""
        table, engine = stream.table, stream.engine
        choice = table.plan.choice
        assert choice is not None
        self._choice: Region = choice
        self._pool: PagePool = engine.pool
        self._inv_freq, self._pack = engine._inv_freq, engine.packs
        kept = Kept.of(table)
        self._tag = piece.tag
        self._at = _later("at", piece.at, kept.at)
        self._frame = _later("frame", piece.frame, kept.frame)
        self._room, self._first = piece.room, True
        needs = choice.needs(piece.tag) if count else frozenset()
        for name, value in (("at", self._at), ("frame", self._frame)):
            if name in needs and math.isnan(value):
                expected = {"at": "the time in seconds", "frame": "the id of the frame"}[name]
                raise bad_value("feed", name, expected, "none", f"{choice!r} goes by it")
        self._scores = _numbers(piece.scores, count)
        if "scores" in needs and self._scores is None:
            hint = "give them to feed(scores=)"
            raise bad_value("feed", "scores", f"a number for each of {count} tokens", "none", hint)
        self._surprisal = "surprisal" in needs
        self._keep = None if piece.keep is None else _alive(piece.keep, kept)
        self._noted = 0

    def settle(self, edit: Edit, table: Table) -> Table:
        """The table without what the piece says not to keep."""
        if self._keep is None or self._keep.all():
            return table
        return evict(edit, self._pool, table, self._keep, self._pack)

    def make_room(self, edit: Edit, table: Table, count: int) -> Table:
        """The table without what the regions let go when so many tokens are to be read."""
        room = self._room if self._first and self._room is not None else count
        self._first = False
        coming = Coming(room, self._tag, self._at, self._frame)
        stay = self._choice.stays(held(table, self._pool, self._inv_freq), coming)
        return table if stay.all() else evict(edit, self._pool, table, stay, self._pack)

    def note(self, table: Table, nll: torch.Tensor) -> Table:
        """The table with what is now known of the tokens read last, nll [n] of each."""
        count = len(nll)
        number, lo = table.tokens - count, self._noted
        self._noted += count
        surprisal: np.ndarray | float = np.nan
        if self._surprisal:
            surprisal = nll.double().cpu().numpy()
            surprisal = np.where(np.isnan(surprisal), np.inf, surprisal)
        scores = np.nan if self._scores is None else self._scores[lo : lo + count]
        kept = Kept.of(table).noted(
            number, count, self._tag, self._at, self._frame, scores, surprisal
        )
        return replace(table, kept=kept)


def check_choice(op: str, stream: Stream) -> None:
    """That regions of its memory choose."""
    if stream._lease.table.plan.choice is None:
        raise unsupported(op, "memory", CHOOSING, repr(stream.engine.memory))


def rescored(table: Table, scores: Any) -> Table:
    """The table with other scores of its tokens."""
    kept = Kept.of(table)
    tokens = kept.tokens.copy()
    made = _numbers(scores, len(tokens), "rescore")
    tokens["score"] = tokens["surprisal"] = made
    return replace(table, kept=replace(kept, tokens=tokens))


def check_plain(stream: Stream, piece: Piece) -> None:
    """That nothing but tokens comes to a memory that goes by age alone."""
    if not piece.plain:
        raise unsupported("feed", "memory", CHOOSING, repr(stream.engine.memory))


def _later(name: str, value: float | None, before: float) -> float:
    if value is None:
        return before
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_type("feed", name, "a number", repr(value))
    if not math.isfinite(value) or value < before:
        raise bad_value("feed", name, f"{before} or later", value)
    return float(value)


def _numbers(scores: Any, count: int, op: str = "feed") -> np.ndarray | None:
    if scores is None:
        return None
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().cpu()
    made = np.asarray(scores, np.float64)
    if made.shape != (count,) or np.isnan(made).any():
        got = f"{list(made.shape)}, {int(np.isnan(made).sum())} of them nan"
        raise bad_value(op, "scores", f"a number for each of {count} tokens", got)
    return made


def _alive(numbers: Sequence[int], kept: Kept) -> np.ndarray:
    chosen = np.asarray(numbers)
    if chosen.size and (chosen.dtype.kind not in "iu" or chosen.ndim != 1):
        raise bad_type("keep", "numbers", "whole numbers of tokens", str(chosen.dtype))
    strange = np.setdiff1d(chosen, kept.tokens["number"])
    if len(strange):
        raise bad_value("keep", "numbers", "tokens that are alive", strange[:3].tolist())
    mask: np.ndarray = np.isin(kept.tokens["number"], chosen)
    return mask
