# SPDX-License-Identifier: Apache-2.0
"""A small network over frames of patches that remembers by attention: for presets that see."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, q [T, H, D], k and v [T, H, D] of a frame, turned -> o [T, H, D] over what is held."""


class FrameNet(nn.Module):
    """Frames of patches [H * W, C] to as many features, with a camera token before them.

    Like VGGT (Wang et al., 2025) it alternates attention within the frame and attention over all
    frames held; both turn queries and keys by the row and the column of the patch (base 100), and
    the camera token by none. Random weights from `seed`. `tokens`: of a frame.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (3, 4),
        channels: int = 12,
        *,
        layers: int = 2,
        heads: int = 2,
        head_dim: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.layers, self.heads, self.head_dim = grid, layers, heads, head_dim
        self.tokens = 1 + grid[0] * grid[1]
        width, made = heads * head_dim, torch.Generator().manual_seed(seed)

        def weight(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=made) * gain * columns**-0.5)

        self.camera, self.patch = weight(1, width, width**0.5), weight(width, channels)
        self.mixed = nn.ParameterList(weight(3 * width, width, 1.6) for _ in range(2 * layers))
        self.out = nn.ParameterList(weight(width, width) for _ in range(2 * layers))
        self.up = nn.ParameterList(weight(2 * width, width) for _ in range(2 * layers))
        self.down = nn.ParameterList(weight(width, 2 * width) for _ in range(2 * layers))

    def forward(self, patches: Tensor, attend: Attend) -> Tensor:
        """[tokens, heads * head_dim] of patches [H * W, C]; attend: over the frames held."""
        x = torch.cat([self.camera, F.linear(patches, self.patch)])
        for block in range(2 * self.layers):
            parts = F.linear(_even(x), self.mixed[block]).view(len(x), 3, self.heads, self.head_dim)
            q, k, v = parts.unbind(1)
            q, k = self.turned(q), self.turned(k)
            o = attend(block // 2, q, k, v) if block % 2 else within(q, k, v)
            x = x + F.linear(o.flatten(1), self.out[block])
            x = x + F.linear(F.gelu(F.linear(_even(x), self.up[block])), self.down[block])
        return x

    def turned(self, x: Tensor) -> Tensor:
        """[tokens, H, D] with the first half of D turned by the row and the other by the column."""
        rows, columns = self.grid
        place = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1))
        place = torch.cat([place.new_zeros(1, 2), place]).to(x.device)
        quarter = x.shape[-1] // 4
        frequency = 100.0 ** (
            -torch.arange(quarter, dtype=torch.float64, device=x.device) / quarter
        )
        angle = place[:, :, None] * frequency  # [tokens, 2, D / 4]
        cos, sin = (f(angle)[:, None].to(x.dtype) for f in (torch.cos, torch.sin))
        a, b = x.unflatten(-1, (2, 2, quarter)).unbind(-2)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(-3)


def within(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o [T, H, D]: every query sees every key."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(0, 1)


def _even(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
