# SPDX-License-Identifier: Apache-2.0
"""Traces of the shapes that streaming workloads have, of any size, from a seed.

The shapes are those of public benchmarks; tokens are random, for what matters here is when work
arrives, how much, and how long it may take. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .events import Event

FRAME = 10
"""Tokens of a frame, as in VideoLLM-online."""


class _Trace(list[Event]):
    """Events as they are made up; `add` returns the number of the new one."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.random = Random(seed)
        self._vocab = vocab

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(self._vocab) for _ in range(count))

    def add(self, time: float, stream: str, kind: str, **of) -> int:
        self.append(Event(time, stream, kind, **of))
        return len(self) - 1

    def sorted(self) -> list[Event]:
        """By time; only for traces in which no event refers to another."""
        return sorted(self, key=lambda event: event.time)

    def camera(self, stream: str, start: float, seconds: float, fps: float, due: float) -> None:
        """A stream of frames, each to be read within `due`."""
        self.add(start, stream, "open")
        for i in range(int(seconds * fps)):
            at = start + (i + 1) / fps
            self.add(at, stream, "feed", tokens=self.tokens(FRAME), deadline=due, group="frame")


def multi_question(
    seed: int = 0, *, videos: int = 2, seconds: float = 20.0, fps: float = 2.0,
    questions: int = 4, max_new: int = 8, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Several questions along one video (StreamingBench, SVBench), some that follow up at once."""
    made = _Trace(seed, vocab)
    for video in range(videos):
        name, start = f"video {video}", made.random.random()
        made.camera(name, start, seconds, fps, 1 / fps)
        at = start
        for _ in range(questions):
            follows = made.random.random() < 0.3
            at += 0.5 if follows else made.random.uniform(0.5, 1.5) * seconds / questions
            said, asked = made.random.randint(2, max_new), made.tokens(made.random.randint(4, 12))
            made.add(at, name, "say", tokens=asked, max_new=said, deadline=1.0, group="question")
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


def proactive(
    seed: int = 0, *, videos: int = 2, seconds: float = 20.0, fps: float = 2.0,
    every: float = 5.0, max_new: int = 8, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Answers that nobody asked for, due soon after what they are about (OmniPro, online protocol).

    Moments come as a Poisson process; at each the stream speaks without a prompt.
    """
    made = _Trace(seed, vocab)
    for video in range(videos):
        name, start = f"video {video}", made.random.random()
        made.camera(name, start, seconds, fps, 1 / fps)
        at = start + 1 / fps
        while (at := at + made.random.expovariate(1 / every)) < start + seconds:
            said = made.random.randint(2, max_new)
            made.add(at, name, "say", max_new=said, deadline=0.5, pace=0.25, group="alert")
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


def lanes(
    seed: int = 0, *, lanes: int = 4, seconds: float = 10.0, fps: float = 2.0,
    questions: int = 3, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """k live streams and one question across them (X-Stream), asked of each at the same moment."""
    made = _Trace(seed, vocab)
    for lane in range(lanes):
        made.camera(f"lane {lane}", 0.01 * lane, seconds, fps, 1 / fps)
    for question in range(questions):
        at, asked = (question + 1) * seconds / (questions + 1), made.tokens(8)
        for lane in range(lanes):
            name = f"lane {lane}"
            made.add(at, name, "say", tokens=asked, max_new=max_new, deadline=1.0, group="question")
    for lane in range(lanes):
        made.add(2 * seconds, f"lane {lane}", "close")
    return made.sorted()


def hours(
    seed: int = 0, *, people: int = 2, hours: float = 2.0, every: float = 20.0,
    questions: int = 6, max_new: int = 8, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Hours per person (TeleEgo): a sparse stream in bouts of activity, and rare questions."""
    made = _Trace(seed, vocab)
    end = hours * 3600
    for person in range(people):
        name, at = f"person {person}", 0.0
        made.add(at, name, "open")
        while (at := at + made.random.expovariate(1 / every)) < end:
            for i in range(made.random.randint(1, 4)):  # a bout
                made.add(at + 0.5 * i, name, "feed", tokens=made.tokens(FRAME), deadline=2.0)
        for _ in range(questions):
            said, asked = made.random.randint(2, max_new), made.tokens(8)
            when = made.random.uniform(0.1, 1.0) * end
            made.add(when, name, "say", tokens=asked, max_new=said, deadline=3.0, group="question")
        made.add(end + 60, name, "close")
    return made.sorted()


def agents(
    seed: int = 0, *, programs: int = 6, turns: int = 4, spread: float = 2.0,
    prompt: int = 40, result: int = 12, max_new: int = 8, deadline: float | None = None,
    vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Agent programs: turns with the gaps between them in which a tool runs.

    The group of a turn is the tool that its answer calls, each with a gap of its own: "search"
    about 0.5 s, "run" about 2 s, "ask" about 8 s; "end" calls none. A turn comes its gap after the
    one before was done. deadline: of the whole program, from its first turn.
    """
    made = _Trace(seed, vocab)
    gaps = {"search": 0.5, "run": 2.0, "ask": 8.0}
    for program in range(programs):
        name, start = f"program {program}", made.random.uniform(0, spread)
        made.add(start, name, "open")
        first, last, gap = None, None, 0.0
        count = made.random.randint(max(1, turns - 1), turns + 1)
        for turn in range(count):
            tool = "end" if turn == count - 1 else made.random.choice(sorted(gaps))
            read = made.random.randint(prompt // 2, prompt) if turn == 0 else result
            last = made.add(
                start if last is None else gap,
                name,
                "say",
                tokens=made.tokens(read),
                max_new=made.random.randint(2, max_new),
                deadline=deadline,
                since=first,
                after=last,
                group=tool,
            )
            first = last if first is None else first
            gap = gaps.get(tool, 0.0) * made.random.uniform(0.8, 1.25)
        made.add(0.0, name, "close", after=last)
    return list(made)


def prefix_heavy(
    seed: int = 0, *, requests: int = 12, system: int = 48, shots: int = 3, shot: int = 16,
    tail: int = 10, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Requests over one system prompt, some of several sets of examples, and their own tail.

    All are there at the start, as in offline batches; one in six repeats another word for word.
    """
    made = _Trace(seed, vocab)
    head, sets = made.tokens(system), [made.tokens(shot) for _ in range(shots)]
    prompts: list[tuple[int, ...]] = []
    for request in range(requests):
        prompt = head + made.random.choice(sets) + made.tokens(made.random.randint(1, tail))
        if request % 6 == 5:
            prompt = made.random.choice(prompts)
        prompts.append(prompt)
        name = f"request {request}"
        made.add(0.0, name, "open")
        last = made.add(
            0.0, name, "say", tokens=prompt, max_new=made.random.randint(2, max_new), group="batch"
        )
        made.add(0.0, name, "close", after=last)
    return list(made)


def retrieval(
    seed: int = 0, *, requests: int = 6, pieces: int = 4, piece: int = 24, delay: float = 0.05,
    spread: float = 0.2, updates: float = 0.5, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Prompts that retrieval delivers in pieces, `delay` apart; then the answer (Stream2LLM).

    A request appends piece by piece, or, with probability `updates`, each new ranking replaces the
    text from some point on.
    """
    made = _Trace(seed, vocab)
    for request in range(requests):
        name, at = f"request {request}", made.random.uniform(0, spread)
        replaces = made.random.random() < updates
        made.add(at, name, "open")
        text: tuple[int, ...] = ()
        for _ in range(pieces):
            more = made.tokens(piece)
            if replaces:
                text = text[: made.random.randint(len(text) // 2, len(text))] + more
                made.add(at, name, "update", tokens=text)
            else:
                made.add(at, name, "feed", tokens=more)
            at += made.random.uniform(0.5, 1.5) * delay
        said, asked = made.random.randint(2, max_new), made.tokens(4)
        last = made.add(at, name, "say", tokens=asked, max_new=said, deadline=1.0)
        made.add(0.0, name, "close", after=last)
    return list(made)


def services(
    seed: int = 0, *, requests: int = 30, rate: float = 20.0, tight: float = 1.0, vocab: int = 256
) -> list[Event]:
    """Requests of three classes with deadlines of their kind (JITServe), a Poisson process.

    "chat" has a deadline for its first token and a pace; "batch" one for the whole; "compound" is a
    chain of three requests under one deadline. Lengths are geometric, by class. tight: scales all
    deadlines.
    """
    made = _Trace(seed, vocab)
    at = 0.0
    for request in range(requests):
        at += made.random.expovariate(rate)
        name, group = f"request {request}", made.random.choice(("chat", "batch", "compound"))
        mean = {"chat": 12, "batch": 24, "compound": 6}[group]
        made.add(at, name, "open")
        first = last = None
        for step in range(3 if group == "compound" else 1):
            length = 1 + min(4 * mean, int(made.random.expovariate(1 / mean)))
            last = made.add(
                0.01 if step else at,
                name,
                "say",
                tokens=made.tokens(made.random.randint(8, 48) if not step else 6),
                max_new=length,
                deadline=tight * {"chat": 0.3, "batch": 0.9, "compound": 1.2}[group],
                pace=0.03 * tight if group == "chat" else None,
                since=first,
                after=last,
                group=group,
            )
            first = last if first is None else first
        made.add(0.0, name, "close", after=last)
    return list(made)


SHAPES: dict[str, Callable[..., list[Event]]] = {
    "multi_question": multi_question,
    "proactive": proactive,
    "lanes": lanes,
    "hours": hours,
    "agents": agents,
    "prefix_heavy": prefix_heavy,
    "retrieval": retrieval,
    "services": services,
}
