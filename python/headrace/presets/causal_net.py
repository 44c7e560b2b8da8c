# SPDX-License-Identifier: Apache-2.0
"""A small causal network over frames of audio, and its streams: for presets that convolve."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops

KNOTS = 9


class CausalNet(nn.Module):
    """Frames [T, inputs] to frames [T, outputs]; frame t sees frames t - `layers` (taps - 1) to t.

    In every layer a depthwise causal convolution and a matrix, both added to what came in. Random
    weights from `seed`. forward: the whole file at once, any dtype.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 32,
        layers: int = 3,
        taps: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.taps, self.width, self.outputs = taps, width, outputs
        made = torch.Generator().manual_seed(seed)

        def weight(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=made) * columns**-0.5)

        self.input, self.level = weight(width, inputs), weight(width, KNOTS)
        self.taken = nn.ParameterList(weight(width, taps) for _ in range(layers))
        self.mixed = nn.ParameterList(weight(width, width) for _ in range(layers))
        self.output = weight(outputs, width)

    def forward(self, x: Tensor, level: float = 0.0) -> Tensor:
        """[T, outputs] of a whole file [T, inputs], at a level between 0 and 1."""

        def convolved(h: Tensor, layer: int) -> Tensor:
            padded = F.pad(h.T[None], (self.taps - 1, 0))
            kernel = self.taken[layer][:, None]
            return F.conv1d(padded, kernel, groups=self.width)[0].T

        return self._through(x, level, convolved, F.linear)

    def states(self) -> Tensor:
        """fp32 [layers, 1, width, taps - 1]: of a file that begins."""
        state = torch.zeros(len(self.taken), 1, self.width, self.taps - 1)
        return state.to(self.input.device)

    def step(self, x: Tensor, states: Tensor, level: float = 0.0) -> Tensor:
        """[T, outputs] of the next frames fp32 [T, inputs]; `states` go on in place. The bits do
        not depend on how many frames come at a time."""
        ends = torch.tensor([0, len(x)], dtype=torch.int32, device=x.device)

        def convolved(h: Tensor, layer: int) -> Tensor:
            made: Tensor = ops.causal_conv(
                h, self.taken[layer], None, states[layer], ends, ends[:1], activation=None
            )
            return made

        return self._through(x, level, convolved, ops.linear)

    def _through(
        self,
        x: Tensor,
        level: float,
        convolved: Callable[[Tensor, int], Tensor],
        linear: Callable[..., Tensor],
    ) -> Tensor:
        at = torch.arange(KNOTS, dtype=x.dtype, device=x.device)
        hats = (1 - (level * (KNOTS - 1) - at).abs()).clamp(min=0)
        h = linear(x, self.input) + linear(hats[None], self.level)
        for layer, mixed in enumerate(self.mixed):
            h = h + linear(torch.relu(convolved(h, layer)), mixed)
        return linear(h, self.output)
