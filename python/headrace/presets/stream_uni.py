# SPDX-License-Identifier: Apache-2.0
"""StreamUni: speech translation in which the model's own transcript says where a segment ends.

Guo et al., StreamUni (2025), and its released loop. After every chunk of speech the model
transcribes the segment so far; the newest transcripts are a queue. A segment ends when it is longer
than 30 s, when three transcripts in a row are the same (silence), or when a transcript goes on
behind a mark that the one before did not have (a sentence is over): at the chunk where that was
first heard; what came after begins the next segment. Between, wait-k over the words of transcript
and translation says how many words to write, none if more than 8; at the end of a segment its
translation is completed, and everything is forgotten.

There each chunk is transcribed from the audio anew, prompt and all. Here speech, transcript and
translation are lanes: speech is read once, and the other two are rolled back and written again.
Chosen: how far the cut lies back is counted from the newest transcript (the released loop counts
from the oldest of its queue); words are split by a token; k is 3 words, a transcript has at most 5
tokens for every chunk so far, and a word that is written 5.

Oracle: for every chunk one masked forward over the three lanes; the rule over the transcripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Window
from ..streams import Engine, Lane, Lanes, PerLane, Signal, WaitK, wrap
from ..streams.engine import Model
from .lane_loops import Step, lanes_equality, masked
from .proof import Check, Preset, random_tokens

__all__ = ["Manner", "Round", "stream_uni", "translate"]

LONGEST, QUEUE, MOST, WORD = 30.0, 5, 8, 5
LANES = (
    Lane("speech"),
    Lane("transcript", reads=("speech",), kind="latent"),
    Lane("translation", reads=("speech", "transcript"), kind="out"),
)


@dataclass
class Round:
    """What a chunk led to. steps: what the lanes hold at its end. back: how many chunks before it
    the segment ends; None where it goes on. begins: whether a segment does with it."""

    chunk: int
    begins: bool
    steps: list[Step] = field(default_factory=list)
    transcript: list[int] = field(default_factory=list)
    wrote: list[int] = field(default_factory=list)
    back: int | None = None


def stream_uni(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams have the lanes speech, transcript and translation; see `translate`.

    memory: what each of them keeps; everything unless it says less. Options as in `headrace.wrap`,
    whose errors it raises.
    """
    memory = Window(None) if memory is None else memory
    return wrap(model, memory=memory, positions=PerLane(), lanes=LANES, **options)


def ended(
    queue: Sequence[Sequence[int]], seconds: float, marks: Collection[int], longest: float = LONGEST
) -> int | None:
    """How many chunks ago a segment ended, by the newest transcripts of it; None if it has not.

    seconds: its length so far. marks: tokens that end a sentence.
    """
    if len(queue) <= 2:
        return None
    if seconds > longest:
        return 0
    if queue[-1] == queue[-2] == queue[-3]:
        return 2
    for i, (before, after) in enumerate(pairwise(queue)):
        goes_on = before != after and _within(before, after)
        if goes_on and _over(after, marks) and not _over(before, marks):
            return len(queue) - 1 - i
    return None


def _over(words: Sequence[int], marks: Collection[int]) -> bool:
    """Whether something follows the first mark, beside marks."""
    first = next((i for i, token in enumerate(words) if token in marks), None)
    return first is not None and any(token not in marks for token in words[first:])


def _within(part: Sequence[int], whole: Sequence[int]) -> bool:
    n = len(part)
    return any(list(whole[i : i + n]) == list(part) for i in range(len(whole) - n + 1))


def words(tokens: Sequence[int], space: int) -> int:
    """Runs of tokens between spaces."""
    parts = [space, *tokens]
    return sum(a == space != b for a, b in zip(parts, tokens, strict=False))


@dataclass(frozen=True)
class Manner:
    """ask, sep: tokens before a transcript and before a translation; end: after either. space:
    between words. marks: end a sentence. k: of wait-k, in words. rate: most tokens of a transcript
    per chunk. seconds: of a chunk. longest: seconds of a segment. queue: transcripts that are kept.
    """

    ask: int
    sep: int
    end: int
    space: int
    marks: tuple[int, ...]
    k: int = 3
    rate: int = 5
    seconds: float = 1.0
    longest: float = LONGEST
    queue: int = QUEUE


def translate(engine: Engine, chunks: Sequence[Tensor], how: Manner) -> list[Round]:
    """Hears chunks, int64 [n] each, and translates as it hears them; a round for every chunk."""
    made: list[Round] = []
    at = 0
    while at < len(chunks):
        with engine.open_lanes() as stream:
            made += _segment(stream, chunks, at, how)
        last = made[-1]
        assert last.back is not None
        at = last.chunk + 1 - last.back
    return made


def _segment(stream: Lanes, chunks: Sequence[Tensor], first: int, how: Manner) -> list[Round]:
    """From a chunk on to where the segment ends."""
    rounds: list[Round] = []
    said: list[int] = []  # of the translation
    empty = {lane: stream[lane].mark() for lane in ("transcript", "translation")}
    heard = []  # a mark of the speech after each chunk
    for i in range(first, len(chunks)):
        stream.rollback(empty)
        now = Round(i, not rounds, [{"speech": chunk} for chunk in chunks[first : i + 1]])
        stream["speech"].feed(chunks[i])
        heard.append(stream["speech"].mark())
        count = i + 1 - first
        most = how.rate * count
        now.transcript = _write(stream, now.steps, "transcript", [how.ask], how.end, most)
        rounds.append(now)
        newest = [r.transcript for r in rounds][-how.queue :]
        now.back = ended(newest, how.seconds * count, how.marks, how.longest)
        if now.back is None and i + 1 == len(chunks):
            now.back = 0
        before = [how.sep, *said, *([how.space] if said else [])]
        if now.back is not None:
            stream.rollback({"speech": heard[-1 - now.back], **empty})
            now.steps = now.steps[: count - now.back]
            _read(stream, now.steps, [how.ask, *rounds[-1 - now.back].transcript])
            _read(stream, now.steps, [how.sep])
            now.wrote = _write(stream, now.steps, "translation", before, how.end, most)
            break
        counted = Signal(read=words(now.transcript, how.space), written=words(said, how.space))
        due = WaitK(how.k).due(counted)
        if 0 < due <= MOST:
            _read(stream, now.steps, [how.sep])

            def enough(more: list[int], due: int = due) -> bool:
                return words(more, how.space) > due

            more = _write(stream, now.steps, "translation", before, how.end, due * WORD, enough)
            now.wrote = _first(more, due, how.space)
            said = before[1:] + now.wrote
    return rounds


def _read(stream: Lanes, steps: list[Step], tokens: list[int]) -> None:
    steps.append({"transcript": torch.tensor(tokens)})
    stream.feed(steps[-1])


def _write(
    stream: Lanes, steps: list[Step], lane: str, start: list[int], end: int, most: int,
    enough: Callable[[list[int]], bool] = lambda more: False,
) -> list[int]:  # fmt: skip
    """Greedy, after `start`, to before the token `end`, `most` tokens, or enough of them."""
    tokens, said = start, list[int]()
    while True:
        steps.append({lane: torch.tensor(tokens)})
        logits = stream.feed(steps[-1], logits=True)[lane].logits
        assert logits is not None
        tokens = [int(logits[-1].argmax())]
        if tokens == [end] or len(said) == most or enough([*said, *tokens]):
            return said
        said += tokens


def _first(tokens: list[int], count: int, space: int) -> list[int]:
    """The first so many words, without spaces at their ends."""
    kept: list[int] = []
    for token in tokens:
        if words([*kept, token], space) > count:
            break
        kept.append(token)
    while kept and kept[-1] == space:
        kept.pop()
    while kept and kept[0] == space:
        kept.pop(0)
    return kept


def check(model: Model, *, chunks: int = 14, size: int = 8) -> list[Check]:
    """Every transcript and translation against a masked forward, every cut against the rule."""
    heard = list(random_tokens(model, chunks * size).split(size))
    how = Manner(ask=1, sep=2, end=3, space=0, marks=(), k=1, rate=3, longest=5.0)
    with stream_uni(model, page_size=16, pool_pages=128, exact=True) as engine:
        said = Counter(t for r in translate(engine, heard, how) for t in r.transcript)
        space, *marks = [token for token, _ in said.most_common(3)]
        how = replace(how, space=space, marks=tuple(marks))
        rounds = translate(engine, heard, how)
        held = engine.pool.live_pages
        gaps = [lanes_equality(engine, rounds[i].steps)[0] for i in (0, len(rounds) // 2)]
        wrong = sum(_wrong(engine, one) for one in rounds)
    queue: list[list[int]] = []
    differ = spoken = 0
    for one, after in zip(rounds, [*rounds[1:], None], strict=True):
        queue = [] if one.begins else queue
        queue.append(one.transcript)
        rule = _by_text(queue, how)
        if rule is None and one.chunk + 1 == chunks:
            rule = 0
        differ += rule != one.back
        if after is not None and rule is not None:
            differ += not after.begins or after.chunk != one.chunk + 1 - rule
        spoken += bool(one.wrote)
    segments = sum(one.begins for one in rounds)
    return [
        *(Check(f"round: {gap.name}", gap.figure, gap.bound) for gap in gaps),
        Check("tokens that the masked forwards do not choose", wrong, 0),
        Check("segments that end elsewhere than the rule says", differ, 0),
        Check("it found no end of a segment before the last chunk", segments < 2, 0),
        Check("it wrote nothing", not spoken, 0),
        Check("pages held after the last segment", held, 0),
    ]


def _by_text(transcripts: Sequence[Sequence[int]], how: Manner) -> int | None:
    """The rule of the released loop over texts, a character for a token."""
    texts = ["".join(map(chr, one)) for one in transcripts][-how.queue :]
    marks = "".join(map(chr, how.marks))
    if len(texts) < 3:
        return None
    if len(transcripts) * how.seconds > how.longest:
        return 0
    if len(set(texts[-3:])) == 1:
        return 2

    def behind(text: str) -> str:
        at = min((text.find(mark) for mark in marks if mark in text), default=len(text))
        return text[at:].strip(marks) if marks else ""

    for back in range(len(texts) - 1, 0, -1):
        old, new = texts[-1 - back], texts[-back]
        if old in new and old != new and behind(new) and not behind(old):
            return back
    return None


def _wrong(engine: Engine, one: Round) -> int:
    """Tokens of a round that were fed alone, as what is chosen is, and are not the likeliest."""
    rows, wrong = masked(engine, one.steps), 0
    for lane in ("transcript", "translation"):
        fed = [step[lane] for step in one.steps if lane in step]
        at = 0
        for before, after in pairwise(fed):
            at += len(before)
            chosen = len(after) == 1 and int(after) != 2
            wrong += chosen and int(rows[lane][at - 1].argmax()) != int(after)
    return wrong


PRESET = Preset(
    "stream_uni", "Guo et al., StreamUni (2025), its released loop", stream_uni, check, kind="gate"
)
