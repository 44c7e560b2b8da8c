# SPDX-License-Identifier: Apache-2.0
"""Stream2LLM: prompts come in pieces, by append or update, and are read as they come.

Stream2LLM (2025), its released fork of vLLM: an update keeps the longest common prefix; complete
prompts go before partial ones; for want of memory it preempts from the tail, and recomputes or
swaps by fitted polynomials, which are its user's to measure, and without which it recomputes.
Orders among equals: arrival (default), newest piece, most pieces.

Chosen here: `costs` measures the polynomials of a model on a machine. The defaults are what it gave
for the packaged `bytes-stream` on two cores of a CPU with AVX-512: 200 us and 1.2 us a token to
copy out and in, within one memory, and 90 us a token and more to read again, so that with them a
stream is swapped whatever its length. Where copies begin dearer, because they pass a bus or go to a
disk, short streams are recomputed: give the server its own pair.

Oracle: each request with its final text, read in one piece.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..memory import Window
from ..memory.parking import Parked
from ..streams import Engine, Event, Polynomial, Server, wrap
from ..streams.engine import Model
from ..streams.policies import AppendUpdate
from ..streams.traces import retrieval
from .proof import Check, Preset
from .scheduling import differing, parkings, ran, server

__all__ = ["costs", "stream2llm"]

RECOMPUTE, SWAP = (2e-3, 9e-5, 1.6e-8), (2e-4, 1.2e-6)
COSTS = ((0.0, 1e-4, 1e-6), (2e-3, 8e-5))
"""Of the proof: recompute is cheaper below some 40 tokens, copying above."""


def stream2llm(
    model: Model,
    *,
    queue: str = "arrival",
    recompute: Sequence[float] = RECOMPUTE,
    swap: Sequence[float] = SWAP,
    **options: Any,
) -> Server:
    """A server that reads prompts as they come, in pieces.

    queue: order among equals, "arrival", "last_chunk" or "most_chunks". recompute, swap: seconds
    for a stream of n tokens, as polynomials, lowest power first; see `costs`. Options as in
    `headrace.streams.Server` and `headrace.wrap`, whose errors it raises; memory: what a stream
    keeps, everything unless it says less. ValueError for another queue or a cost that is none.
    """
    for name, terms in (("recompute", recompute), ("swap", swap)):
        if not len(terms) or not all(math.isfinite(term) for term in terms):
            raise bad_value("stream2llm", name, "terms of a polynomial", tuple(terms))
    return server(model, AppendUpdate(queue, tuple(recompute), tuple(swap)), **options)


def costs(
    model: Model, *, lengths: Sequence[int] = (16, 256, 1024, 4096), turns: int = 3, **options: Any
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What `recompute` and `swap` are on this machine, by the least of so many turns at each length
    in tokens: a parabola through the times of reading, a line through those of copying out and in.

    Options as in `headrace.wrap`. ValueError for fewer than three lengths.
    """
    told: dict[str, Any] = {"pool_pages": -(-max(lengths) // 64) + 1, "memory": Window(None)}
    took: list[list[float]] = [[], []]
    with wrap(model, **(told | options)) as engine:
        for n in lengths:
            tokens = torch.arange(n) % model.config.vocab
            each = [_timed(engine, tokens) for _ in range(turns)]
            for times, least in zip(took, map(min, zip(*each, strict=True)), strict=True):
                times.append(least)
    read, copied = (Polynomial.fit(lengths, t, 2 - i) for i, t in enumerate(took))
    return read.terms, copied.terms


def _timed(engine: Engine, tokens: Tensor) -> tuple[float, float]:
    """Seconds of reading tokens, and of copying their pages out and in."""
    begun = time.perf_counter()
    stream = engine.open()
    stream.feed(tokens)
    read = time.perf_counter()
    parked = Parked(engine.pool, stream._lease)
    stream._lease = parked.restore()
    copied = time.perf_counter()
    stream.close()
    return read - begun, copied - read


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
