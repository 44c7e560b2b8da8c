# SPDX-License-Identifier: Apache-2.0
"""Knobs of a ring: what may change while frames are in flight, and when a change acts.

A knob that acts on the "tick" is read by every frame at every tick: a change shows in what the next
tick finishes. One that acts on the "frame" is read once, as a frame comes in, and that frame keeps
it: a change shows when the next frame to come ends, its steps later. (DEMON's two classes.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_type, bad_value

ACTS = {
    "guidance": "tick",
    "delta": "tick",
    "velocity": "tick",
    "renoise": "tick",
    "target": "tick",
    "condition": "frame",
    "negative": "frame",
    "levels": "frame",
    "start": "frame",
}
"""Every knob, and when it acts unless a ring declares otherwise."""

FIXED = ("levels", "start")
"""Those that act on the frame and nowhere else."""


class Knobs(Mapping[str, Any]):
    """The values of the knobs of a ring; `Ring.set` changes them.

    guidance: scale g of p = d u + g (c - d u), for the predictions c with and u without condition.
    delta: d above. velocity: multiplies the prediction. renoise: 1 goes to the next level with
    fresh noise (few-step consistency models), 0 with the noise that was predicted (an ODE), between
    them with sqrt(1 - r^2) of one and r of the other. target: how much of the frame that came in is
    mixed into what a step says is clean. Each of these is a number, or a tensor that broadcasts
    with [P, C], other than guidance a curve over tokens. condition, negative: [K] or [P, K].
    levels: those of a frame's steps, each at most the one before. start: the level to which a frame
    is mixed with noise as it comes, the first of its levels unless said.
    """

    def __init__(
        self, acts: Mapping[str, str], shape: tuple[int, int], condition: int, device: torch.device
    ) -> None:
        for name, when in acts.items():
            if name not in ACTS:
                raise bad_value("Ring", "acts", f"names of {', '.join(ACTS)}", repr(name))
            if when not in ("tick", "frame") or (name in FIXED and when == "tick"):
                kinds = "frame" if name in FIXED else "tick or frame"
                raise bad_value("Ring", "acts", f"{name}: {kinds}", repr(when))
        self.acts = {**ACTS, **acts}
        self._shape, self._condition, self._device = shape, (shape[0], condition), device
        blank = torch.zeros(condition, device=device)
        self._values: dict[str, Any] = {
            "guidance": 1.0,
            "delta": 1.0,
            "velocity": 1.0,
            "renoise": 1.0,
            "target": 0.0,
            "condition": blank,
            "negative": blank,
            "levels": (),
            "start": None,
        }

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def turn(self, values: Mapping[str, Any], op: str) -> None:
        """Sets knobs, all of them or none."""
        self._values.update(self.checked(values, op))

    def of_frame(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What a frame that comes in now takes along; `own`: values for this frame alone."""
        for name in own:
            if self.acts.get(name) != "frame":
                frame = ", ".join(n for n, when in self.acts.items() if when == "frame")
                raise bad_value("Ring.tick", name, f"a knob that acts on the frame: {frame}", name)
        taken = {n: self._values[n] for n, when in self.acts.items() if when == "frame"}
        return {**taken, **self.checked(own, "Ring.tick")}

    def of_tick(self, taken: Mapping[str, Any], name: str) -> Any:
        """The value that holds at this tick for a frame that took these along."""
        return taken[name] if self.acts[name] == "frame" else self._values[name]

    def checked(self, values: Mapping[str, Any], op: str) -> dict[str, Any]:
        """The values in the form they are kept in. TypeError or ValueError naming the knob."""
        made: dict[str, Any] = {}
        for name, value in values.items():
            if name not in ACTS:
                raise bad_value(op, "knob", f"one of {', '.join(ACTS)}", repr(name))
            if name == "levels":
                made[name] = _levels(value, op)
            elif name == "start":
                made[name] = None if value is None else _levels((value,), op)[0]
            elif isinstance(value, Tensor):
                shape = self._condition if name in ("condition", "negative") else self._shape
                try:
                    fits = torch.broadcast_shapes(value.shape, shape) == torch.Size(shape)
                except RuntimeError:
                    fits = False
                if not fits:
                    raise bad_value(op, name, f"what broadcasts to {list(shape)}", [*value.shape])
                made[name] = value.detach().float().to(self._device, copy=True)
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise bad_type(op, name, "a number or a tensor", repr(value))
            elif name in ("condition", "negative"):
                raise bad_type(op, name, f"a tensor of {self._condition[1]} numbers", repr(value))
            else:
                made[name] = float(value)
        return made


def _levels(value: Any, op: str) -> tuple[float, ...]:
    try:
        made = tuple(float(level) for level in value)
    except TypeError as error:
        raise bad_type(op, "levels", "numbers between 0 and 1", repr(value)) from error
    falling = all(a >= b for a, b in pairwise(made))
    if not made or not falling or not 0 < made[-1] <= made[0] <= 1:
        raise bad_value(op, "levels", "falling numbers, above 0 and up to 1", made)
    return made
