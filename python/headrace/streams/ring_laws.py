# SPDX-License-Identifier: Apache-2.0
"""What a level and a prediction mean, written out for oracles: no solver is asked.

Each law is the two equations that define it, solved for what is looked for.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..errors import unsupported
from .ring_solver import Diffusion, Flow, Solver


class Law(Protocol):
    """At a level: x of clean and noise; both of x and a prediction; the prediction from x and
    clean. Tensors [..., P, C]."""

    def mixed(self, clean: Tensor, noise: Tensor, level: float) -> Tensor: ...

    def parts(self, x: Tensor, said: Tensor, level: float) -> tuple[Tensor, Tensor]: ...

    def leads(self, x: Tensor, clean: Tensor, level: float) -> Tensor: ...


class _Flow:
    """x = (1 - level) clean + level noise, said = noise - clean."""

    def mixed(self, clean: Tensor, noise: Tensor, level: float) -> Tensor:
        return clean + level * (noise - clean)

    def parts(self, x: Tensor, said: Tensor, level: float) -> tuple[Tensor, Tensor]:
        clean = x - level * said
        return clean, clean + said

    def leads(self, x: Tensor, clean: Tensor, level: float) -> Tensor:
        noise = (x - (1 - level) * clean) / level
        return noise - clean


class _Diffusion:
    """x = sqrt(1 - level^2) clean + level noise, said = noise."""

    def mixed(self, clean: Tensor, noise: Tensor, level: float) -> Tensor:
        return (1 - level**2) ** 0.5 * clean + level * noise

    def parts(self, x: Tensor, said: Tensor, level: float) -> tuple[Tensor, Tensor]:
        return (x - level * said) / (1 - level**2) ** 0.5, said

    def leads(self, x: Tensor, clean: Tensor, level: float) -> Tensor:
        return (x - (1 - level**2) ** 0.5 * clean) / level


def law(solver: Solver | None) -> Law:
    """That of a solver; None is rectified flow, as for `headrace.Ring`."""
    laws: dict[type, Law] = {Flow: _Flow(), Diffusion: _Diffusion()}
    kind = Flow if solver is None else type(solver)
    if kind not in laws:
        raise unsupported("oracle", "solver", "Flow, Diffusion", kind.__name__)
    return laws[kind]
