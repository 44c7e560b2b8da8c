# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .. import interrupts
from ..errors import bad_value
from ..memory import Edit, view
from . import spatial
from .piece import Piece, Survival, check_plain
from .report import Report, Scored, late
from .stream import Ahead, Stream

OWN_ROWS = 1 << 20
"""Bytes of logits from which a stream copies its own row, so as not to hold those of all others."""


class Reading:
    """A stream on its way through a step: what it will be if the step succeeds.

    plain: whether it reads nothing but its own window, and lets go of nothing but what leaves that.
    told: what each model call says, and which rows of it are its own.
    """

    __slots__ = (
        "_logits", "_survival", "adapter", "ahead", "count", "given", "keep", "places", "plain",
        "read", "recalled", "shelf", "stream", "table", "tokens", "told",
    )  # fmt: skip

    def __init__(
        self, stream: Stream, tokens: Tensor, keep: bool, piece: Piece | None = None
    ) -> None:
        self.stream, self.tokens, self.count, self.keep = stream, tokens, tokens.numel(), keep
        self.table = stream._lease.table if stream.follows is None else stream.table
        self.ahead, self.adapter = stream._ahead, stream._adapter
        self.shelf, self.recalled = stream._shelf, stream._recalled
        self.read = view.across(lane.table for lane in stream.reads) if stream.reads else []
        self.places: Tensor | None = None
        self.given = False
        self._survival: Survival | None = None
        plan = self.table.plan
        if plan.choice is not None:  # its regions say who stays
            self._survival = Survival(stream, piece or Piece(), self.count)
        elif piece is not None:
            check_plain(stream, piece)
        self.plain = (
            plan.choice is None
            and plan.fold is None
            and self.shelf is None
            and self.recalled is None
            and not self.read
        )
        self.told: tuple[tuple[Scored, int, int], ...] = ()
        self._logits: tuple[Tensor, ...] = ()

    def place(self, piece: Piece | None) -> None:
        """Where its tokens are, if they are in time, rows and columns. ValueError if they are not
        and the piece says where."""
        given = None if piece is None else piece.places
        self.given = given is not None
        if self.stream.engine.spatial:
            self.places = spatial.places(self.table, given, self.count, self.tokens.device)
        elif self.given:
            expected, hint = "None", "wrap the model with positions=Keep3D()"
            raise bad_value("feed", "places", expected, "some", hint)

    def chunk(self, at: int, count: int) -> Tensor:
        """Its tokens from `at` on."""
        return self.tokens if count == self.count else self.tokens[at : at + count]

    def settle(self, edit: Edit) -> None:
        """Lets go of what its piece says not to keep."""
        if self._survival is not None:
            with interrupts.deferred():
                self.table = self._survival.settle(edit, self.table)

    def make_room(self, edit: Edit, count: int) -> None:
        """Before so many tokens are read."""
        if self._survival is not None:
            self.table = self._survival.make_room(edit, self.table, count)

    def note(self, logits: Tensor) -> None:
        """Takes what is its own of what the model call before has said: logits [T, V]."""
        told, lo, hi = self.told[-1]
        if self._survival is not None:
            self.table = self._survival.note(self.table, told.nll[lo:hi])
        if self.keep:
            self._logits += (logits[lo:hi],)

    def report(self, ms: float, vocab: int) -> Report:
        """What it did, worked out now."""
        table, device = self.table, self.tokens.device
        nll = _joined([told.nll[lo:hi] for told, lo, hi in self.told], (0,), device)
        logits = _joined(self._logits, (0, vocab), device) if self.keep else None
        alive = table.alive
        return Report(self.count, nll, alive, table.tokens - alive, ms, logits)


def reports(runs: Sequence[Reading], ms: float, vocab: int) -> dict[Stream, Report]:
    """What each did; worked out when it is asked for, unless that would hold on to much."""
    made: dict[Stream, Report] = {}
    for run in runs:
        table = run.table
        if len(run.told) == 1 and not run.keep and table.kept is None and table.folded is None:
            scored, lo, hi = run.told[0]
            scored.ms = ms
            made[run.stream] = late(scored, lo, hi, table)
        else:
            made[run.stream] = run.report(ms, vocab)
    return made


def commit(runs: Sequence[Reading]) -> None:
    """The streams are that now."""
    for run in runs:
        stream = run.stream
        if run.shelf is not None:
            run.shelf.commit()
        stream._lease.table, stream._ahead = run.table, run.ahead
        if stream._history is not None:
            stream._history = stream._history.extend(run.tokens.tolist())


def _joined(parts: Sequence[Tensor], none: tuple[int, ...], device: torch.device) -> Tensor:
    if len(parts) == 1:
        return parts[0].clone()  # not a view that holds the figures of all other streams
    return torch.cat(list(parts)) if parts else torch.empty(none, device=device)


def known(ahead: Sequence[Ahead | None]) -> Tensor | None:
    """What predicts the next token of each [B, V], if that is as an earlier call left it."""
    first = ahead[0]
    if first is None or first[0][0].shape[0] != len(ahead):
        return None
    cell = first[0]
    for i, one in enumerate(ahead):
        if one is None or one[0] is not cell or one[1] != i:
            return None
    return cell[0]


def apart(lasts: Tensor) -> list[Ahead]:
    """Of logits [B, V] that are large, each row on its own; else nothing."""
    if len(lasts) == 1 or lasts.nbytes <= OWN_ROWS:
        return []
    return [([row.clone()[None]], 0) for row in lasts]


def score(
    told: Scored,
    ahead: Sequence[Ahead | None],
    rows: Tensor | None,
    counts: Sequence[int],
    tokens: Tensor,
    logits: Tensor,
) -> Tensor:
    """Tells of tokens [T] what predicted them, and gives what predicts those to come, the last row
    of each run [B, V].

    ahead: what predicted the first token of each run, and all of that in a row, if it is `known`.
    counts: tokens of each, which follow one another. logits fp32 [T, V] after each.
    """
    if rows is None:
        nowhere = torch.full_like(logits[0], torch.nan)
        rows = torch.stack([nowhere if one is None else one[0][0][one[1]] for one in ahead])
    if len(counts) == len(tokens):  # one each
        before, lasts = rows, logits.clone()
    else:
        ends = list(accumulate(counts))
        before = torch.cat([logits[:1], logits[:-1]])
        before[[end - n for end, n in zip(ends, counts, strict=True)]] = rows
        lasts = logits[[end - 1 for end in ends]]
    told.take(before, tokens, len(counts))
    return lasts
