# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from ..memory import view
from .report import Report
from .stream import Stream


class Reading:
    """A stream on its way through a step: what it will be if the step succeeds."""

    def __init__(self, stream: Stream, tokens: Tensor, vocab: int, keep: bool) -> None:
        self.table, self.last, self.tokens = stream.table, stream._last, tokens
        self.adapter = stream._adapter
        self.shelf, self.recalled = stream._shelf, stream._recalled
        self.read = view.across(lane.table for lane in stream.reads)
        self._keep = keep
        self._nll = [torch.empty(0, device=tokens.device)]
        self._logits = [torch.empty(0, vocab, device=tokens.device)]

    def score(self, tokens: Tensor, logits: Tensor) -> None:
        """Scores tokens [n] against what predicted them; logits [n, V] are those after each."""
        last = torch.full_like(logits[0], torch.nan) if self.last is None else self.last
        before = torch.cat([last[None], logits[:-1]])
        said = before.gather(1, tokens[:, None])[:, 0]
        self._nll.append(torch.logsumexp(before, -1) - said)
        self.last = logits[-1].clone()
        if self._keep:
            self._logits.append(logits)

    def report(self, ms: float) -> Report:
        alive = self.table.alive
        return Report(
            tokens=len(self.tokens),
            nll=torch.cat(self._nll),
            alive=alive,
            evicted=self.table.tokens - alive,
            ms=ms,
            logits=torch.cat(self._logits) if self._keep else None,
        )
