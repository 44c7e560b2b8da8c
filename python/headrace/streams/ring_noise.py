# SPDX-License-Identifier: Apache-2.0
"""The noise of frames: a function of their number, so that any order of steps draws the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Noise = Callable[[int, int], Tensor]
"""(number of a frame, steps) -> [steps, P, C]: its first noise, and that of every step after."""


def seeded(seed: int, tokens: int, channels: int, fixed: bool = False) -> Noise:
    """Noise that depends on the number of the frame alone; `fixed`: the same for every frame."""

    def noise(number: int, steps: int) -> Tensor:
        made = torch.Generator().manual_seed(seed * 1_000_003 + (0 if fixed else number + 1))
        return torch.randn(steps, tokens, channels, generator=made)

    return noise
