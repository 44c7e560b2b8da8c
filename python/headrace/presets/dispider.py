# SPDX-License-Identifier: Apache-2.0
"""Dispider: a small model watches and decides, a large one answers, and neither waits.

Qian et al., Dispider (CVPR 2025), and its released session. Perception cuts the video into clips
(16 frames there), decision is a small model that ends each clip with a token for "later" or one for
"answer now", reaction is a large model that answers from the clips of late (8 there) while the
small one goes on. Here both are streams of engines of their own on one clock: a frame is watched
when it comes, and the answer is read and said in the time between frames, in steps that end
before the next frame; where none fits, once the frames are over. Chosen: the clips that the
answerer reads are those since its last answer, the newest `history` of them, before the question;
a scene cut, where a gate is given, ends a clip early.

Oracle: the rule over the logits of one dense forward of the watcher; the answers of the answerer
alone; and the watcher's work and time per frame of a run in which nothing is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Window
from ..streams import Engine, Gate, InCache, Linear, Signal, Stream, Virtual, Work, oracle, wrap
from ..streams.engine import Model
from .proof import Check, Preset, random_tokens

__all__ = ["Answer", "Attended", "Pair", "attend", "dispider"]

CLIP, HISTORY = 16, 8
Cost = Callable[[Work], float]
SMALL, LARGE = Linear(step=4e-3, token=2e-4), Linear(step=3e-2, token=2e-3)
"""Seconds of a step of either model on the clock of the proof."""


@dataclass
class Pair:
    """The engine that watches and the one that answers."""

    watcher: Engine
    answerer: Engine

    def close(self) -> None:
        """Ends the streams of both."""
        self.watcher.close()
        self.answerer.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class Answer:
    """prompt: what the answerer reads for it. asked, done: seconds. frames: watched meanwhile."""

    clip: int
    prompt: list[int]
    asked: float
    said: list[int] = field(default_factory=list)
    done: float = float("nan")
    frames: int = 0


@dataclass
class Attended:
    """What was watched and what was answered.

    read: all tokens of the watcher. clips: per clip, how many it had read when it decided.
    fired: what it decided. work, seconds: per frame, from when it came until it was watched.
    """

    read: list[int] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)
    fired: list[bool] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


def dispider(
    model: Model, *, answerer: Model | None = None, memory: Region | None = None, **options: Any
) -> Pair:
    """The engines of both models; see `attend`.

    model: the one that watches. answerer: the one that answers, the same model if None. memory:
    what each stream keeps; everything unless it says less. Options as in `headrace.wrap`, whose
    errors it raises.
    """
    memory = Window(None) if memory is None else memory
    engines = [
        wrap(m, memory=memory, positions=InCache(), **options)
        for m in (model, model if answerer is None else answerer)
    ]
    return Pair(*engines)


class _Answerer:
    """Reads and says what waits, in steps that end by a given time."""

    def __init__(self, stream: Stream, cost: Cost, clock: Virtual, longest: int) -> None:
        self.stream, self.waiting = stream, deque[Answer]()
        self._cost, self._clock, self._longest = cost, clock, longest
        self._left: list[int] = []  # to be read before it says the next token
        self._begun = False

    def run(self, until: float) -> None:
        while self.waiting:
            one = self.waiting[0]
            if not self._begun:
                self._left += one.prompt
                self._begun = True
            count, now = len(self._left), self._clock.read()
            while count and now + self._cost(_work(self.stream, count)) > until:
                count //= 2
            if not count:
                return
            self._clock.wait(now + self._cost(_work(self.stream, count)))
            logits = self.stream.feed(self._left[:count], logits=True).logits
            assert logits is not None
            self._left = self._left[count:]
            if not self._left:
                one.said.append(int(logits[-1].argmax()))
                self._left = one.said[-1:]
            if len(one.said) == self._longest:
                self._begun, self.waiting.popleft().done = False, self._clock.read()


def attend(
    pair: Pair,
    frames: Sequence[Tensor],
    question: Sequence[int],
    *,
    every: float,
    later: int,
    now: int,
    longest: int,
    clip: int = CLIP,
    history: int = HISTORY,
    cost: tuple[Cost, Cost] = (SMALL, LARGE),
    scene: Gate | None = None,
    dropped: Sequence[float] | None = None,
    answering: bool = True,
) -> Attended:
    """Watches a frame, int64 [n], every so many seconds, and answers where the watcher decides to.

    later, now: its tokens for a clip. longest: tokens of an answer. cost: seconds of a step of the
    watcher and of the answerer. scene: a gate over the ratio `dropped` of each frame. answering:
    False only decides.
    """
    made, clock = Attended(), Virtual(cost[0])
    watcher, held = pair.watcher.open(), deque[list[int]](maxlen=history)
    answerer = _Answerer(pair.answerer.open(), cost[1], clock, longest)
    state: list[int] = []  # decided, to be read with the next frame
    current: list[int] = []
    since = 0
    for i, frame in enumerate(frames):
        came = i * every
        clock.wait(came)
        tokens = [*state, *frame.tolist()]
        made.work.append(_work(watcher, len(tokens)))
        logits = watcher.feed(tokens, logits=True).logits
        assert logits is not None
        made.read += tokens
        made.seconds.append(clock.spend(made.work[-1]) - came)
        for one in answerer.waiting:
            one.frames += 1
        current += frame.tolist()
        since, state = since + 1, []
        cut = scene is not None and scene(Signal(dropped=dropped[i] if dropped else None))
        if since >= clip or cut:
            held.append(current)
            made.clips.append(len(made.read))
            made.fired.append(bool(logits[-1][now] > logits[-1][later]))
            state, current, since = [now if made.fired[-1] else later], [], 0
            if made.fired[-1] and answering:
                prompt = [t for part in held for t in part] + list(question)
                made.answers.append(Answer(len(made.clips) - 1, prompt, clock.read()))
                answerer.waiting.append(made.answers[-1])
                held.clear()
        answerer.run((i + 1) * every)
    answerer.run(float("inf"))
    watcher.close()
    answerer.stream.close()
    return made


def _work(stream: Stream, count: int) -> Work:
    return Work(count, 1, (stream.alive + count) * count)


class _Cut(Gate):
    """Where little of a frame was dropped, the scene is another."""

    def __call__(self, signal: Signal) -> bool:
        return signal.dropped is not None and signal.dropped < 0.5


def check(model: Model, *, frames: int = 48, size: int = 6) -> list[Check]:
    """Decisions, answers, and the watcher's ticks beside those of a run without answers."""
    seen = list(random_tokens(model, frames * size).split(size))
    question = random_tokens(model, 5, seed=1).tolist()
    options: dict[str, Any] = {
        "every": 0.1, "longest": 8, "clip": 4, "history": 3, "scene": _Cut(),
        "dropped": [0.1 if i % 13 == 5 else 0.8 for i in range(frames)],
    }  # fmt: skip
    with dispider(model, page_size=16, pool_pages=128, exact=True) as pair:
        options["later"], options["now"] = _pair(pair, seen, question, options)
        made = attend(pair, seen, question, **options)
        quiet = attend(pair, seen, question, answering=False, **options)
    later, now = options["later"], options["now"]
    rows = oracle(model, torch.tensor(made.read), Window(None), InCache())
    rule = [bool(rows[at - 1, now] > rows[at - 1, later]) for at in made.clips]
    differ = sum(a != b for a, b in zip(rule, made.fired, strict=True))
    read = [t for one in made.answers for t in (*one.prompt, *one.said)]
    chosen = oracle(model, torch.tensor(read), Window(None), InCache()).argmax(-1).tolist()
    wrong = at = 0
    for one in made.answers:
        at += len(one.prompt)
        wrong += sum(a != b for a, b in zip(one.said, chosen[at - 1 :], strict=False))
        wrong += options["longest"] - len(one.said)
        at += len(one.said)
    work = sum(a != b for a, b in zip(made.work, quiet.work, strict=True))
    slower = max(abs(a - b) for a, b in zip(made.seconds, quiet.seconds, strict=True))
    return [
        Check("decisions that differ from the rule's", differ, 0),
        Check("it answered no clip or every clip", not 0 < sum(rule) < len(rule), 0),
        Check("tokens of answers that the oracle does not choose", wrong, 0),
        Check("frames of another work than without answers", work, 0),
        Check("seconds by which a frame's tick differs from without answers", slower, 1e-9),
        Check("no frame was watched while an answer was under way",
              not any(one.frames for one in made.answers), 0),
    ]  # fmt: skip


def _pair(
    pair: Pair, seen: Sequence[Tensor], question: Sequence[int], options: dict[str, Any]
) -> tuple[int, int]:
    """Two tokens that a model, trained for this or not, prefers in turns."""
    options = options | {"later": 0, "now": 0}
    made = attend(pair, seen, question, answering=False, **options)
    rows = oracle(pair.watcher.model, torch.tensor(made.read), Window(None), InCache())
    rows = rows[[at - 1 for at in made.clips]]
    share = (rows[:, None, :] > rows[:, :32, None]).float().mean(0)
    later, now = divmod(int((share - 0.4).abs().argmin()), share.shape[1])
    return later, now


PRESET = Preset(
    "dispider",
    "Qian et al., Dispider (CVPR 2025), its released session",
    dispider,
    check,
    kind="gate",
)
