# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """What feeding some tokens to a stream did.

    tokens: how many were fed. nll: fp32 [tokens], -log p of each given all before it, in nats; nan
    for the first token of a stream, which nothing predicts. alive: tokens that the next query sees.
    evicted: tokens of the stream that it will not see. ms: wall time of the whole step, all
    streams. logits: fp32 [tokens, vocab], row i predicts the token after the i-th; None unless
    asked for.
    """

    tokens: int
    nll: Tensor
    alive: int
    evicted: int
    ms: float
    logits: Tensor | None = None


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


def report(**fields: Any) -> Report:
    """A Report of all its fields, at a third of what calling the class costs: every stream of every
    step has one.
    """
    made = object.__new__(Report)
    vars(made).update(fields)
    return made
