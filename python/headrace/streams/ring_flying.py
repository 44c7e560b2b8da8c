# SPDX-License-Identifier: Apache-2.0
"""A frame in flight, and what one solver step makes of it.

Guidance: p = d u + g (c - d u), of the predictions c with and u without the condition. Residual
guidance (RCFG, StreamDiffusion, Kodaira et al., 2023) takes u to be the prediction that leads to an
anchor: the frame that came in ("self"), or what the model without condition made of it at its first
step ("initialize"). So n frames cost n or n + 1 model rows, where the classic way ("full", without
d) costs 2 n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .ring_solver import Solver

GUIDANCE = ("none", "self", "initialize", "full")


@dataclass(frozen=True)
class Flying:
    """A frame on its way.

    at: its place in time. step: the next one. anchor: of residual guidance. noise [S, P, C]. given
    bool [P]: tokens that stay as they came, at level 0. sees, label: of a ring with a rule.
    """

    number: int
    at: int
    frame: Tensor
    x: Tensor
    anchor: Tensor
    noise: Tensor
    knobs: Mapping[str, Any] = field(repr=False)
    began: int
    step: int = 0
    given: Tensor | None = None
    sees: tuple[tuple[int, int], ...] | None = None
    label: Any = None

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise of each of its steps."""
        levels: tuple[float, ...] = self.knobs["levels"]
        return levels

    @property
    def done(self) -> bool:
        return self.step == len(self.levels)

    def level(self, clean: bool) -> Tensor:
        """fp32 [P], the level of every token in the model call to come."""
        level = torch.full(self.x.shape[:1], 0.0 if clean else self.levels[self.step])
        level = level.to(self.x.device)
        return level if self.given is None else level.masked_fill(self.given, 0.0)

    def mixed(self, solver: Solver) -> Flying:
        """With its first noise."""
        start = self.knobs["start"]
        a, b = solver.mix(self.levels[0] if start is None else start)
        return self._with(a * self.frame + b * self.noise[0])

    def stepped(
        self, c: Tensor, u: Tensor | None, guidance: str, solver: Solver, knob: Callable[[str], Any]
    ) -> Flying:
        """One step on, by the predictions [P, C] with and, where the model made one, without the
        condition. knob(name) is the value at this tick."""
        a, b = solver.mix(self.levels[self.step])
        anchor, p = self.anchor, c
        if guidance != "none":
            if u is None:
                u = solver.toward(self.x, anchor, a, b)
            elif guidance == "initialize":
                anchor = solver.clean(self.x, u, a, b)
            u = u if guidance == "full" else knob("delta") * u
            p = u + knob("guidance") * (c - u)
        p = knob("velocity") * p
        target = knob("target")
        x = (1 - target) * solver.clean(self.x, p, a, b) + target * self.frame
        if self.step + 1 < len(self.levels):
            a_next, b_next = solver.mix(self.levels[self.step + 1])
            r = torch.as_tensor(knob("renoise"))
            old = torch.sqrt(1 - r * r) * solver.noise(self.x, p, a, b)
            x = a_next * x + b_next * (r * self.noise[self.step + 1] + old)
        return replace(self._with(x), anchor=anchor, step=self.step + 1)

    def _with(self, x: Tensor) -> Flying:
        if self.given is not None:
            x = torch.where(self.given[:, None], self.frame, x)
        return replace(self, x=x)


def doubled(guidance: str, step: int) -> bool:
    """Whether a frame at this step runs without its condition too."""
    return guidance == "full" or (guidance == "initialize" and step == 0)
