# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory import Table

WAITING = 1 << 12
"""Bytes of logits for each report that may wait until one is asked what they say."""


@dataclass(frozen=True)
class Report:
    """What feeding some tokens to a stream did.

    tokens: how many were fed. nll: fp32 [tokens], -log p of each given all before it, in nats; nan
    for the first token of a stream, which nothing predicts. alive: tokens that the next query sees.
    evicted: tokens of the stream that it will not see. ms: wall time of the whole step, all
    streams. logits: fp32 [tokens, vocab], row i predicts the token after the i-th; None unless
    asked for.
    """

    __slots__ = "__dict__", "__weakref__", "_late"

    tokens: int
    nll: Tensor
    alive: int
    evicted: int
    ms: float
    logits: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        held, late = vars(self), None if name == "_late" else getattr(self, "_late", None)
        if late is not None:
            scored, lo, hi, table = late
            alive = table.alive
            held.update(
                tokens=hi - lo, nll=scored.nll[lo:hi], alive=alive, evicted=table.tokens - alive,
                ms=scored.ms,
            )  # fmt: skip
            _set_late(self, None)
        if name not in held:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return held[name]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Updated(Report):
    """What changing the text of a stream did; of nll and logits, row i is of the i-th token read.

    kept: length of the longest common prefix of the two texts. reread: tokens of it, at its end,
    that were read again: 1 for the logits that predict what follows, more when the window had let
    go of what they see; nll is nan for the first then. tokens: all that were read.
    """

    kept: int = 0
    reread: int = 0

    @staticmethod
    def of(report: Report, kept: int, reread: int) -> Updated:
        same = {field.name: getattr(report, field.name) for field in fields(Report)}
        return Updated(**same, kept=kept, reread=reread)


class Scored:
    """What a model call says for all streams: nll [T], and the ms of the step that it was in."""

    __slots__ = ("_nll", "_what", "ms")
    ms: float

    def __init__(self) -> None:
        self._nll: Tensor | None = None
        self._what: tuple[Tensor, Tensor] | None = None

    def take(self, before: Tensor, tokens: Tensor, reports: int) -> None:
        """tokens [T] of so many reports are to be scored against what predicted them, logits fp32
        [T, V]: when that is first asked, unless much waited for it. Neither may change any more.
        """
        self._what = before, tokens
        if before.nbytes > WAITING * reports:
            self._score()

    @property
    def nll(self) -> Tensor:
        if self._nll is None:
            self._score()
        assert self._nll is not None
        return self._nll

    def _score(self) -> None:
        what = self._what
        if what is not None:
            with torch.inference_mode():
                # Every row on its own, so that its bits are the same beside any others.
                self._nll = F.cross_entropy(*what, reduction="none")
            self._what = None


_new, _set_late = object.__new__, vars(Report)["_late"].__set__


def late(scored: Scored, lo: int, hi: int, table: Table) -> Report:
    """A Report that works out what it says when it is first asked: every stream of every step has
    one, and few are looked at. lo, hi: which rows are its own. table: of the stream now.
    """
    made: Report = _new(Report)
    _set_late(made, (scored, lo, hi, table))
    return made
