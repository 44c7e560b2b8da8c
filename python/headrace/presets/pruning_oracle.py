# SPDX-License-Identifier: Apache-2.0
"""What presets that prune must equal: plain torch in fp64 over all tokens, from weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Of every query to every key; several queries may share a kv head."""
    dim = q.shape[-1] // heads
    q, k, v = (t.unflatten(-1, (-1, dim)).transpose(-3, -2) for t in (q, k, v))
    k, v = (t.repeat_interleave(heads // t.shape[-3], -3) for t in (k, v))
    seen = (q @ k.mT / dim**0.5).softmax(-1) @ v
    return seen.transpose(-3, -2).flatten(-2) @ layer.o.double().T


def mlp(layer: Any, x: Tensor) -> Tensor:
    return torch.relu(norm(x) @ layer.up.double().T).square() @ layer.down.double().T


def projections(layer: Any, x: Tensor) -> list[Tensor]:
    return [norm(x) @ w.double().T for w in (layer.q, layer.k, layer.v)]


def embedded(vision: Any, frame: Tensor, patch: int) -> Tensor:
    """fp64 [N, W] of a frame [H, W, C], patch by patch."""
    rows = [cell.reshape(-1) for band in frame.split(patch, 0) for cell in band.split(patch, 1)]
    x: Tensor = (torch.stack(rows).double() / 127.5 - 1) @ vision.input.double().T
    return x + vision.place.double()


def encoded(layers: Sequence[Any], x: Tensor) -> Tensor:
    """Features fp64 [N, W] of one frame, all computed."""
    for layer in layers:
        q, k, v = projections(layer, x)
        x = x + attend(layer, q, k, v, layer.heads)
        x = x + mlp(layer, x)
    return x


def merged(vision: Any, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens fp64 [G, D], one of each 2 x 2 features of a grid of even sides."""
    cells = features.view(*grid, -1)
    corners = [cells[y::2, x::2].flatten(0, 1) for y in (0, 1) for x in (0, 1)]
    return torch.cat(corners, -1) @ vision.output.double().T


def positions(frames: int, grid: tuple[int, int]) -> Tensor:
    """int64 [T * G, 3]: frame, row, column of every token of a grid of tokens."""
    ranges = (torch.arange(frames), torch.arange(grid[0]), torch.arange(grid[1]))
    return torch.cartesian_prod(*ranges).view(-1, 3)


def turned(model: Any, x: Tensor, at: Tensor) -> Tensor:
    """Queries or keys [T, heads * D], each at its own 3-D position."""
    x = x.unflatten(-1, (-1, model.head_dim))
    angle = (at.double()[:, model.freq_axis.long()] * model.inv_freq)[:, None]
    one, other = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1).flatten(1)


def read(
    model: Any, x: Tensor, at: Tensor, computed: Tensor, *, reach: int | None = None
) -> Tensor:
    """fp64 [T, W] of all tokens [T, W] in one masked forward.

    computed bool [layers, T]: of each layer, which tokens it computes; only they have keys there,
    the others pass. reach: of those before it, and itself, how many a token sees.
    """
    x = x.double()
    for layer, on in zip(model.layers, computed, strict=True):
        q, k, v = projections(layer, x)
        q, k = turned(model, q, at), turned(model, k, at)
        number = on.cumsum(0)
        off = number[:, None] - number
        hidden = ~on | (torch.arange(len(x)) > torch.arange(len(x))[:, None])
        if reach is not None:
            hidden = hidden | (off >= reach)
        y = x + _masked(layer, q, k, v, model.heads, hidden)
        x = torch.where(on[:, None], y + mlp(layer, y), x)
    return x


def _masked(layer: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, hidden: Tensor) -> Tensor:
    dim = q.shape[-1] // heads
    q, k, v = (t.unflatten(-1, (-1, dim)).transpose(-3, -2) for t in (q, k, v))
    k, v = (t.repeat_interleave(heads // t.shape[-3], -3) for t in (k, v))
    logits = (q @ k.mT / dim**0.5).masked_fill(hidden, -torch.inf)
    seen = logits.softmax(-1).nan_to_num(0.0) @ v
    return seen.transpose(-3, -2).flatten(-2) @ layer.o.double().T
