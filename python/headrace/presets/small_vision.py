# SPDX-License-Identifier: Apache-2.0
"""A small vision model with random weights, for presets that prune: encoder, merger, reader."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops

PATCH, MERGE = 4, (2, 2)


class Layer(nn.Module):
    """Of an encoder: norm, attention of all to all, squared ReLU; see `filters.EncoderLayer`.

    Every sum over features is `ops.linear`, so that a row has the same bits among any others.
    """

    def __init__(self, width: int, heads: int, made: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(width)
        self.q, self.k = matrix(width, width, made, 2.0), matrix(width, width, made, 2.0)
        self.v, self.o = matrix(width, width, made), matrix(width, width, made)
        self.up, self.down = matrix(2 * width, width, made), matrix(width, 2 * width, made)

    def query(self, h: Tensor) -> Tensor:
        return linear(h, self.q)

    def key(self, h: Tensor) -> Tensor:
        return linear(h, self.k)

    def value(self, h: Tensor) -> Tensor:
        return linear(h, self.v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(-3, -2)

        seen = ops.attention(split(q), split(k), split(v), causal=False)
        assert isinstance(seen, Tensor)
        return linear(seen.transpose(-3, -2).flatten(-2), self.o)

    def mlp(self, x: Tensor) -> Tensor:
        return linear(torch.relu(linear(self.norm(x), self.up)).square(), self.down)


class Norm(nn.Module):
    """RMS norm, of which every step is correctly rounded."""

    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, width), 1 / width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(linear(x * x, self.mean) + 1e-6)


class SmallVision(nn.Module):
    """Frames of grid[0] x grid[1] patches of 4 x 4 pixels; see `filters.VisionModel`.

    width: of features, a multiple of 16 a head. tokens: how wide those are that go on.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (14, 14),
        *,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
        tokens: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        self.grid, self.width = grid, width
        self.input = matrix(width, PATCH * PATCH * 3, made, 2.0)
        self.place = matrix(grid[0] * grid[1], width, made, 0.3 * width**0.5)
        self.layers = [Layer(width, heads, made) for _ in range(layers)]
        self._held = nn.ModuleList(self.layers)
        self.output = matrix(tokens, MERGE[0] * MERGE[1] * width, made)

    def embed(self, patches: Tensor, places: Tensor) -> Tensor:
        """[.., K, width] of patches uint8 [.., K, 48] at places int32 [.., K]; -1 for none."""
        x = linear(patches.float() / 127.5 - 1, self.input)
        return x + self.place[places.long().clamp(min=0)]

    def project(self, groups: Tensor) -> Tensor:
        """Tokens [.., K, tokens] of groups of 4 features, [.., K, 4 * width]."""
        return linear(groups, self.output)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Over the last axis, row by row."""
    made: Tensor = ops.linear(x.reshape(-1, x.shape[-1]), weight)
    return made.view(*x.shape[:-1], weight.shape[0])


def matrix(rows: int, columns: int, made: torch.Generator, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(
        torch.randn(rows, columns, generator=made) * gain * columns**-0.5, requires_grad=False
    )


def film(frames: int, grid: tuple[int, int] = (14, 14), seed: int = 0) -> Tensor:
    """uint8 [T, H, W, 3]: a still picture with noise of two levels, on which a bright square moves
    and which a third of the way in becomes another one."""
    made = torch.Generator().manual_seed(seed)
    high, wide = grid[0] * PATCH, grid[1] * PATCH
    shape = (2, high // 8 + 1, wide // 8 + 1, 3)
    scenes = torch.randint(30, 190, shape, generator=made)
    scenes = scenes.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :high, :wide]
    out = []
    for t in range(frames):
        frame = scenes[int(3 * t >= frames)] + torch.randint(0, 2, (high, wide, 3), generator=made)
        y, x = (3 * t) % max(high - 8, 1), (2 * t) % max(wide - 8, 1)
        frame[y : y + 8, x : x + 8] = 250
        out.append(frame.byte())
    return torch.stack(out)
