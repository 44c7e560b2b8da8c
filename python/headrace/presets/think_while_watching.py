# SPDX-License-Identifier: Apache-2.0
"""Think While Watching: a note is written about each segment while the next one is being read.

Wang et al., Think While Watching (2026), and its released loop. The source comes in segments, of
video or of text; the writer answers a video segment with a note for its memory and a question with
an answer, each of which ends in a marker of its own; it sees the source up to its segment, and
target ids begin at 0. There a thread reads ahead and clones the whole source cache after every
segment, so that the bytes copied grow with the square of the length; at a switch it puts source and
target together again.

Here reader and writer advance in the same step, and the writer looks at the source as it stood at
the end of its segment: the same pages, none copied. Chosen: notes and answers are lanes of their
own, so that memory has tiers, the recent source under a window and every note for good; the reader
is at most one segment ahead, as a live source is; a note that reaches its budget gets its marker.

Oracle: the masked forward of the run that reads a segment and then writes, which the overlapped run
equals bit for bit in exact mode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import Region, Sink, Window
from ..streams import Engine, Lane, Lanes, PerLane, wrap
from ..streams.engine import Model
from .lane_loops import Step, lanes_equality
from .proof import Check, Preset, random_tokens

__all__ = ["Segment", "Thoughts", "think", "think_while_watching"]

WRITES = {"video": "notes", "text": "answer"}


class Segment(NamedTuple):
    """A part of the source: of "video", to be noted, or of "text", to be answered."""

    kind: str
    tokens: Tensor


@dataclass
class Thoughts:
    """What was fed, what each segment led to, and the logits of the writer."""

    steps: list[Step] = field(default_factory=list)
    said: list[list[int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def think_while_watching(
    model: Model, *, recent: Region | None = None, notes: Region | None = None, **options: Any
) -> Engine:
    """An engine whose streams have the lanes source, notes and answer; see `think`.

    recent: what stays of the source, notes: what stays of the notes; by default everything. Options
    as in `headrace.wrap`, whose errors it raises.
    """
    lanes = (
        Lane("source", memory=recent),
        Lane("notes", reads=("source",), kind="latent", memory=notes),
        Lane("answer", reads=("source", "notes"), kind="out"),
    )
    return wrap(model, memory=Window(None), positions=PerLane(), lanes=lanes, **options)


def think(
    stream: Lanes,
    segments: Sequence[Segment],
    *,
    begin: Mapping[str, int],
    end: Mapping[str, int],
    budget: int,
    piece: int = 8,
    overlap: bool = True,
) -> Thoughts:
    """Reads the segments, `piece` tokens a step, and writes about each, greedily.

    begin, end: the token that opens, and the marker that ends, what is written about a kind of
    segment. budget: most tokens of it. overlap: while that is written the next segment is read.
    """
    made = Thoughts()
    parts = [deque(segment.tokens.split(piece)) for segment in segments]
    left: dict[str, list[int]] = {"notes": [], "answer": []}  # said, not yet read

    def feed(step: dict[str, Tensor]) -> Tensor | None:
        made.steps.append(step)
        return stream.feed(step, logits=True)[lane].logits if lane in step else None

    for i, segment in enumerate(segments):
        lane = WRITES[segment.kind]
        while parts[i]:
            stream.feed({"source": parts[i][0]})
            made.steps.append({"source": parts[i].popleft()})
        stream.look("notes")
        stream.look("answer")
        tokens, said = [*left[lane], begin[segment.kind]], list[int]()
        while len(said) < budget and end[segment.kind] not in said:
            step = {lane: torch.tensor(tokens)}
            if overlap and i + 1 < len(segments) and parts[i + 1]:
                step["source"] = parts[i + 1].popleft()
            logits = feed(step)
            assert logits is not None
            made.logits.append(logits)
            tokens = [int(logits[-1].argmax())]
            said += tokens
        left[lane] = tokens if tokens[-1] == end[segment.kind] else [*tokens, end[segment.kind]]
        made.said.append(said)
    return made


def check(model: Model, *, count: int = 6, size: int = 24, budget: int = 9) -> list[Check]:
    """The overlapped run against the sequential one, and that one against the masked forward."""
    source = random_tokens(model, count * size).split(size)
    segments = [Segment("text" if i % 3 == 2 else "video", x) for i, x in enumerate(source)]
    marks: dict[str, Any] = {"begin": {"video": 1, "text": 2}, "end": {"video": 3, "text": 4}}
    options: dict[str, Any] = {"page_size": 16, "pool_pages": 96, "exact": True}
    recent = Sink(2) + Window(40)
    runs, pages = [], []
    with think_while_watching(model, recent=recent, **options) as engine:
        row = engine.pool.row_bytes * engine.pool.k.shape[0]
        for overlap in (False, True):
            stream, before = engine.open_lanes(), engine.pool.written_bytes
            run = think(stream, segments, budget=budget, overlap=overlap, **marks)
            runs.append((run, engine.pool.written_bytes - before))
            pages.append(len(stream["source"].pages))
            stream.close()
        checks = lanes_equality(engine, runs[0][0].steps)
    (turns, _), (fused, written) = runs
    tokens = sum(len(x) for step in fused.steps for x in step.values())
    copied = written - tokens * row
    differ = sum(
        1 if a.shape != b.shape else int((a != b).sum())
        for a, b in zip(turns.logits, fused.logits, strict=True)
    )
    both = sum(len(step) == 2 for step in fused.steps)
    return [
        *checks,
        Check("overlapped: logits that differ from the sequential run's", differ, 0),
        Check("overlapped: notes and answers that differ", turns.said != fused.said, 0),
        Check("overlapped: bytes of keys and values copied", copied, 0),
        Check("overlapped: steps, as a share of the sequential run's",
              len(fused.steps) / len(turns.steps), 0.9),
        Check("steps that both read and write, fewer than segments", both < count, 0),
        Check("pages of the source in the end", max(pages), 1 + 40 // 16 + 2),
    ]  # fmt: skip


PRESET = Preset(
    "think_while_watching",
    "Wang et al., Think While Watching (2026), its released loop",
    think_while_watching,
    check,
    kind="lanes",
)
