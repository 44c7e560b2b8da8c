# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat

import torch
from torch import Tensor

from .. import interrupts
from ..errors import bad_value
from ..memory import Edit, view
from . import spatial
from .piece import Piece, Survival, check_plain
from .report import Report, report
from .stream import Stream

OWN_ROWS = 1 << 20
"""Bytes of logits from which a stream copies its own row, so as not to hold those of all others."""


class Reading:
    """A stream on its way through a step: what it will be if the step succeeds."""

    def __init__(
        self, stream: Stream, tokens: Tensor, keep: bool, piece: Piece | None = None
    ) -> None:
        self.stream, self.tokens = stream, tokens
        self.table, self.ahead = stream.table, stream._ahead
        self.count = tokens.shape[0]
        self.adapter = stream._adapter
        self.shelf, self.recalled = stream._shelf, stream._recalled
        self.read = view.across(lane.table for lane in stream.reads) if stream.reads else []
        self.places, self.told = None, piece is not None and piece.places is not None
        if stream.engine.spatial:
            given = None if piece is None else piece.places
            self.places = spatial.places(self.table, given, self.count, tokens.device)
        elif self.told:
            expected, hint = "None", "wrap the model with positions=Keep3D()"
            raise bad_value("feed", "places", expected, "some", hint)
        self._survival: Survival | None = None
        if self.table.plan.choice is not None:
            self._survival = Survival(stream, piece or Piece(), self.count)
        elif piece is not None:
            check_plain(stream, piece)
        self.chooses = self._survival is not None  # its regions say who stays
        self.keep = keep
        self._nll: list[Tensor] = []
        self._logits: list[Tensor] = []

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

    def take(self, nll: Tensor, logits: Tensor | None, ahead: tuple[Tensor, int]) -> None:
        """What a model call says of it: nll [n], logits [n, V] after each token, if they are kept,
        and rows of which one is the last of them.
        """
        self._nll.append(nll)
        self.ahead = ahead
        if self._survival is not None:
            self.table = self._survival.note(self.table, nll)
        if logits is not None:
            self._logits.append(logits)

    def commit(self) -> None:
        """The stream is that now."""
        stream = self.stream
        if self.shelf is not None:
            self.shelf.commit()
        stream._lease.table, stream._ahead = self.table, self.ahead
        if stream._history is not None:
            stream._history = stream._history.extend(self.tokens.tolist())

    def report(self, ms: float, vocab: int) -> Report:
        table, device = self.table, self.tokens.device
        alive = table.alive
        return report(
            tokens=self.count,
            nll=self._nll[0] if len(self._nll) == 1 else _joined(self._nll, (0,), device),
            alive=alive,
            evicted=table.end - table.start - alive,
            ms=ms,
            logits=_joined(self._logits, (0, vocab), device) if self.keep else None,
        )


def _joined(parts: list[Tensor], none: tuple[int, ...], device: torch.device) -> Tensor:
    if len(parts) == 1:
        return parts[0].clone()  # not a view that holds the figures of all other streams
    return torch.cat(parts) if parts else torch.empty(none, device=device)


def score(runs: Sequence[Reading], counts: Sequence[int], tokens: Tensor, logits: Tensor) -> None:
    """Tells every run what its tokens scored against what predicted them, all at once.

    tokens [T] of one run after the other, counts how many of each; logits fp32 [T, V] after each.
    """
    first = _first([run.ahead for run in runs], logits)
    if len(counts) == len(tokens):  # one each
        before, lasts = first, logits.clone()
    else:
        ends = list(accumulate(counts))
        before = torch.cat([logits[:1], logits[:-1]])
        before[[end - n for end, n in zip(ends, counts, strict=True)]] = first
        lasts = logits[[end - 1 for end in ends]]
    # Every row on its own, so that its bits are the same beside any others.
    nll = before.log_softmax(-1).gather(1, tokens[:, None]).neg_()[:, 0]
    ahead: Iterable[tuple[Tensor, int]] = zip(repeat(lasts), range(len(runs)), strict=False)
    if len(runs) > 1 and lasts.nbytes > OWN_ROWS:
        ahead = [(row.clone()[None], 0) for row in lasts]
    keep = any(run.keep for run in runs)
    after = _pieces(logits, counts) if keep else repeat(None)
    for run, mine, rows, last in zip(runs, _pieces(nll, counts), after, ahead, strict=False):
        run.take(mine, rows, last)


def _first(ahead: Sequence[tuple[Tensor, int] | None], logits: Tensor) -> Tensor:
    """What predicted the first token of each run [B, V]; nan where nothing did."""
    known = ahead[0]
    if known is not None and len(known[0]) == len(ahead):
        rows = known[0]
        if all(one is not None and one[0] is rows and one[1] == i for i, one in enumerate(ahead)):
            return rows  # the same streams as in the step before
    nowhere = torch.full_like(logits[0], torch.nan)
    return torch.stack([nowhere if one is None else one[0][one[1]] for one in ahead])


def _pieces(rows: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    one_each = len(counts) == rows.shape[0]
    return rows[:, None].unbind(0) if one_each else rows.split(list(counts))
