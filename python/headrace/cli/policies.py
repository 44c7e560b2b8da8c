# SPDX-License-Identifier: Apache-2.0
"""What a run compares: ways to keep an endless stream within a model's reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..memory import Sink, Window
from ..streams import Absolute, Engine, InCache, wrap
from .fail import Fail
from .track import HUNDRED_K, Track

NAMES = ["sinks-window", "window", "dense", "recompute"]
PAGE_SIZE = 64  # tokens
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Settings:
    """window, sinks, chunk, dense_limit in tokens; pool_pages None: as many as the policy needs."""

    window: int
    sinks: int
    chunk: int
    dense_limit: int
    samples: int
    seed: int
    pool_pages: int | None = None

    @property
    def capacity(self) -> int:
        """Tokens that every bounded policy keeps, so that they compare like for like."""
        return self.window + self.sinks


class Samples:
    """Random positions of the stream at which policies are compared pairwise.

    A quarter is spread over the logarithm of the position; where the length of the stream is
    known, a quarter goes to the first 100k tokens and half to the last. `count` is the number to
    expect in all.
    """

    def __init__(self, count: int, total: int | None, seed: int) -> None:
        self.count, self.total = count, total
        self.random = np.random.default_rng(seed)

    def take(self, start: int, length: int) -> list[int]:
        """The chosen positions among start .. start + length - 1, increasing; never 0."""
        at = np.arange(start, start + length)
        rate = self.count / 16 / (at + 1000.0)
        if self.total:
            rate = self.count / 4 / np.log1p(self.total / 1000) / (at + 1000.0)
            stretch = min(HUNDRED_K, self.total)
            rate += np.where(at < stretch, self.count / 4 / stretch, 0)
            rate += np.where(at >= self.total - stretch, self.count / 2 / stretch, 0)
        chosen = (self.random.random(length) < rate) & (at > 0)
        return [int(p) for p in at[chosen]]


class Streamed:
    """A policy that feeds every token, once, to a stream."""

    def __init__(self, policy: str, model: Any, s: Settings) -> None:
        self.limit = s.dense_limit if policy == "dense" else None
        self.engine = _engine(model, policy, s)
        self.stream = self.engine.open()
        self.chunk = s.chunk
        self.track = Track(policy, None if policy == "dense" else s.capacity)
        self.sampled: dict[int, float] = {}  # position -> nll of its token

    def feed(self, start: int, tokens: Bytes, before: Bytes, picks: Sequence[int]) -> None:
        """The tokens at start .. of the stream, in one step. `before` is not needed here."""
        track = self.track
        if self.limit is not None and start + len(tokens) > self.limit:
            track.ended = f"at {self.limit:,} tokens, the limit of what it may keep"
            tokens = tokens[: self.limit - start]
            if not len(tokens):
                return
        ids = torch.from_numpy(tokens.astype(np.int64))
        began = time.perf_counter()
        report = self.stream.feed(ids)
        seconds = time.perf_counter() - began
        nll = report.nll
        scored = len(tokens) - (start == 0)
        total = float(nll[len(tokens) - scored :].double().sum())
        track.evicted = report.evicted
        track.alive = report.alive
        track.add(start, len(tokens), scored, total, seconds, self.engine.resident_bytes)
        for position in picks:
            if position < start + len(tokens):
                self.sampled[position] = float(nll[position - start])

    def single_steps(self, count: int) -> list[float]:
        """Seconds of `count` steps of one token each, on a copy of the stream that is then gone."""
        copy = self.stream.fork()
        try:
            times = []
            for _ in range(count):
                began = time.perf_counter()
                copy.feed(torch.zeros(1, dtype=torch.int64))
                times.append(time.perf_counter() - began)
            return times
        finally:
            copy.close()

    def close(self) -> None:
        self.stream.close()


class Recomputed:
    """The quality baseline: for each sampled position, the tokens before it are read afresh, as
    many as the bounded policies keep. Per token this costs what a window of tokens costs.
    """

    def __init__(self, model: Any, s: Settings) -> None:
        self.engine = _engine(model, "recompute", s)
        self.capacity = s.capacity
        self.track = Track("recompute", s.capacity, sampled=True)
        self.sampled: dict[int, float] = {}

    def feed(self, start: int, tokens: Bytes, before: Bytes, picks: Sequence[int]) -> None:
        """Scores the picked ones of the tokens at start ..; `before` are the tokens up to there."""
        text = np.concatenate([before, tokens]).astype(np.int64)
        for position in picks:
            at = len(before) + position - start
            context = torch.from_numpy(text[max(0, at - self.capacity) : at + 1])
            began = time.perf_counter()
            stream = self.engine.open()
            try:
                report = stream.feed(context)
                seconds = time.perf_counter() - began
                nll = float(report.nll[-1])
                kept = self.engine.resident_bytes
            finally:
                stream.close()
            self.sampled[position] = nll
            self.track.alive = len(context) - 1
            self.track.add(position, 1, 1, nll, seconds, kept)

    def close(self) -> None:
        pass


Runner = Streamed | Recomputed


def runner(policy: str, model: Any, s: Settings) -> Runner:
    """A fresh run of one policy. Raises ValueError when the pool is too small for it."""
    return Recomputed(model, s) if policy == "recompute" else Streamed(policy, model, s)


def _engine(model: Any, policy: str, s: Settings) -> Engine:
    memory, positions = {
        "sinks-window": (Sink(s.sinks) + Window(s.window), InCache()),
        "window": (Window(s.capacity), InCache()),
        "dense": (Window(None), Absolute()),
        "recompute": (Window(None), Absolute()),
    }[policy]
    return wrap(
        model,
        memory=memory,
        positions=positions,
        pool_pages=s.pool_pages or _pages(policy, s),
        page_size=PAGE_SIZE,
        chunk=s.chunk,
    )


def _pages(policy: str, s: Settings) -> int:
    """Enough for one stream and a copy of it that reads a few tokens."""
    if policy == "dense":
        return -(-s.dense_limit // PAGE_SIZE) + 2
    if policy == "recompute":
        return -(-(s.capacity + 1) // PAGE_SIZE)
    window = -(-s.capacity // PAGE_SIZE) + 1
    return -(-s.sinks // PAGE_SIZE) + 2 * window + -(-s.chunk // PAGE_SIZE) + 4


def check_tokens(model: Any) -> None:
    """Raises Fail unless the model reads bytes."""
    if model.config.vocab != 256:
        raise Fail(
            f"stream(--model): expected a model of 256 tokens, bytes; got {model.config.vocab}"
        )
