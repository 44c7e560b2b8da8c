# SPDX-License-Identifier: Apache-2.0
"""DEMON: a ring of requests with schedules of their own, played by knobs of two classes.

DEMON, github.com/daydreamlive/DEMON, its documentation: a real-time music diffusion engine. Depth 1
to 8, 4 by default, of requests of 8 steps; every slot owns its schedule. Shared curves (strength of
noise in the sampler, velocity, pull towards the source) are read by every solver step and so act
with the next tick; what a request was submitted with (how far it is noised, its seed, its prompt)
acts once that request has gone through its steps. The sampler is an ODE unless it is given noise.

Chosen here: levels 1 to 1/8 evenly, a request admitted with every second tick, so that those in
flight are evenly apart; guidance among the shared knobs.

Oracle: every request by itself, step by step; a knob's history is a function of (request, step).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..streams import Ring
from ..streams.ring_knobs import ACTS
from ..streams.ring_noise import seeded
from ..streams.ring_oracle import Knobs, unrolled
from .proof import Check, Preset
from .ring_loops import BOUND, clip, directions, gap, small_denoiser, stacked

__all__ = ["demon", "levels_of", "played"]

STEPS, DEPTH = 8, 4


def levels_of(strength: float = 1.0, steps: int = STEPS) -> tuple[float, ...]:
    """Levels of a request that is noised to `strength`, falling evenly."""
    return tuple(strength * (steps - i) / steps for i in range(steps))


def demon(
    denoiser: Any,
    *,
    depth: int = DEPTH,
    levels: Sequence[float] | None = None,
    knobs: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Ring:
    """A ring of `depth` requests. Give it one with every second tick (steps over depth), and turn
    knobs whenever you like.

    levels: of noise, one for every step, falling; those of `levels_of` unless said. knobs: first
    values. seed: of the noise. Options as in `headrace.Ring`, whose errors it raises.
    """
    told = {"renoise": 0.0, **(knobs or {})}
    return Ring(denoiser, levels or levels_of(), depth=depth, noise=seed, knobs=told, **options)


def oracle(denoiser: Any, frames: Tensor, knobs: Knobs, *, seed: int = 0) -> Tensor:
    """Requests [N, P, C] done one after the other; knobs as in `unrolled`."""
    c = denoiser.config
    return unrolled(denoiser, frames, seeded(seed, c.tokens, c.channels), knobs)


def played(
    ring: Ring, frames: Iterable[Tensor], every: int, turns: Mapping[int, Mapping[str, Any]]
) -> Tensor:
    """Requests with every `every`-th tick; turns: knobs to turn before a tick."""
    done, waiting = [], list(frames)
    while waiting or ring.flying:
        ring.set(**turns.get(ring.now, {}))
        due = waiting and ring.now % every == 0
        done += ring.tick(waiting.pop(0) if due else None)
    return stacked(done)


def check(denoiser: Any) -> list[Check]:
    """Streaming equals one request at a time, and every knob acts when it says."""
    frames, every, turn = clip(denoiser, 6), STEPS // DEPTH, 8
    told = {"condition": directions(denoiser), "renoise": 0.0}
    turned = {
        "velocity": 0.8,
        "renoise": 0.6,
        "target": 0.3,
        "condition": directions(denoiser, 8),
        "levels": levels_of(0.7),
    }

    def run(depth: int, every: int, turns: Mapping[int, Mapping[str, Any]]) -> Tensor:
        with demon(denoiser, knobs=told, levels=levels_of(0.9), depth=depth) as ring:
            return played(ring, frames, every, turns)

    plain, alone = run(DEPTH, every, {}), run(1, STEPS, {})
    name = "streaming or one request at a time: values that differ"
    checks = [Check(name, int((plain != alone).sum()), 0)]
    for name, value in turned.items():
        shared = ACTS[name] == "tick"

        def history(number: int, step: int, name: str = name, value: Any = value) -> dict[str, Any]:
            tick = number * every + (step if ACTS[name] == "tick" else 0)
            start = {**told, "levels": levels_of(0.9)}
            return {**start, **({name: value} if tick >= turn else {})}

        got = run(DEPTH, every, {turn: {name: value}})
        worst = gap(got, oracle(denoiser, frames, history))
        kind = "read by every step" if shared else "of a request"
        checks.append(Check(f"{name}, {kind}: max |value - oracle| over max", worst, BOUND))
        # With a request out at every tick, turned between ticks k and k + 1.
        k = STEPS if shared else 2
        full = run(STEPS, 1, {k + 1: {name: value}})
        first = int((full != plain).flatten(1).any(1).int().argmax()) + STEPS - 1
        due = k + STEPS if not shared else k + 1 + (name == "renoise")
        note = "k + S" if not shared else "k + 2, having no say in a last step" * (k + 2 == due)
        claim = f"{name}: ticks off its first effect, {note or 'k + 1'}"
        checks.append(Check(claim, abs(first - due), 0))
    return checks


PRESET = Preset(
    "demon",
    "DEMON; github.com/daydreamlive/DEMON, documentation",
    demon,
    check,
    small_denoiser,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="ring",
)
