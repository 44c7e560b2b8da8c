# SPDX-License-Identifier: Apache-2.0
"""Stream2LLM: prompts come in pieces, by append or update, and are read as they come.

Stream2LLM (2025), its released fork of vLLM: an update keeps the longest common prefix; complete
prompts go before partial ones; for want of memory it preempts from the tail, and recomputes or
swaps by fitted polynomials. Orders among equals: arrival (default), newest piece, most pieces.
`Polynomial.fit` gives the polynomials of a machine; the defaults only stand for some.

Oracle: each request with its final text, read in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..streams import Event, Polynomial, Server
from ..streams.engine import Model
from ..streams.policies import AppendUpdate
from ..streams.traces import retrieval
from .proof import Check, Preset
from .scheduling import differing, parkings, ran, server

__all__ = ["stream2llm"]

COSTS = ((0.0, 1e-4, 1e-6), (2e-3, 8e-5))
"""Of the proof: recompute is cheaper below some 40 tokens, copying above."""


def stream2llm(
    model: Model,
    *,
    queue: str = "arrival",
    recompute: Sequence[float] = (0.0, 1e-4),
    swap: Sequence[float] = (0.0, 1e-5),
    **options: Any,
) -> Server:
    """A server; recompute, swap: seconds for n tokens, lowest power first. Options as in
    `headrace.wrap` and `headrace.streams.Server`."""
    return server(model, AppendUpdate(queue, tuple(recompute), tuple(swap)), **options)


def check(model: Model, *, requests: int = 6, pages: int = 16) -> list[Check]:
    """In so few pages that streams are preempted."""
    trace = retrieval(requests=requests, vocab=model.config.vocab)
    watched = _Watched(recompute=COSTS[0], swap=COSTS[1])
    run = ran(model, trace, watched, pages=pages)
    wrong = kept = 0
    texts: dict[str, tuple[int, ...]] = {}
    for event, out in zip(trace, run.outcomes, strict=True):
        text = texts.get(event.stream, ())
        if event.kind == "update":
            same = [a == b for a, b in zip(text, event.tokens, strict=False)]
            common = same.index(False) if False in same else len(same)
            wrong += out.kept != common
            kept += common
            texts[event.stream] = event.tokens
        elif event.kind in ("feed", "say"):
            texts[event.stream] = text + event.tokens
    whole = [
        Event(0.0, e.stream, e.kind, texts[e.stream], max_new=e.max_new)
        if e.kind == "say"
        else Event(0.0, e.stream, "mark" if e.kind in ("feed", "update", "close") else e.kind)
        for e in trace
    ]
    at_once = ran(model, whole, AppendUpdate())
    assert isinstance(run.policy, _Watched)
    chosen, taken = run.policy.chosen, parkings(run)
    dearer = sum(swap == (_cost(0, n) < _cost(1, n)) for n, swap in chosen)
    return [
        Check("updates that kept other than the longest common prefix", wrong, 0),
        Check("streams preempted by the dearer way", dearer, 0),
        Check("preempted, by either way, fewer than once", float(not taken), 0),
        Check("answers that differ from those of whole prompts", differing(run, at_once), 0),
    ]


def _cost(way: int, tokens: int) -> float:
    return Polynomial(COSTS[way])(tokens)


class _Watched(AppendUpdate):
    """Remembers what it chose for how many tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen: list[tuple[int, bool]] = []

    def swaps(self, seat: Any, desk: Any) -> bool:
        swap = super().swaps(seat, desk)
        self.chosen.append((seat.held, swap))
        return swap


PRESET = Preset(
    "stream2llm", "Stream2LLM (2025), its released code", stream2llm, check, kind="scheduler"
)
