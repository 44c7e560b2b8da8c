# SPDX-License-Identifier: Apache-2.0
"""The loop of systems that watch frames and decide at each whether to speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..streams import Gate, Signal, Stream

Scores = Callable[[Tensor], Sequence[float]]
"""Logits fp32 [V] after a frame -> scores of a model's heads for speaking."""


@dataclass
class Watched:
    """What a stream did. read: all its tokens in order, those since forgotten among them.

    ticks: per frame, how many tokens had been read when it was decided. fired: whether it spoke.
    replies: what it said, by frame; answers, in reply to queries, too.
    """

    read: list[int] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    fired: list[bool] = field(default_factory=list)
    replies: dict[int, list[int]] = field(default_factory=dict)


def watch(
    stream: Stream,
    frames: Sequence[Tensor],
    gate: Gate,
    *,
    silence: int,
    longest: int = 100,
    queries: Mapping[int, Tensor] | None = None,
    scores: Scores | None = None,
    forget: bool = False,
) -> Watched:
    """Reads frame after frame, int64 [n] each, and speaks where the gate says so.

    silence: the token that separates frames; a reply is greedy, never begins with it and ends
    before it, or at `longest` tokens. queries: by the frame after which each arrives; they are read
    in that order and always answered. scores: for gates that read heads. forget: a reply leaves the
    stream once it has been said, bit for bit.
    """
    seen = Watched()
    for i, frame in enumerate(frames):
        logits = _read(stream, frame, seen)
        query = (queries or {}).get(i)
        if query is not None:
            logits = _read(stream, query, seen)
        signal = Signal(
            query=query is not None,
            read=stream.tokens,
            logits=logits,
            scores=None if scores is None else scores(logits),
        )
        seen.ticks.append(stream.tokens)
        seen.fired.append(query is not None or gate(signal))
        if not seen.fired[-1]:
            continue
        mark = stream.mark() if forget else None
        said: list[int] = []
        logits = logits.clone()
        logits[silence] = -float("inf")
        while (token := int(logits.argmax())) != silence and len(said) < longest:
            said.append(token)
            logits = _read(stream, frame.new_tensor([token]), seen)
        seen.replies[i] = said
        if mark is not None:
            stream.rollback(mark)
            mark.release()
            del seen.read[stream.tokens :]
    return seen


def _read(stream: Stream, tokens: Tensor, seen: Watched) -> Tensor:
    logits = stream.feed(tokens, logits=True).logits
    assert logits is not None
    seen.read += tokens.tolist()
    return logits[-1]
