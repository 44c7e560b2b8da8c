# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .. import interrupts
from ..memory import Edit, view
from .piece import Piece, Survival, check_plain
from .report import Report
from .stream import Stream

OWN_ROWS = 1 << 20
"""Bytes of logits from which a stream copies its own row, so as not to hold those of all others."""


class Reading:
    """A stream on its way through a step: what it will be if the step succeeds."""

    def __init__(
        self, stream: Stream, tokens: Tensor, keep: bool, piece: Piece | None = None
    ) -> None:
        self.stream, self.tokens = stream, tokens
        self.table, self.last = stream.table, stream._last
        self.count = tokens.shape[0]
        self.adapter = stream._adapter
        self.shelf, self.recalled = stream._shelf, stream._recalled
        self.read = view.across(lane.table for lane in stream.reads) if stream.reads else []
        self._survival: Survival | None = None
        if self.table.plan.choice is not None:
            self._survival = Survival(stream, piece or Piece(), self.count)
        elif piece is not None:
            check_plain(stream, piece)
        self._keep = keep
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

    def take(self, nll: Tensor, logits: Tensor, last: Tensor) -> None:
        """What a model call says of it: nll [n], logits [n, V] after each token, the last one."""
        self._nll.append(nll)
        self.last = last
        if self._survival is not None:
            self.table = self._survival.note(self.table, nll)
        if self._keep:
            self._logits.append(logits)

    def commit(self) -> None:
        """The stream is that now."""
        stream = self.stream
        if self.shelf is not None:
            self.shelf.commit()
        stream._lease.table, stream._last = self.table, self.last
        if stream._history is not None:
            stream._history = stream._history.extend(self.tokens.tolist())

    def report(self, ms: float, vocab: int) -> Report:
        alive, device = self.table.alive, self.tokens.device
        return Report(
            tokens=self.count,
            nll=self._nll[0] if len(self._nll) == 1 else _joined(self._nll, (0,), device),
            alive=alive,
            evicted=self.table.tokens - alive,
            ms=ms,
            logits=_joined(self._logits, (0, vocab), device) if self._keep else None,
        )


def _joined(parts: list[Tensor], none: tuple[int, ...], device: torch.device) -> Tensor:
    if len(parts) == 1:
        return parts[0].clone()  # not a view that holds the figures of all other streams
    return torch.cat(parts) if parts else torch.empty(none, device=device)


def score(runs: Sequence[Reading], counts: Sequence[int], tokens: Tensor, logits: Tensor) -> None:
    """Tells every run what its tokens scored against what predicted them, all at once.

    tokens [T] of one run after the other, counts how many of each; logits fp32 [T, V] after each.
    """
    nowhere = torch.full_like(logits[0], torch.nan)
    first = torch.stack([nowhere if run.last is None else run.last for run in runs])
    ends = list(accumulate(counts))
    if len(counts) == ends[-1]:  # a token each
        before, lasts = first, logits.clone()
    else:
        before = torch.cat([logits[:1], logits[:-1]])
        before[[end - n for end, n in zip(ends, counts, strict=True)]] = first
        lasts = logits[[end - 1 for end in ends]]
    # Every row on its own, so that its bits are the same beside any others.
    nll = before.log_softmax(-1).gather(1, tokens[:, None]).neg_()[:, 0]
    rows: Sequence[Tensor] = lasts.unbind(0)
    if len(runs) > 1 and lasts.nbytes > OWN_ROWS:
        rows = [row.clone() for row in rows]
    for run, mine, after, last in zip(
        runs, _pieces(nll, counts), _pieces(logits, counts), rows, strict=True
    ):
        run.take(mine, after, last)


def _pieces(rows: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    one_each = len(counts) == rows.shape[0]
    return rows[:, None].unbind(0) if one_each else rows.split(list(counts))
