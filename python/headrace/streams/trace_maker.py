# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from random import Random

from .events import Event

FRAME = 10
"""Tokens of a frame, as in VideoLLM-online."""


class Trace(list[Event]):
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
