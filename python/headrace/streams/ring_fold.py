# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention over a window whose evicted frames live on in a linear state.

Blocks are pages. What a frame sees is cut into blocks of keys, its queries likewise; every block of
queries reads the share of key blocks that score best, whose pages are simply listed in its view.
The frame about to leave is folded, once, into a state of `headrace.ops.linear_attention`, whose
read-out goes through a matrix of the layer and is added, as `headrace.Fold` of the memory has it.
(Hybrid Forcing, leeruibin/hybrid-forcing; SLA, Zhang et al., 2025.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .ring_mixer import Mixer

if TYPE_CHECKING:
    from .ring_cache import Caches
    from .ring_kept import Held
    from .ring_tick import Tick


class FoldedSparse(Mixer):
    """For a memory of frames `>> Fold(merge="add")`. share: of the blocks that are seen, rounded to
    the nearest, at least one. block: tokens in one, a divisor of a frame's.

    Scores are of mean queries and mean keys before rotation, these less the mean of all that are
    seen, summed over heads; equal ones go to the earlier block of the view, pinned frames first.
    Folded keys stand one window before the frame that reads them. The denoiser has `fold`.

    folds: frames folded so far, in one layer. read, shown: blocks read and seen so far.
    """

    folding = True

    def __init__(self, share: float = 0.2, block: int = 64) -> None:
        if not 0 < share <= 1:
            raise bad_value("FoldedSparse", "share", "above 0 and up to 1", share)
        if block < 16 or block % 16:
            raise bad_value("FoldedSparse", "block", "a multiple of 16", block)
        self.share, self.page_size = share, block
        self.read = self.shown = 0

    @property
    def folds(self) -> int:
        return self._folds[0]

    def open(self, caches: Caches, denoiser: Any) -> None:
        c, plan = denoiser.config, caches.plan
        assert self.page_size is not None
        if c.tokens % self.page_size:
            want = f"a divisor of the {c.tokens} tokens of a frame"
            raise bad_value("FoldedSparse", "block", want, self.page_size)
        if not c.fold or plan is None:
            want = "a denoiser with fold, and a memory"
            raise bad_value("Ring", "mixer", want, "neither" if plan is None else "none")
        if plan.fold is None or plan.fold.merge != "add":
            want, got = 'regions of frames >> Fold(merge="add")', repr(plan.fold)
            raise bad_value("Ring", "memory", want, got, "FoldedSparse folds what leaves them")
        self._fold_as = plan.fold
        device = caches.inv_freq.device
        self._weights = [layer.fold for layer in denoiser.blocks]
        self._state = torch.zeros(c.layers, c.kv_heads, c.head_dim, c.head_dim, device=device)
        self._norm = torch.zeros(c.layers, c.kv_heads, c.head_dim, device=device)
        self._folds, self._last = [0] * c.layers, [-1] * c.layers
        self._mean = torch.zeros(caches.pool.pages, c.kv_heads, c.head_dim, device=device)
        self._back = caches.span * plan.reach

    def begin(self, rows: int) -> None:
        self._new = self._state.clone(), self._norm.clone(), [*self._folds], [*self._last]
        self._counted = [0, 0]

    def commit(self) -> None:
        self._state, self._norm, self._folds, self._last = self._new
        self.read, self.shown = self.read + self._counted[0], self.shown + self._counted[1]

    def attend(
        self, tick: Tick, layer: int, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor
    ) -> Tensor:
        caches, block = tick.caches, self.page_size
        assert block is not None
        tick.write(layer, k, v)
        count = len(tick.rows)
        means = k.float().view(count, -1, block, *k.shape[1:]).mean(2)
        for row, mean in zip(tick.rows, means, strict=True):
            self._mean[list(row.pages[layer])] = mean
        groups = q.float().view(count, -1, block, k.shape[1], q.shape[1] // k.shape[1], q.shape[2])
        asked = groups.mean(2).sum(3)
        seen = [
            blocks
            for row, of_row in zip(tick.seen(layer, k, v), asked, strict=True)
            for blocks in self._best(row, of_row)
        ]
        out = tick.read(q, seen, block)
        parts = []
        for row, queries in zip(tick.rows, q.split(caches.tokens), strict=True):
            if not row.writes:  # one that writes reads the state that it read in flight
                for held in tick.leaving(row, layer):
                    self._fold(caches, layer, held, q)
            parts.append(self._look(caches, layer, queries))
        return out + torch.cat(parts).to(out.dtype)

    def _best(self, row: list[list[int]], asked: Tensor) -> list[list[list[int]]]:
        """For each block of queries [n, Hkv, D], the entries of the view that it reads."""
        keys = self._mean[[entry[0] for entry in row]]
        score = torch.einsum("nhd,ehd->ne", asked, keys - keys.mean(0))
        keep = max(1, int(self.share * len(row) + 0.5))
        order = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :keep]
        self._counted[0] += order.numel()
        self._counted[1] += score.numel()
        return [[row[i] for i in sorted(best)] for best in order.tolist()]

    def _fold(self, caches: Caches, layer: int, held: Held, q: Tensor) -> None:
        """A frame's keys and values, read from its pages, into the state, once."""
        _, _, folds, last = self._new
        if held.at <= last[layer]:
            return
        (k_pages, v_pages), _ = caches.pool.layer(0)
        pages = list(held.pages)
        k = k_pages[pages].permute(0, 3, 1, 2).flatten(0, 1).float()
        v = v_pages[pages].permute(0, 2, 1, 3).flatten(0, 1).float()
        offset = caches.offset
        self._run(
            caches,
            layer,
            torch.zeros_like(q[: len(k)], dtype=torch.float32),
            offset,
            turned(k, -offset, caches.inv_freq),
            v,
        )
        folds[layer], last[layer] = folds[layer] + 1, held.at

    def _look(self, caches: Caches, layer: int, q: Tensor) -> Tensor:
        if not self._new[2][layer]:
            return torch.zeros_like(q)
        read = self._run(caches, layer, q.float(), caches.offset + self._back)
        weight = self._weights[layer]
        return ops.linear(read.reshape(-1, q.shape[2]), weight.float()).view(q.shape)

    def _run(
        self,
        caches: Caches,
        layer: int,
        q: Tensor,
        offset: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
    ) -> Tensor:
        state, norm, folds, _ = self._new
        ends = torch.tensor([0, len(q)], dtype=torch.int32, device=q.device)
        one = torch.zeros(1, dtype=torch.int32, device=q.device)
        tokens = max(1, folds[layer] * caches.tokens)
        read: Tensor = ops.linear_attention(
            q,
            k,
            v,
            state[layer : layer + 1],
            norm[layer : layer + 1],
            ends,
            one,
            inv_freq=caches.inv_freq,
            offset=offset,
            count=torch.tensor([tokens], device=q.device),
            feature=self._fold_as.feature,
            raw=self._fold_as.raw,
            eps=self._fold_as.eps,
        )
        return read


def turned(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """x [T, H, D] rotated by int64 [T] positions, dimension i with i + R; angles in fp64."""
    angle = positions[:, None, None].double() * inv_freq
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    half = len(inv_freq)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)
