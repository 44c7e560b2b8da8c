# SPDX-License-Identifier: Apache-2.0
"""Traces of the shapes that streaming workloads have, of any size, from a seed.

The shapes are those of public benchmarks; tokens are random, for what matters here is when work
arrives, how much, and how long it may take. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from .events import Event
from .lane import Lane
from .serving_traces import agents, prefix_heavy, retrieval, services
from .trace_maker import FRAME, Trace


def multi_question(
    seed: int = 0, *, videos: int = 2, seconds: float = 20.0, fps: float = 2.0,
    questions: int = 4, max_new: int = 8, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Several questions along one video (StreamingBench, SVBench), some that follow up at once."""
    made = Trace(seed, vocab)
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
    every: float = 5.0, probe: float | None = None, max_new: int = 8, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Answers that nobody asked for, due soon after what they are about (OmniPro, online protocol).

    Moments come as a Poisson process; at each the stream speaks without a prompt. probe: seconds
    after which it is asked each time whether it would speak now, in one token (probe protocol).
    """
    made = Trace(seed, vocab)
    for video in range(videos):
        name, start = f"video {video}", made.random.random()
        made.camera(name, start, seconds, fps, 1 / fps)
        at = start + 1 / fps
        while (at := at + made.random.expovariate(1 / every)) < start + seconds:
            said = made.random.randint(2, max_new)
            made.add(at, name, "say", max_new=said, deadline=0.5, pace=0.25, group="alert")
        asked = made.tokens(4) if probe else ()
        for i in range(1, int(seconds / probe) + 1 if probe else 0):
            at = start + i * (probe or 0.0)
            made.add(at, name, "say", tokens=asked, max_new=1, deadline=0.5, group="probe")
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


def lanes(
    seed: int = 0, *, lanes: int = 4, seconds: float = 10.0, fps: float = 2.0,
    questions: int = 3, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """k live streams and one question across them (X-Stream), asked of each at the same moment."""
    made = Trace(seed, vocab)
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
    made = Trace(seed, vocab)
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


def probes(
    seed: int = 0, *, videos: int = 2, seconds: float = 20.0, fps: float = 2.0, every: float = 2.5,
    vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """One question put again and again along a video, of how often something was seen so far
    (VCBench): each answer is a number, due at once, and shows what eviction has cost.
    """
    made = Trace(seed, vocab)
    for video in range(videos):
        name, start = f"video {video}", made.random.random()
        made.camera(name, start, seconds, fps, 1 / fps)
        asked = made.tokens(8)
        for probe in range(1, int(seconds / every) + 1):
            at = start + probe * every
            made.add(at, name, "say", tokens=asked, max_new=2, deadline=0.5, group="probe")
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


def embodied(
    seed: int = 0, *, agents: int = 2, seconds: float = 20.0, fps: float = 2.0,
    questions: int = 6, max_new: int = 8, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Questions of somebody who acts, about the past, the moment and what is to come (StreamEQA).

    "past" may take long and be long, "now" is short and due before the next frames, "next" is due
    before the moment it is about, one to three seconds later.
    """
    made = Trace(seed, vocab)
    for agent in range(agents):
        name, start = f"agent {agent}", made.random.random()
        made.camera(name, start, seconds, fps, 1 / fps)
        for _ in range(questions):
            at = start + made.random.uniform(0.1, 1.0) * seconds
            scope = made.random.choice(("past", "now", "next"))
            due = {"past": 3.0, "now": 0.4, "next": made.random.uniform(1.0, 3.0)}[scope]
            most = {"past": max_new, "now": 2, "next": max(2, max_new // 2)}[scope]
            said, asked = made.random.randint(min(2, most), most), made.tokens(8)
            made.add(at, name, "say", tokens=asked, max_new=said, deadline=due, group=scope)
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


def x_stream(
    seed: int = 0, *, shows: int = 2, cameras: int = 4, seconds: float = 10.0, fps: float = 2.0,
    questions: int = 3, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """k live lanes and one question across them (X-Stream), for an engine with `x_stream_lanes`.

    Frames of all cameras come about together; an answer may take until two frames later.
    """
    made = Trace(seed, vocab)
    for show in range(shows):
        name, start = f"show {show}", made.random.random()
        made.add(start, name, "open")
        for camera in range(cameras):
            lane, late = f"{name}/camera {camera}", 0.02 * camera
            for i in range(int(seconds * fps)):
                at = start + late + (i + 1) / fps
                fed = made.tokens(FRAME)
                made.add(at, lane, "feed", tokens=fed, deadline=1 / fps, group="frame")
        for _ in range(questions):
            at, asked = start + made.random.uniform(0.1, 1.0) * seconds, made.tokens(8)
            said = made.random.randint(2, max_new)
            made.add(
                at, f"{name}/answer", "say", tokens=asked, max_new=said, deadline=2 / fps,
                group="question",
            )  # fmt: skip
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


def x_stream_lanes(cameras: int = 4) -> tuple[Lane, ...]:
    """A lane for every camera, and the answer, which reads them all."""
    names = [f"camera {i}" for i in range(cameras)]
    return (*(Lane(name) for name in names), Lane("answer", reads=names, kind="out"))


def gaze(
    seed: int = 0, *, people: int = 2, seconds: float = 10.0, fps: float = 2.0, rate: float = 4.0,
    questions: int = 4, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """A video with an extra lane of events, where its wearer looks (StreamGaze); `GAZE_LANES`.

    A gaze is two tokens, `rate` of them a second in bursts, due at once; questions are about what
    was looked at, and half of them come right after a gaze.
    """
    made = Trace(seed, vocab)
    for person in range(people):
        name, start = f"person {person}", made.random.random()
        made.add(start, name, "open")
        for i in range(int(seconds * fps)):
            at, fed = start + (i + 1) / fps, made.tokens(FRAME)
            made.add(at, f"{name}/video", "feed", tokens=fed, deadline=1 / fps, group="frame")
        looks, at = [], start
        while (at := at + made.random.expovariate(rate / 2)) < start + seconds:
            for i in range(made.random.randint(1, 3)):
                looks.append(at + 0.05 * i)
                fed = made.tokens(2)
                made.add(looks[-1], f"{name}/gaze", "feed", tokens=fed, deadline=0.1, group="gaze")
        for question in range(questions):
            at = start + made.random.uniform(0.1, 1.0) * seconds
            if question % 2 and looks:
                at = made.random.choice(looks) + 0.05
            said, asked = made.random.randint(2, max_new), made.tokens(8)
            made.add(
                at, f"{name}/answer", "say", tokens=asked, max_new=said, deadline=1.0,
                group="question",
            )  # fmt: skip
        made.add(start + 2 * seconds, name, "close")
    return made.sorted()


GAZE_LANES = (Lane("video"), Lane("gaze"), Lane("answer", reads=("video", "gaze"), kind="out"))


SHAPES: dict[str, Callable[..., list[Event]]] = {
    "multi_question": multi_question,
    "proactive": proactive,
    "lanes": lanes,
    "hours": hours,
    "probes": probes,
    "embodied": embodied,
    "agents": agents,
    "prefix_heavy": prefix_heavy,
    "retrieval": retrieval,
    "services": services,
}
"""For engines whose streams have one lane."""

OF_LANES: dict[str, tuple[Callable[..., list[Event]], tuple[Lane, ...]]] = {
    "x_stream": (x_stream, x_stream_lanes()),
    "gaze": (gaze, GAZE_LANES),
}
"""For engines with these lanes."""
