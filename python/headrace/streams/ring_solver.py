# SPDX-License-Identifier: Apache-2.0
"""Solvers: what a denoiser predicts, and what follows from it.

A frame at level l is `a * clean + b * noise`, with (a, b) of the solver; level 0 is clean. A solver
holds nothing and knows no ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


class Solver:
    """The meaning of a prediction at a level. x, prediction, clean, noise: [..., P, C]; a and b are
    those of `mix`."""

    def mix(self, level: float) -> tuple[float, float]:
        """(a, b) at a level between 0 and 1."""
        raise NotImplementedError

    def clean(self, x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
        """The clean frame that the prediction says x comes from."""
        raise NotImplementedError

    def noise(self, x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
        """The noise that the prediction says is in x."""
        raise NotImplementedError

    def toward(self, x: Tensor, clean: Tensor, a: float, b: float) -> Tensor:
        """The prediction that says x comes from `clean`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Flow(Solver):
    """Rectified flow: x = (1 - l) clean + l noise, and the model predicts noise - clean."""

    def mix(self, level: float) -> tuple[float, float]:
        return 1.0 - level, level

    def clean(self, x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
        return x - b * prediction

    def noise(self, x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
        return x + a * prediction

    def toward(self, x: Tensor, clean: Tensor, a: float, b: float) -> Tensor:
        return (x - clean) / b


@dataclass(frozen=True)
class Diffusion(Solver):
    """Variance preserving: x = sqrt(1 - l^2) clean + l noise, and the model predicts the noise.

    l is sqrt(1 - alpha_bar) of the usual schedules, below 1.
    """

    def mix(self, level: float) -> tuple[float, float]:
        return math.sqrt(1.0 - level * level), level

    def clean(self, x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
        return (x - b * prediction) / a

    def noise(self, x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
        return prediction

    def toward(self, x: Tensor, clean: Tensor, a: float, b: float) -> Tensor:
        return (x - a * clean) / b
