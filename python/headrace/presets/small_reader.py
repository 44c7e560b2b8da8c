# SPDX-License-Identifier: Apache-2.0
"""A small reader of vision tokens with random weights, and its streams, for presets that prune.

A decoder that is given embeddings and 3-D positions (M-RoPE). Its stream keeps pages of their own
for every layer, so that a layer has the keys of those tokens only that it computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import ops
from ..memory import UNLIMITED
from ..ops.rope import sections
from .small_vision import Norm, linear, matrix

Run = Callable[[Tensor, Tensor], Tensor]
"""(rows [T, W], positions int64 [T, 3]) -> the rows after a layer [T, W]."""
Layers = Callable[[int, Tensor, Tensor, Run], Tensor]
"""(layer, x [T, W], positions, run) -> x after that layer; `run` computes rows that it is given."""


class ReaderLayer(nn.Module):
    """Weights of one layer, without biases."""

    def __init__(self, width: int, kv: int, made: torch.Generator) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.q, self.k = matrix(width, width, made, 2.0), matrix(kv, width, made, 2.0)
        self.v, self.o = matrix(kv, width, made), matrix(width, width, made)
        self.up, self.down = matrix(2 * width, width, made), matrix(width, 2 * width, made)


class SmallReader(nn.Module):
    """inv_freq fp64 [D/2]: rotary frequencies; freq_axis int32 [D/2]: time, row or column each.

    expert [layers, W]: a direction of each layer, for methods that score tokens by one.
    """

    inv_freq: Tensor
    freq_axis: Tensor

    def __init__(
        self, *, width: int = 32, layers: int = 2, heads: int = 2, kv_heads: int = 1, seed: int = 1
    ) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        self.width, self.heads, self.kv_heads = width, heads, kv_heads
        self.head_dim = half = width // heads
        self.layers = [ReaderLayer(width, kv_heads * half, made) for _ in range(layers)]
        self._held = nn.ModuleList(self.layers)
        self.expert = matrix(layers, width, made)
        half //= 2
        angles = 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("inv_freq", angles, persistent=False)
        axes = sections(half, (half - 2 * (half // 3), half // 3, half // 3))
        self.register_buffer("freq_axis", axes, persistent=False)


@dataclass
class Reading:
    """A stream of a reader: `feed` reads tokens, each of which sees itself and those before it.

    reach: how many tokens a query sees, itself among them; None for all. Pages of older ones are
    used again. read: tokens that came. computed: of them, how many each layer computed.
    """

    model: SmallReader
    reach: int | None = None
    page: int = 16
    read: int = field(default=0, init=False)
    computed: list[int] = field(init=False)

    def __post_init__(self) -> None:
        m, count = self.model, len(self.model.layers)
        shape = (1, m.kv_heads, m.head_dim, self.page)
        self.computed = [0] * count
        self._k = [torch.zeros(shape) for _ in range(count)]
        self._v = [torch.zeros(shape).mT.contiguous() for _ in range(count)]
        # Of each layer, page after page: which one, number of its first token, and its origin.
        self._pages: list[list[tuple[int, int, list[int]]]] = [[] for _ in range(count)]

    @torch.no_grad()
    def feed(self, x: Tensor, at: Tensor, layers: Layers | None = None) -> Tensor:
        """fp32 [T, W] of tokens [T, W] at positions [T, 3], whole numbers. `layers` says how each
        layer is gone through; without it all rows are computed."""
        at = at.long().contiguous()
        for i in range(len(self.model.layers)):

            def run(rows: Tensor, where: Tensor, i: int = i) -> Tensor:
                return self._layer(i, rows, where.long())

            x = run(x, at) if layers is None else layers(i, x, at, run)
        self.read += len(x)
        return x

    def _layer(self, i: int, x: Tensor, at: Tensor) -> Tensor:
        m, layer = self.model, self.model.layers[i]
        if not len(x):
            return x
        h = layer.norm(x)
        q, k, v = (
            linear(h, w).unflatten(-1, (-1, m.head_dim)) for w in (layer.q, layer.k, layer.v)
        )
        first = self.computed[i]
        where = self._places(i, at)
        ops.append(k, v, self._k[i], self._v[i], where,
                   inv_freq=m.inv_freq, freq_axis=m.freq_axis)  # fmt: skip
        entries, ends = self._view(i, first), torch.tensor([0, len(x)], dtype=torch.int32)
        seen, _ = ops.paged_attention(
            q, self._k[i], self._v[i], entries,
            torch.tensor([0, len(entries)], dtype=torch.int32), ends, at,
            q_order=torch.arange(first, first + len(x)),
            inv_freq=m.inv_freq, freq_axis=m.freq_axis,
        )  # fmt: skip
        x = x + linear(seen.flatten(1), layer.o)
        return x + linear(torch.relu(linear(layer.norm(x), layer.up)).square(), layer.down)

    def _places(self, i: int, at: Tensor) -> Tensor:
        """int64 [T, 5]: page, slot, offsets of the tokens that come next; they count from now."""
        pages, rows = self._pages[i], []
        for place in at.tolist():
            nth = self.computed[i]
            if not pages or nth - pages[-1][1] == self.page:
                pages.append((self._free(i), nth, place))
            page, start, origin = pages[-1]
            rows.append([page, nth - start, *(p - o for p, o in zip(place, origin, strict=True))])
            self.computed[i] += 1
        return torch.tensor(rows)

    def _free(self, i: int) -> int:
        """A page that no query of this step or later reads: one out of reach, or a new one."""
        pages = self._pages[i]
        used = {page for page, _, _ in pages}
        free = next((n for n in range(len(self._k[i])) if n not in used), None)
        if free is None:
            free = len(self._k[i])
            self._k[i] = torch.cat([self._k[i], torch.zeros_like(self._k[i])])
            self._v[i] = torch.cat([self._v[i], torch.zeros_like(self._v[i])])
        return free

    def _view(self, i: int, first: int) -> Tensor:
        """int64 [E, 11]: what queries of number `first` and later see; forgets the rest."""
        reach, far = self.reach or UNLIMITED, UNLIMITED
        alive = [p for p in self._pages[i] if p[1] + self.page > first - reach + 1]
        self._pages[i] = alive
        return torch.tensor([
            [page, 0, min(self.page, self.computed[i] - start), o[0], far, start, reach,
             o[1], far, o[2], far]
            for page, start, o in alive
        ])  # fmt: skip


@dataclass(frozen=True)
class SmallModel:
    """What a pruning preset takes: a `filters.VisionModel`, and a reader of its tokens."""

    vision: nn.Module
    reader: SmallReader
