# SPDX-License-Identifier: Apache-2.0
"""What is kept of a run: sums, histograms and a curve whose length grows with the logarithm of the
stream, never with the stream.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HUNDRED_K = 100_000
SMALLEST_BIN = 512  # tokens
BINS_PER_LENGTH = 128  # a bin is at most this part of the stream before it


class Histogram:
    """Durations in seconds, in bins of 2.2% from 0.1 us to beyond a day."""

    LOW, PER_OCTAVE, SIZE = 1e-7, 32, 32 * 40

    def __init__(self) -> None:
        self.counts = np.zeros(self.SIZE, np.int64)

    def add(self, seconds: float, weight: int = 1) -> None:
        place = int(math.log2(max(seconds, self.LOW) / self.LOW) * self.PER_OCTAVE)
        self.counts[min(place, self.SIZE - 1)] += weight

    def quantile(self, q: float) -> float | None:
        """Seconds below which a part q of what was added lies; None when nothing was."""
        total = int(self.counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), q * total))
        return float(self.LOW * 2 ** ((place + 0.5) / self.PER_OCTAVE))


@dataclass
class Span:
    """Sums over a stretch of the stream. nll in nats."""

    tokens: int = 0
    scored: int = 0
    nll: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: int, scored: int, nll: float, seconds: float) -> None:
        self.tokens += tokens
        self.scored += scored
        self.nll += nll
        self.seconds += seconds

    @property
    def perplexity(self) -> float | None:
        """Per token; None when nothing was scored."""
        return math.exp(self.nll / self.scored) if self.scored else None


@dataclass
class Bin(Span):
    """One point of the curves: stream positions [start, end)."""

    start: int = 0
    end: int = 0
    kv_bytes: int = 0
    slowest: float = 0.0  # seconds per token
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=512))  # seconds per token


class Recent:
    """Sums and step times over the last `length` positions of the stream, to the step."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.total = Span()
        self.steps: deque[tuple[int, int, int, float, float]] = deque()

    def add(self, start: int, tokens: int, scored: int, nll: float, seconds: float) -> None:
        self.steps.append((start, tokens, scored, nll, seconds))
        self.total.add(tokens, scored, nll, seconds)
        # A step longer than the stretch would leave nothing.
        while len(self.steps) > 1 and self.steps[0][0] < start + tokens - self.length:
            _, tokens_, scored_, nll_, seconds_ = self.steps.popleft()
            self.total.add(-tokens_, -scored_, -nll_, -seconds_)

    def times(self) -> Histogram:
        h = Histogram()
        for _, tokens, _, _, seconds in self.steps:
            h.add(seconds / tokens)
        return h


class Track:
    """The record of one policy over one stream."""

    def __init__(self, policy: str, capacity: int | None, sampled: bool = False) -> None:
        """capacity: tokens that it keeps, None when all. sampled: at some positions only."""
        self.policy = policy
        self.capacity = capacity
        self.sampled = sampled
        self.all = Span()
        self.first, self.first_times = Span(), Histogram()
        self.last = Recent(HUNDRED_K)
        self.step_times = Histogram()
        self.bins: list[Bin] = []
        self.position = 0  # tokens of the stream gone by
        self.evicted = 0
        self.kv_bytes = self.kv_bytes_peak = 0
        self.kv_bytes_100k: int | None = None
        self.alive = 0
        self.single_step: float | None = None  # seconds of a step of one token
        self.ended: str | None = None  # why it stopped before the text did

    def add(
        self, start: int, tokens: int, scored: int, nll: float, seconds: float, kv_bytes: int
    ) -> None:
        """One step that took `seconds` for `tokens` tokens from position `start`; nll is the sum
        over the `scored` of them that had a prediction.
        """
        self.all.add(tokens, scored, nll, seconds)
        if start < HUNDRED_K:
            self.first.add(tokens, scored, nll, seconds)
            self.first_times.add(seconds / tokens)
        self.last.add(start, tokens, scored, nll, seconds)
        self.step_times.add(seconds)
        self.position = start + tokens
        self.kv_bytes = kv_bytes
        self.kv_bytes_peak = max(self.kv_bytes_peak, kv_bytes)
        if self.kv_bytes_100k is None and self.position >= HUNDRED_K:
            self.kv_bytes_100k = kv_bytes
        b = self._bin(start)
        b.add(tokens, scored, nll, seconds)
        b.end = self.position
        b.kv_bytes = max(b.kv_bytes, kv_bytes)
        b.slowest = max(b.slowest, seconds / tokens)
        b.steps.append(seconds / tokens)

    def _bin(self, start: int) -> Bin:
        width = max(SMALLEST_BIN, start // BINS_PER_LENGTH)
        if not self.bins or start >= self.bins[-1].start + width:
            if self.bins:
                closed = self.bins[-1]
                closed.steps = deque([float(np.median(closed.steps))], maxlen=1)
            self.bins.append(Bin(start=start))
        return self.bins[-1]

    def series(self) -> dict[str, list[Any]]:
        """The curves: a value per stretch [start, end) of stream positions."""
        full = [b for b in self.bins if b.scored]
        return {
            "start": [b.start for b in full],
            "end": [b.end for b in full],
            "scored": [b.scored for b in full],
            "perplexity": [_round(b.perplexity) for b in full],
            "kv_bytes": [b.kv_bytes for b in full],
            "ms_per_token_p50": [_round(1e3 * float(np.median(b.steps))) for b in full],
            "ms_per_token_max": [_round(1e3 * b.slowest) for b in full],
        }

    @property
    def windows_out(self) -> float:
        """Evicted tokens, in units of what is kept."""
        return self.evicted / self.capacity if self.capacity else 0.0

    def summary(self) -> dict[str, Any]:
        """Figures for the report."""
        return {
            "policy": self.policy,
            "ended": self.ended or "with the text",
            "tokens": self.position,
            "sampled": self.sampled,
            "scored_tokens": self.all.scored,
            "seconds": _round(self.all.seconds),
            "perplexity": _round(self.all.perplexity),
            "first_100k": _span(self.first, self.first_times),
            "last_100k": _span(self.last.total, self.last.times()),
            "step_ms_p50": _ms(self.step_times.quantile(0.5)),
            "step_ms_p99": _ms(self.step_times.quantile(0.99)),
            "single_token_step_ms": _ms(self.single_step),
            "tokens_kept": self.alive,
            "evicted_tokens": self.evicted,
            "evicted_windows": _round(self.windows_out),
            "kv_bytes_at_100k": self.kv_bytes_100k,
            "kv_bytes_at_end": self.kv_bytes,
            "kv_bytes_peak": self.kv_bytes_peak,
            "series": self.series(),
        }


def _span(span: Span, times: Histogram) -> dict[str, Any]:
    return {
        "tokens": span.tokens,
        "perplexity": _round(span.perplexity),
        "ms_per_token_mean": _ms(span.seconds / span.tokens if span.tokens else None),
        "ms_per_token_p50": _ms(times.quantile(0.5)),
        "ms_per_token_p99": _ms(times.quantile(0.99)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _round(1e3 * seconds)


def _round(x: float | None) -> float | None:
    """Six significant digits; JSON has no infinity and no NaN."""
    return float(f"{x:.6g}") if x is not None and math.isfinite(x) else None
