# SPDX-License-Identifier: Apache-2.0
"""The loop of systems that watch frames and decide at each whether to speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..streams import Gate, Signal, Stream

Scores = Callable[[Tensor], Sequence[float]]
"""Logits fp32 [V] after a frame -> scores of a model's heads for speaking."""


class Answer(NamedTuple):
    """To a query: the frame after which it came, the tokens read until it was, and what was
    said."""

    frame: int
    tick: int
    said: list[int]


@dataclass
class Watched:
    """What a stream did. read: all its tokens in order, those since forgotten among them.

    ticks: per frame, how many tokens had been read when it was decided. fired: whether it spoke.
    replies: what it said, by frame, to several queries one after the other. answers: to each query,
    in order.
    """

    read: list[int] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    fired: list[bool] = field(default_factory=list)
    replies: dict[int, list[int]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)


def watch(
    stream: Stream,
    frames: Sequence[Tensor],
    gate: Gate,
    *,
    silence: int,
    longest: int = 100,
    queries: Mapping[int, Tensor | Sequence[Tensor]] | None = None,
    scores: Scores | None = None,
    forget: bool = False,
) -> Watched:
    """Reads frame after frame, int64 [n] each, and speaks where the gate says so.

    silence: the token that separates frames; a reply is greedy, never begins with it and ends
    before it, or at `longest` tokens. queries: by the frame after which they arrive, one or several
    in order; each is read and answered, always, before the next of them. scores: for gates that
    read heads. forget: a reply leaves the stream once it has been said, bit for bit.
    """
    seen = Watched()

    def speak(frame: int, logits: Tensor) -> list[int]:
        mark = stream.mark() if forget else None
        said: list[int] = []
        logits = logits.clone()
        logits[silence] = -float("inf")
        while (token := int(logits.argmax())) != silence and len(said) < longest:
            said.append(token)
            logits = _read(stream, frames[frame].new_tensor([token]), seen)
        seen.replies.setdefault(frame, []).extend(said)
        if mark is not None:
            stream.rollback(mark)
            mark.release()
            del seen.read[stream.tokens :]
        return said

    for i, frame in enumerate(frames):
        logits = _read(stream, frame, seen)
        asked = _several((queries or {}).get(i))
        for query in asked:
            logits = _read(stream, query, seen)
            tick = stream.tokens
            seen.answers.append(Answer(i, tick, speak(i, logits)))
        seen.ticks.append(seen.answers[-1].tick if asked else stream.tokens)
        seen.fired.append(bool(asked) or gate(_signal(stream, logits, scores)))
        if seen.fired[-1] and not asked:
            speak(i, logits)
    return seen


def _several(asked: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor]:
    """Queries as a sequence, however they were given."""
    if asked is None:
        return ()
    return [asked] if isinstance(asked, Tensor) else asked


def _signal(stream: Stream, logits: Tensor, scores: Scores | None) -> Signal:
    heads = None if scores is None else scores(logits)
    return Signal(read=stream.tokens, logits=logits, scores=heads)


def _read(stream: Stream, tokens: Tensor, seen: Watched) -> Tensor:
    logits = stream.feed(tokens, logits=True).logits
    assert logits is not None
    seen.read += tokens.tolist()
    return logits[-1]
