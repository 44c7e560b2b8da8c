# SPDX-License-Identifier: Apache-2.0
"""StreamingVLM: 16 seconds of video, the replies to them, and the ends of all that was said before.

Xu et al., StreamingVLM (2025); read in github.com/mit-han-lab/streaming-vlm: chunks of 1 s, each
answered at once by at most 20 tokens, " ..." for silence; 16 rounds of vision and of replies; what
was said earlier is moved behind the header and its middle cut out, so that 512 first and 512 newest
tokens are left; positions are contiguous over what is alive (its default, "shrink"); the header
stays. A round goes as a whole, its wrapping and the end of its reply with its frames, so that what
was said is in order without being moved. Temperature 0.9 and repetition penalty 1.05 there are the
caller's to choose here (`choose`). Positions there are of three axes; a decoder of tokens has one.

Oracle: rounds in lists, cut as published, and the dense forward in which query t sees what they
hold, at the differences of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Keep, Sink, Tagged, Window
from ..streams import Engine, InCache, Piece, Report, Stream, oracle, wrap
from ..streams.engine import Model
from .given import numbers
from .proof import Check, Preset, random_tokens

__all__ = ["comment", "streaming_vlm"]

SEEN, SAID = "seen", "said"


def streaming_vlm(
    model: Model, *, seconds: float = 16, first: int = 512, newest: int = 512, **options: Any
) -> Engine:
    """An engine with StreamingVLM's memory; `comment` drives a stream of it.

    Tokens without a tag (the header, a query) stay; those tagged "seen" go after `seconds`; of
    those tagged "said" that are older, the `first` and the `newest` stay. Options as in
    `headrace.wrap`, whose errors it raises. ValueError or TypeError where one is no such number.
    """
    numbers("streaming_vlm", seconds=seconds)
    said = Window(seconds=seconds) >> Sink(first) + Window(newest)
    memory = Tagged(None, Keep()) + Tagged(SEEN, Window(seconds=seconds)) + Tagged(SAID, said)
    return wrap(model, memory=memory, positions=InCache(), **options)


def comment(
    stream: Stream,
    chunk: Tensor,
    at: float,
    *,
    end: Tensor,
    longest: int = 20,
    choose: Callable[[Tensor], int] = lambda logits: int(logits.argmax()),
    reports: list[Report] | None = None,
) -> list[int]:
    """Reads the tokens of a chunk at a time in seconds, and says what it makes the model say.

    end: tokens that end a reply, int64 [n]; they are read in any case, and the reply stops before
    the first of them. choose: a token from logits fp32 [V]. reports: of all that is read, if given.
    """
    reports = [] if reports is None else reports
    reports.append(stream.feed(chunk, at=at, tag=SEEN, logits=True))
    said: list[int] = []
    while len(said) < longest:
        logits = reports[-1].logits
        assert logits is not None
        token = choose(logits[-1])
        if token == int(end[0]):
            break
        said.append(token)
        reports.append(stream.feed(chunk.new_tensor([token]), tag=SAID, logits=True))
    reports.append(stream.feed(end, tag=SEEN, logits=True))
    return said


def check(model: Model, *, rounds: int = 32) -> list[Check]:
    """Who is alive after every round, logits, and that tokens and pages stay as many."""
    seconds, first, newest = 4, 6, 9
    header, end = random_tokens(model, 7, seed=1), random_tokens(model, 2, seed=2)
    chunks = random_tokens(model, 9 * rounds).split(9)
    with streaming_vlm(
        model, seconds=seconds, first=first, newest=newest, page_size=16, pool_pages=64
    ) as engine:
        stream = engine.open()
        reports = [stream.feed(header, logits=True)]
        pieces, rule = [Piece(header)], Rounds(len(header), seconds, first, newest)
        wrong, alive, pages = 0, [], []
        for at, chunk in enumerate(chunks):
            keep = rule.begin(len(chunk))
            said = comment(stream, chunk, at, end=end, longest=at % 5, reports=reports)
            rule.say(len(said), len(end))
            pieces += [Piece(chunk, keep=keep), *(Piece([token]) for token in said), Piece(end)]
            wrong += stream.held.number.tolist() != rule.alive()
            alive.append(stream.alive)
            pages.append(len(stream.pages))
    got = torch.cat([report.logits for report in reports if report.logits is not None])
    want = oracle(model, pieces, Keep(), InCache())
    half = 20  # by then the middle is being cut
    return [
        Check("rounds after which others are alive than by the rule", wrong, 0),
        Check("max |logit - oracle|", float((got - want).abs().max()), 1e-4),
        Check("tokens alive: most of the last rounds - of those before", _more(alive, half), 0),
        Check("pages held: most of the last rounds - of those before", _more(pages, half), 1),
        Check("nothing said was ever cut", int(not rule.cut), 0),
    ]


class Rounds:
    """The published bookkeeping, in lists of token numbers."""

    def __init__(self, header: int, seconds: int, first: int, newest: int) -> None:
        self.header = list(range(header))
        self.before: list[int] = []
        self.rounds: list[tuple[list[int], list[int], list[int]]] = []
        self.count, self.most, self.ends, self.cut = header, seconds, (first, newest), False

    def begin(self, seen: int) -> list[int]:
        """Who survives before the tokens of a new round are read."""
        if len(self.rounds) == self.most:
            self.before += self.rounds.pop(0)[1]
            first, newest = self.ends
            if len(self.before) > first + newest:
                self.before = self.before[:first] + self.before[-newest:]
                self.cut = True
        keep = self.alive()
        self.rounds.append((self._next(seen), [], []))
        return keep

    def say(self, said: int, end: int) -> None:
        """What is read after them."""
        seen, _, _ = self.rounds[-1]
        self.rounds[-1] = seen, self._next(said), self._next(end)

    def alive(self) -> list[int]:
        return self.header + self.before + [x for one in self.rounds for part in one for x in part]

    def _next(self, count: int) -> list[int]:
        self.count += count
        return list(range(self.count - count, self.count))


def _more(counts: Sequence[int], half: int) -> int:
    return max(counts[half:]) - max(counts[:half])


PRESET = Preset(
    "streaming_vlm",
    "Xu et al., StreamingVLM (2025); github.com/mit-han-lab/streaming-vlm",
    streaming_vlm,
    check,
)
