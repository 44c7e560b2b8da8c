# SPDX-License-Identifier: Apache-2.0
"""StreamChar: a talking character, chunk by chunk, led by a pointer into its text.

StreamChar; known here from its abstract alone: streaming generation of a character that speaks, in
real time on an H100, with the first chunk as a sink, a local window, and a pointer that says how
far the transcript has come.

Chosen here: four steps, chunks of 3 latent frames, a window of 3 finished ones at their ranks;
every word has a length in frames; a chunk is conditioned on the mean of the words that its frames
are spoken in, and where the text has ended, on the last of them.

Oracle: a masked forward over all chunks, without a cache, and the pointer by cumulative lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..memory import Sink, Window
from ..streams import InCache, Ring
from .given import counts
from .proof import Check, Preset
from .ring_loops import Loop, equality, small_denoiser, stacked
from .rolling_forcing import warped

__all__ = ["Pointer", "StreamChar", "stream_char"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


class Pointer:
    """Where in a text the next frame is: words [W, K] that last `frames` each.

    at: the word of the next frame. `say` adds words while it goes on.
    """

    def __init__(self, words: Tensor, frames: Sequence[int]) -> None:
        self.words, self.frames, self.at = words[:0], list[int](), 0
        self._spent = 0
        self.say(words, frames)

    def say(self, words: Tensor, frames: Sequence[int]) -> None:
        """More words at the end of the text. ValueError unless each has a length of 1 or more."""
        if len(words) != len(frames) or any(n < 1 for n in frames):
            raise bad_value("Pointer.say", "frames", f"{len(words)} numbers from 1", list(frames))
        self.words, self.frames = torch.cat([self.words, words]), [*self.frames, *frames]

    def take(self, count: int) -> list[int]:
        """The words of the next `count` frames; the last word lasts on."""
        if not self.frames:
            raise bad_value("Pointer.take", "words", "a text", "none")
        spoken = []
        for _ in range(count):
            while self._spent >= self.frames[self.at] and self.at + 1 < len(self.frames):
                self.at, self._spent = self.at + 1, 0
            spoken.append(self.at)
            self._spent += 1
        return spoken


def loop(levels: Sequence[float] = LEVELS, window: int = 3, chunk: int = 3) -> Loop:
    """One chunk in flight behind the first and the newest `window`."""
    memory = Sink(1) + Window(window + 1)
    return Loop(levels, 1, memory=memory, positions=InCache(), span=chunk)


class StreamChar:
    """`chunk()` gives the next chunk. ring and pointer: what it is made with."""

    def __init__(self, ring: Ring, pointer: Pointer, frames: int) -> None:
        self.ring, self.pointer, self.frames = ring, pointer, frames
        self._blank = torch.zeros(ring.shape)

    def chunk(self) -> Tensor:
        """The next chunk [P, C], in which the text is spoken on."""
        spoken = self.pointer.take(self.frames)
        self.ring.tick(self._blank, condition=self.pointer.words[spoken].mean(0))
        return self.ring.drain()[0].frame

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()


def stream_char(
    denoiser: Any,
    words: Tensor,
    frames: Sequence[int],
    *,
    levels: Sequence[float] = LEVELS,
    window: int = 3,
    chunk: int = 3,
    **options: Any,
) -> StreamChar:
    """The character: `chunk()` gives the next chunk, in which the text is spoken on.

    words [W, K]: what a chunk is conditioned on while they are spoken. frames: how many each lasts.
    levels: of noise, one for every step, falling. window: finished chunks that are seen beside the
    first. chunk: latent frames of one. Options as in `headrace.Ring`, whose errors it raises.
    ValueError where frames are not as many as words, each 1 or more.
    """
    counts("stream_char", least=0, window=window)
    ring = loop(levels, window, chunk).ring(denoiser, **options)
    return StreamChar(ring, Pointer(words, frames), chunk)


def _told(words: Tensor, frames: Sequence[int], number: int, chunk: int) -> Mapping[str, Any]:
    ends = torch.tensor(frames).cumsum(0)
    at = torch.arange(number * chunk, (number + 1) * chunk)
    word = torch.searchsorted(ends, at, right=True).clamp(max=len(words) - 1)
    return {"condition": words[word].mean(0)}


def oracle(
    denoiser: Any, words: Tensor, frames: Sequence[int], chunks: int, *, anew: bool = False
) -> Tensor:
    """Chunks [N, P, C] of 3 frames, by the defaults; `anew`: with what is seen encoded anew."""
    c, told = denoiser.config, loop()
    blank = torch.zeros(chunks, c.tokens, c.channels)
    run = told.recompute if anew else told.oracle
    return run(denoiser, blank, own=lambda number, step: _told(words, frames, number, 3))


def recompute(denoiser: Any, words: Tensor, frames: Sequence[int], chunks: int) -> Tensor:
    """The same with what is seen encoded anew."""
    return oracle(denoiser, words, frames, chunks, anew=True)


def check(denoiser: Any) -> list[Check]:
    """Equality along a text, the pointer among it, and a text that comes in parts."""
    words = torch.randn(9, denoiser.config.condition, generator=torch.Generator().manual_seed(6))
    frames, chunks = [2, 1, 4, 3, 1, 1, 5, 2, 3], 10
    want = oracle(denoiser, words, frames, chunks)

    def opened(**options: Any) -> Ring:
        return stream_char(denoiser, words, frames, **options).ring

    blank = torch.zeros_like(want, dtype=torch.float32)
    told = [_told(words, frames, number, 3) for number in range(chunks)]
    checks = equality(opened, blank, want, own=lambda number: told[number])
    with opened() as ring:
        played = stacked([f for i in range(chunks) for f in _done(ring, blank[i], told[i])])
    speaker = stream_char(denoiser, words[:2], frames[:2])
    made, pointed = [], []
    for number in range(chunks):
        if number == 1:  # the first chunk ends the first two words
            speaker.pointer.say(words[2:], frames[2:])
        made.append(speaker.chunk())
        pointed.append(speaker.pointer.at)
    speaker.close()
    differ = int((torch.stack(made) != played).sum())
    checks.append(Check("a text in two parts: values that differ", differ, 0))
    back = sum(b < a for a, b in pairwise(pointed))
    checks.append(Check("steps back of the pointer", back, 0))
    checks.append(Check("words left at the end", len(words) - 1 - pointed[-1], 0))
    return checks


def _done(ring: Ring, frame: Tensor, own: Mapping[str, Any]) -> list[Any]:
    return [*ring.tick(frame, **own), *ring.drain()]


PRESET = Preset(
    "stream_char",
    "StreamChar, abstract",
    stream_char,
    check,
    small_denoiser,
    oracle,
    recompute,
    kind="ring",
)
