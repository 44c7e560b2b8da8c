# SPDX-License-Identifier: Apache-2.0
"""Checks as data, and those that every preset over a token stream shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory import Region
from ..streams import Engine, oracle, wrap
from ..streams.engine import Model
from ..streams.positions import Positions

CHUNKS = (1, 7, 64, 257)
BOUND = 1e-4
"""Largest difference of two logits in fp32 that counts as rounding."""


@dataclass(frozen=True)
class Check:
    """One claim with its figure: it holds when the figure is at most the bound."""

    name: str
    figure: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.figure <= self.bound  # a nan fails


@dataclass(frozen=True)
class Preset:
    """A published system. open(model, **options) gives an engine, or what else runs it, and
    check(model) proves it.

    sample: a small random model of the kind that it takes, where that is not a decoder of tokens.
    oracle: what it must equal, where that takes more than `headrace.oracle`; recompute: the same
    with what is alive encoded anew, where that takes more than `headrace.recompute`. kind: what it
    is mostly about, one of `registry.KINDS`.
    """

    name: str
    source: str
    open: Callable[..., Any]
    check: Callable[..., list[Check]]
    sample: Callable[[], Any] | None = None
    oracle: Callable[..., Any] | None = None
    recompute: Callable[..., Any] | None = None
    kind: str = "tokens"


def equality(
    model: Model, memory: Region, positions: Positions, tokens: Tensor, page_size: int = 16
) -> list[Check]:
    """That streams equal the oracle however they are fed, and that nothing else shows in them.

    tokens int64 [T], best several windows long, so that most of them are evicted on the way.
    """

    def engine(**options) -> Engine:
        return wrap(model, memory=memory, positions=positions, page_size=page_size, **options)

    want = oracle(model, tokens, memory, positions)
    checks = []
    for chunk in CHUNKS:
        with engine(chunk=chunk) as e:
            got = e.open().feed(tokens, logits=True).logits
        checks.append(Check(f"chunks of {chunk}: max |logit - oracle|", _gap(got, want), BOUND))

    half = len(tokens) // 2
    with engine() as e:
        stream = e.open()
        stream.feed(tokens[:half])
        mark, other = stream.mark(), stream.fork()
        stream.feed(tokens.flip(0)[:half])
        other.feed(tokens.flip(0)[:7])
        stream.rollback(mark)
        got = stream.feed(tokens[half:], logits=True).logits
        checks.append(
            Check("after fork and rollback: max |logit - oracle|", _gap(got, want[half:]), BOUND)
        )
        stream.close()
        other.close()
        mark.release()
        checks.append(Check("pages held after all are closed", e.pool.live_pages, 0))

    with engine(exact=True) as e:
        alone = e.open().feed(tokens, logits=True).logits
    with engine(exact=True) as e:
        batch = {e.open(): tokens.roll(i)[: len(tokens) - 5 * i] for i in range(16)}
        beside = e.step(batch, logits=True)[next(iter(batch))].logits
        assert alone is not None
        assert beside is not None
        name = "exact mode, alone or in a batch of 16: logits that differ"
        checks.append(Check(name, int((alone != beside).sum()), 0))
    return checks


def _gap(got: Tensor | None, want: Tensor) -> float:
    assert got is not None
    return float((got - want).abs().max())


def random_tokens(model: Model, count: int, seed: int = 0) -> Tensor:
    """int64 [count], any tokens of the model."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab, (count,), generator=made).to(model.inv_freq.device)
