# SPDX-License-Identifier: Apache-2.0
"""StreamDiffusionV2: a ring whose every step has a rolling cache, for video with deadlines.

Feng et al., StreamDiffusionV2 (2025), github.com/chenfengxu714/StreamDiffusionV2; its causal model
and its streaming loop were read. Two steps, 0.7 and 0.5, of flow matching; a frame at a step sees
the frames that passed that step before it: 6 with itself, the first 3 pinned. In every layer a
pinned frame whose mean key and mean value have an average cosine below 0.2 with the new frame's
gives it its place. Noise follows motion: d = clamp(rms difference to the last frame / 0.2, 0, 1),
s <- 0.9 (s0 - 0.1 d) + 0.1 s from s0 = 0.8; a frame is mixed with noise to level s, and its first
step is at (int(1000 s) - 100) / 1000.

Chosen here: likeness of keys before their rotation, so that age alone is no change; replaced only
once the cache is full; keys stay about their own frame, so there is no counter to start again at
frame 50; where a frame had to wait half a second for the next, it goes through its steps at once,
as there, but those in flight are finished, not zeroed. A frame out later than `deadline` after it
came is reported as missed.

Oracle: for every step one masked forward over all frames, sinks walked frame by frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory import Sink, Window
from ..streams import Finished, Ring
from ..streams.ring_noise import seeded
from ..streams.ring_oracle import Knobs, unrolled
from ..streams.ring_recompute import recompute_unrolled
from .given import numbers
from .proof import Check, Preset
from .ring_loops import BOUND, clip, directions, equality, gap, rows_of, small_denoiser

__all__ = ["NoiseController", "Served", "StreamDiffusionV2", "stream_diffusion_v2"]

LEVELS = (0.7, 0.5)


class NoiseController:
    """How much noise a frame gets: less, where the picture moves."""

    def __init__(self, base: float = 0.8) -> None:
        self.base = self.scale = base
        self._last: Tensor | None = None

    def __call__(self, frame: Tensor) -> tuple[float, float]:
        """(level to mix a frame to, level of its first step)."""
        moved = 0.0
        if self._last is not None:
            moved = float((frame - self._last).double().square().mean().sqrt()) / 0.2
        self._last = frame.clone()
        self.scale = 0.9 * (self.base - 0.1 * min(moved, 1.0)) + 0.1 * self.scale
        return self.scale, (int(1000 * self.scale) - 100) / 1000


@dataclass(frozen=True)
class Served:
    """A frame that is done, seconds after it came, and whether that was too late."""

    number: int
    frame: Tensor
    lag: float
    missed: bool


class StreamDiffusionV2:
    """A ring that a camera feeds. deadline: seconds from a frame's arrival to its result.

    patience: seconds of waiting for a frame from which on it is not kept for the next. clock: gives
    seconds. missed: results that came too late.
    """

    def __init__(
        self,
        ring: Ring,
        controller: NoiseController | None,
        deadline: float | None,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        self.ring, self.controller, self.deadline = ring, controller, deadline
        self.patience, self.clock, self.missed = patience, clock, 0
        self._arrived: dict[int, float] = {}
        self._number = 0

    def feed(
        self, frame: Tensor, *, arrived: float | None = None, waited: float = 0.0
    ) -> list[Served]:
        """One frame in, and what is done. arrived: when it came, by the clock; now unless said.
        waited: seconds that the loop stood still for it."""
        own: dict[str, Any] = {}
        if self.controller is not None:
            own["start"], first = self.controller(frame)
            own["levels"] = (first, *self.ring.knobs["levels"][1:])
        self._arrived[self._number] = self.clock() if arrived is None else arrived
        self._number += 1
        done = self.ring.tick(frame, **own)
        return self._served(done) + (self.drain() if waited >= self.patience else [])

    def drain(self) -> list[Served]:
        """Everything in flight, finished."""
        done: list[Served] = []
        while self.ring.flying:
            done += self._served(self.ring.tick())
        return done

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()

    def _served(self, done: Sequence[Finished]) -> list[Served]:
        made = []
        for f in done:
            lag = self.clock() - self._arrived.pop(f.number)
            missed = self.deadline is not None and lag > self.deadline
            self.missed += missed
            made.append(Served(f.number, f.frame, lag, missed))
        return made


def stream_diffusion_v2(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    sinks: int = 3,
    window: int = 3,
    swap: float | None = 0.2,
    controller: NoiseController | bool = True,
    deadline: float | None = None,
    patience: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    condition: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> StreamDiffusionV2:
    """The system over a denoiser that predicts flow.

    levels: of noise, one for every step, falling. sinks, window: frames that are seen, pinned and
    newest, the one that looks among these. swap: likeness below which a pinned frame is replaced,
    None for never. controller: True for a `NoiseController()`, or one of yours: motion then chooses
    the first of the levels, which must stay above the second; False leaves the levels as they are.
    deadline: seconds from a frame's arrival to its result; None for none. patience: seconds of
    waiting for a frame from which on those in flight are finished first. clock: gives seconds.
    condition [K]: what frames are conditioned on. seed: of their noise. Options as in
    `headrace.Ring`, whose errors it raises.
    """
    numbers("stream_diffusion_v2", patience=patience)
    if swap is not None:
        numbers("stream_diffusion_v2", least=-1, swap=swap)
    ring = Ring(
        denoiser,
        levels,
        memory=Sink(sinks) + Window(window),
        swap=swap,
        noise=seed,
        knobs={} if condition is None else {"condition": condition},
        **options,
    )
    own = NoiseController() if controller is True else controller or None
    return StreamDiffusionV2(ring, own, deadline, patience, clock)


def oracle(
    denoiser: Any,
    frames: Tensor,
    *,
    levels: Sequence[float] = (0.7, 0.5),
    sinks: int = 3,
    window: int = 3,
    swap: float | None = 0.2,
    base: float | None = None,
    condition: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """What becomes of frames [N, P, C]. base: s0 of the noise controller, None without."""
    knobs = _knobs(denoiser, frames, levels, base, condition)
    c, memory = denoiser.config, Sink(sinks) + Window(window)
    noise = seeded(seed, c.tokens, c.channels)
    return unrolled(denoiser, frames, noise, knobs, memory=memory, swap=swap)


def recompute(
    denoiser: Any,
    frames: Tensor,
    *,
    levels: Sequence[float] = LEVELS,
    sinks: int = 3,
    window: int = 3,
    base: float | None = None,
    condition: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The same with what is alive encoded anew; sinks are the first frames, none is replaced."""
    knobs = _knobs(denoiser, frames, levels, base, condition)
    c, memory = denoiser.config, Sink(sinks) + Window(window)
    noise = seeded(seed, c.tokens, c.channels)
    return recompute_unrolled(denoiser, frames, noise, knobs, memory=memory)


def _knobs(
    denoiser: Any,
    frames: Tensor,
    levels: Sequence[float],
    base: float | None,
    condition: Tensor | None,
) -> Knobs:
    knobs: list[dict[str, Any]] = []
    scale = base or 0.0
    told = torch.zeros(denoiser.config.condition) if condition is None else condition
    for i, frame in enumerate(frames.double()):
        own: dict[str, Any] = {"levels": tuple(levels), "condition": told}
        if base is not None:
            rms = (frame - frames[i - 1].double()).pow(2).mean() ** 0.5 if i else torch.zeros(())
            scale = (base - 0.1 * float((rms / 0.2).clamp(0, 1))) * 0.9 + scale * 0.1
            own["start"] = scale
            own["levels"] = ((int(1000 * scale) - 100) / 1000, *levels[1:])
        knobs.append(own)
    return lambda number, step: knobs[number]


def check(denoiser: Any, *, levels: Sequence[float] = (0.7, 0.5, 0.3)) -> list[Check]:
    """Equality with fixed and with swapped sinks and with the controller; drain; deadlines."""
    frames = clip(denoiser, 12)
    told: dict[str, Any] = {"levels": levels, "condition": directions(denoiser)}
    checks, last = [], {}
    for name, swap in (("fixed sinks", None), ("adaptive sinks", 0.95)):

        def opened(swap: float | None = swap, **options: Any) -> Ring:
            return stream_diffusion_v2(denoiser, swap=swap, **told, **options).ring

        want = last[name] = oracle(denoiser, frames, swap=swap, **told)
        for made in equality(opened, frames, want):
            checks.append(Check(f"{name}: {made.name}", made.figure, made.bound))
        rows, calls = rows_of(opened, frames)
        figure = abs(rows - len(levels)) + abs(calls - 1)
        checks.append(Check(f"{name}: model rows beside {len(levels)}, in one call", figure, 0))
    same = float((last["fixed sinks"] == last["adaptive sinks"]).all())
    checks.append(Check("adaptive sinks: 1 if no sink was ever replaced", same, 0))
    return checks + _served_checks(denoiser, frames, told)


def _served_checks(denoiser: Any, frames: Tensor, told: dict[str, Any]) -> list[Check]:
    """The controller, pauses, and deadlines on a clock of 0.1 s a tick, 0.4 s for some."""
    want = oracle(denoiser, frames, base=0.8, **told)
    ends = (torch.arange(len(frames)) % 5 == 4).double().mul(0.3).add(0.1).cumsum(0).tolist()
    came = [max(0.0, end - 0.15) for end in ends]
    depth, now, late = len(told["levels"]), [0.0], 0
    for i in range(len(frames)):  # out with the tick that its last step is in
        late += ends[min(i + depth - 1, len(frames) - 1)] - came[i] > 0.5
    served: dict[str, list[Served]] = {}
    missed = {}
    for name, waits in (("in a row", ()), ("with pauses", (2, 3, 7))):
        made = stream_diffusion_v2(
            denoiser, controller=NoiseController(), deadline=0.5, clock=lambda: now[0], **told
        )
        done: list[Served] = []
        for i, frame in enumerate(frames):
            now[0] = ends[i]
            done += made.feed(frame, arrived=came[i], waited=0.6 if i in waits else 0.0)
        served[name] = done + made.drain()
        missed[name] = made.missed
        made.close()
    a, b = (torch.stack([s.frame for s in done]) for done in served.values())
    return [
        Check("noise controller: max |value - oracle| over max |oracle|", gap(a, want), BOUND),
        Check("with pauses that drain the ring: values that differ", int((a != b).sum()), 0),
        Check(
            f"deadline misses reported, beside the {late} there are",
            abs(missed["in a row"] - late),
            0,
        ),
        Check("deadline misses where pauses drain the ring", missed["with pauses"], late - 1),
    ]


PRESET = Preset(
    "stream_diffusion_v2",
    "Feng et al., 2025; github.com/chenfengxu714/StreamDiffusionV2",
    stream_diffusion_v2,
    check,
    small_denoiser,
    oracle,
    recompute,
    kind="ring",
)
