# SPDX-License-Identifier: Apache-2.0
"""InfiniteVGGT: per head, the first frame and the keys least like the others, within one total.

Yuan et al., arXiv 2601.02281; read in a public copy of its code. Frames come one by one through a
network that attends over all frames held. Where a layer then holds more than its budget, every head
keeps the tokens of the first frame and, of all others, those of the new frame among them, the keys
with the lowest cosine to the mean of their unit vectors, before it attends. 1.2 million tokens of
all layers, shared by softmax((1 - s) / 0.5), s the mean score of each layer when it last evicted (0
before); shares are rounded down there, by largest remainders here, so that they sum to the total.
Keys are turned by the place in their frame alone, so they can be scored as they lie.

Every head of every layer has pages of its own here, and what it evicts is free for others.

Oracle: every frame over the whole history in fp64, a head seeing what the rule leaves it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import ops
from ..errors import bad_value
from ..memory import HeadCache, PagePool, budgets
from ..recipes import infinite_vggt as rule
from .frame_net import FrameNet, within
from .given import counts
from .proof import Check, Preset

__all__ = ["InfiniteVGGT", "infinite_vggt"]

TOTAL, TEMPERATURE = 1_200_000, 0.5


class InfiniteVGGT:
    """A stream of frames through a network such as `FrameNet`; `feed` gives its features.

    total: tokens that a head of every layer holds, summed over layers. alive [L]: of each layer the
    numbers of the tokens that its heads hold, int64 [H, N]; the stream's first is 0. A frame that
    was interrupted leaves layers that do not fit together, and nothing more can be fed.
    """

    def __init__(self, net: FrameNet, total: int, page_size: int, dtype: torch.dtype) -> None:
        if total < net.layers * net.tokens:
            expected = f"{net.layers * net.tokens} or more, a frame in each of {net.layers} layers"
            raise bad_value("infinite_vggt", "total", expected, total)
        self.net, self.total = net, total
        device = net.camera.device
        most = -(-total // page_size) + net.layers * (1 + -(-net.tokens // page_size))
        pool = PagePool(1, most * net.heads, 1, net.head_dim, page_size, dtype, device)
        self.cache = HeadCache(pool, net.layers, net.heads)
        self.scores = [0.0] * net.layers
        self.alive = [torch.empty(net.heads, 0, dtype=torch.int64) for _ in range(net.layers)]
        self.budgets: list[int] = []
        self.frames = 0
        self._whole = True

    @torch.inference_mode()
    def feed(self, patches: Tensor) -> Tensor:
        """Features [tokens, width] of a frame of patches [H * W, C]."""
        if not self._whole:
            expected = "a stream whose frames were all read"
            raise bad_value("infinite_vggt", "stream", expected, "one that was interrupted")
        self._whole = False
        weights = ((1 - torch.tensor(self.scores, dtype=torch.float64)) / TEMPERATURE).softmax(0)
        self.budgets = budgets(self.total, weights.tolist())
        out: Tensor = self.net(patches, self._attend)
        self.frames += 1
        self._whole = True
        return out

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, anchor = self.cache, self.net.tokens
        cache.append(layer, k, v)
        new = self.frames * anchor + torch.arange(anchor)
        alive = torch.cat([self.alive[layer], new.expand(self.net.heads, -1)], 1)
        budget = max(self.budgets[layer], anchor)
        if alive.shape[1] > budget:
            score = rule.score(cache.keys(layer)[None], anchor)
            size = alive.shape[1]
            index, count = ops.select(score, k=budget, first=anchor, lowest=True, capacity=size)
            cache.keep(layer, index[0], count[0])
            alive = alive.gather(1, index[0, :, :budget].long().cpu())
            self.scores[layer] = float(score[..., anchor:].mean())
        self.alive[layer] = alive
        return cache.attend(layer, q, causal=False)

    def close(self) -> None:
        """Gives all pages back."""
        self.cache.close()


def infinite_vggt(
    net: FrameNet, *, total: int = TOTAL, page_size: int = 64, dtype: torch.dtype = torch.float32
) -> InfiniteVGGT:
    """A stream of frames with InfiniteVGGT's memory.

    net: such as `FrameNet` of `headrace.presets.frame_net`. total: tokens that a head of every
    layer holds, summed over layers. page_size: tokens of a page. dtype: of keys and values.
    ValueError where total has no room for a frame and one token more in every layer.
    """
    counts("infinite_vggt", total=total, page_size=page_size)
    return InfiniteVGGT(net, total, page_size, dtype)


@torch.inference_mode()
def oracle(
    net: FrameNet, frames: Sequence[Tensor], total: int
) -> tuple[list[Tensor], list[list[list[list[int]]]]]:
    """Features of every frame, and after it what each head of each layer holds: [frame][L][H]."""
    wide = copy.deepcopy(net).double()
    past = [_Past(net.heads) for _ in range(net.layers)]
    features, history = [], []
    for patches in frames:
        weights = [math.exp((1 - layer.mean) / 0.5) for layer in past]
        exact = [total * w / sum(weights) for w in weights]
        shares = [int(x) for x in exact]
        rest = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
        for i in rest[: total - sum(shares)]:
            shares[i] += 1
        for layer, share in zip(past, shares, strict=True):
            layer.budget = share
        features.append(wide(patches.double(), lambda layer, q, k, v: past[layer].attend(q, k, v)))
        history.append([[list(mine) for mine in layer.held] for layer in past])
    return features, history


class _Past:
    """All keys and values that a layer ever had, and the numbers of those that its heads hold."""

    def __init__(self, heads: int) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.held: list[list[int]] = [[] for _ in range(heads)]
        self.mean, self.budget = 0.0, 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, first = len(k), len(self.keys) * len(k)
        self.keys, self.values = [*self.keys, k], [*self.values, v]
        keys, values = torch.cat(self.keys), torch.cat(self.values)
        budget, outs, scores = max(self.budget, n), [], []
        for h, mine in enumerate(self.held):
            mine += range(first, first + n)
            if len(mine) > budget:
                unit = normalize(keys[mine[n:], h], dim=-1)
                score = (unit @ unit.mean(0)).tolist()
                scores += score
                best = sorted(range(len(score)), key=lambda i: score[i])[: budget - n]
                mine[n:] = [mine[n + i] for i in sorted(best)]
            one = slice(h, h + 1)
            outs.append(within(q[:, one], keys[mine, one], values[mine, one]))
        if scores:
            self.mean = sum(scores) / len(scores)
        return torch.cat(outs, 1)


def check(net: FrameNet, *, frames: int = 12) -> list[Check]:
    """Features and every head's survivors against the oracle, budgets, and the pages freed."""
    total, page = net.layers * 3 * net.tokens + 7, 16
    made = torch.Generator().manual_seed(0)
    shape = net.grid[0] * net.grid[1], net.patch.shape[1]
    base = torch.randn(shape, generator=made)
    shown = [base + 0.7 * torch.randn(shape, generator=made) for _ in range(frames)]
    stream = infinite_vggt(net, total=total, page_size=page)
    want, held = oracle(net, shown, total)
    gap, wrong, sums, pages, shares = 0.0, 0, 0, 0, set()
    for patches, features, alive in zip(shown, want, held, strict=True):
        gap = max(gap, float((stream.feed(patches) - features).abs().max()))
        wrong += sum(
            mine.tolist() != heads[h]
            for layer, heads in zip(stream.alive, alive, strict=True)
            for h, mine in enumerate(layer)
        )
        sums = max(sums, abs(sum(stream.budgets) - total))
        need = sum(-(-len(mine) // page) for heads in alive for mine in heads)
        pages = max(pages, abs(stream.cache.pool.live_pages - need))
        shares.add(tuple(stream.budgets))
    differ = sum(alive[0] != alive[-1] for layer in held for alive in layer)
    stream.close()
    return [
        Check("max |feature - oracle|", gap, 1e-4),
        Check("heads whose survivors differ from the rule's", wrong, 0),
        Check("budgets of layers: |sum - total|", sums, 0),
        Check("pages held that are not needed, or are missing", pages, 0),
        Check(
            "heads never differed, or layers never shared anew",
            int(not differ or len(shares) < 3),
            0,
        ),
        Check("pages held after it is closed", stream.cache.pool.live_pages, 0),
    ]


PRESET = Preset(
    "infinite_vggt",
    "Yuan et al., arXiv 2601.02281",
    infinite_vggt,
    check,
    sample=FrameNet,
    oracle=oracle,
)
