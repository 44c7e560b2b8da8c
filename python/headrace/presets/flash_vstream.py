# SPDX-License-Identifier: Apache-2.0
"""Flash-VStream: four memories of a video's features, none of which ever grows.

Zhang et al., arXiv 2406.08085, and its code, github.com/IVGSZ/Flash-VStream (the LLaVA version).
Spatial: the newest frame, pooled to 8x8. Temporal: 25 centres of 4x4 frames, weighted k-means by
Euclidean distance, at most ten rounds, until centres move less than 1e-4. Abstract: 25 tokens, each
of which gives way by 0.2 to what it attends to in the frames that follow, 25 at a time, by learned
projections. Retrieved: for the 3 heaviest centres the nearest frames, 8x8. In all 681 tokens.

Chosen here: every frame joins the centres as it comes, in place of all frames at once; k-means then
begins at the centres and the frame, less the later of the two that are closest, not anywhere; a
centre that loses its members stays, with weight 0; frames to be retrieved are the newest 300, in
host memory. What the model's projector does with the tokens is not part of this.

Oracle: the same from a list of all frames, in fp64, with distances taken one by one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .given import counts
from .proof import Check, Preset

__all__ = ["FlashMemory", "Memories", "Semantic", "Sizes", "flash_vstream"]

ROUNDS, STILL, GIVE = 10, 1e-4, 0.2


@dataclass(frozen=True)
class Semantic:
    """Learned projections of the abstract memory: query and key fp32 [D, D]."""

    query: Tensor
    key: Tensor

    def weight(self, memory: Tensor, new: Tensor) -> Tensor:
        """[M, N]: how memory [M, D] attends to new tokens [N, D]."""
        scores = (memory @ self.query.T) @ (new @ self.key.T).T
        made: Tensor = (scores / math.sqrt(self.query.shape[0])).softmax(-1)
        return made


@dataclass(frozen=True)
class Sizes:
    """Frames and centres of each memory, and the side of the grid that a frame is pooled to there
    (retrieved frames have that of spatial ones).
    """

    spatial: int = 1
    temporal: int = 25
    abstract: int = 25
    retrieved: int = 3
    spatial_side: int = 8
    temporal_side: int = 4
    abstract_side: int = 1
    buffer: int = 300

    @property
    def tokens(self) -> int:
        """That a model reads, once all are full."""
        fine = (self.spatial + self.retrieved) * self.spatial_side**2
        return fine + self.temporal * self.temporal_side**2 + self.abstract * self.abstract_side**2


@dataclass(frozen=True)
class Memories:
    """fp32 [tokens, D] each."""

    abstract: Tensor
    temporal: Tensor
    retrieved: Tensor
    spatial: Tensor

    @property
    def all(self) -> Tensor:
        """Side by side, as the model reads them."""
        return torch.cat([self.abstract, self.temporal, self.retrieved, self.spatial])


class FlashMemory:
    """`watch` frames; `read` what a model is to see."""

    def __init__(self, semantic: Semantic, sizes: Sizes) -> None:
        self.semantic, self.sizes = semantic, sizes
        self.centres = torch.zeros(0, 0)  # [K, side * side * D]
        self.weights = torch.zeros(0)
        self._newest: deque[Tensor] = deque(maxlen=sizes.spatial)
        self._buffer: deque[tuple[Tensor, Tensor]] = deque(maxlen=sizes.buffer)
        self._abstract: list[Tensor] = []  # frames until it is full, then one tensor
        self._waiting: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Of everything that it holds."""
        held = [self.centres, self.weights, *self._newest, *self._abstract, *self._waiting]
        return sum(x.nbytes for x in [*held, *(x for pair in self._buffer for x in pair)])

    def watch(self, frame: Tensor) -> None:
        """A frame's features [P, P, D]; P a multiple of the sides, D of 16."""
        s = self.sizes
        if frame.ndim != 3 or frame.shape[0] != frame.shape[1] or frame.shape[0] % s.spatial_side:
            wanted = f"[P, P, D] with P a multiple of {s.spatial_side}"
            raise bad_value("flash_vstream", "frame", wanted, f"shape {tuple(frame.shape)}")
        frame = frame.float()
        if len(self._newest) == s.spatial:
            self._take(self._newest[0])
        self._newest.append(frame)

    def _take(self, frame: Tensor) -> None:
        """A frame that has left the spatial memory."""
        s = self.sizes
        coarse = pooled(frame, s.temporal_side).flatten()
        self._buffer.append((coarse, pooled(frame, s.spatial_side)))
        points = torch.cat([self.centres.view(-1, len(coarse)), coarse[None]])
        weights = torch.cat([self.weights, torch.ones(1)])
        fits = len(points) <= s.temporal
        self.centres, self.weights = (points, weights) if fits else k_means(points, weights)
        self._waiting.append(pooled(frame, s.abstract_side))
        if len(self._waiting) == s.abstract:
            joined = torch.cat(self._waiting)
            self._abstract = [self._folded(self._abstract[0], joined) if self._abstract else joined]
            self._waiting = []

    def _folded(self, memory: Tensor, new: Tensor) -> Tensor:
        weight = GIVE * self.semantic.weight(memory, new)
        return memory * (1 - weight.sum(1, keepdim=True)) + weight @ new

    def read(self) -> Memories:
        """What the model sees now."""
        s = self.sizes
        fine = [pooled(frame, s.spatial_side) for frame in self._newest]
        dim = fine[0].shape[-1] if fine else 0
        none = torch.zeros(0, dim)
        abstract = torch.cat([none, *self._waiting]) if self._waiting else none
        if self._abstract:
            old = self._abstract[0]
            abstract = self._folded(old, abstract) if len(abstract) else old
        heavy = self.weights.argsort(descending=True, stable=True)[: s.retrieved]
        found = []
        if len(heavy):
            coarse = torch.stack([x for x, _ in self._buffer])
            own, _ = ops.assign(self.centres[heavy], coarse, metric="l2")
            found = [self._buffer[i][1] for i in own.tolist()]
        return Memories(
            abstract,
            self.centres.view(-1, dim) if len(self.centres) else none,
            torch.cat([none, *found]),
            torch.cat([none, *fine]),
        )


def pooled(frame: Tensor, side: int) -> Tensor:
    """[side * side, D] means of a frame [P, P, D]."""
    made = F.avg_pool2d(frame.permute(2, 0, 1), frame.shape[0] // side)
    return made.permute(1, 2, 0).reshape(side * side, -1)


def k_means(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [N - 1, D] of points [N, D], and their weights; empty ones stay, with weight 0."""
    near = (x[:, None] - x[None]).square().sum(-1)
    apart = near + torch.full_like(near, torch.inf).tril()
    c = torch.cat([x[: (late := int(apart.argmin()) % len(x))], x[late + 1 :]])
    for _ in range(ROUNDS):
        own, _ = ops.assign(x, c, metric="l2")
        total = torch.zeros(len(c), 1, x.shape[1])
        ops.segment_reduce((x * weights[:, None])[:, None], own, total=total)
        sums = torch.zeros(len(c)).index_add(0, own.long(), weights)
        some = sums > 0
        new = torch.where(some[:, None], total[:, 0] / sums.where(some, 1.0)[:, None], c)
        if float((new - c).norm(dim=1).sum()) < STILL:
            break
        c = new
    return c, sums


def flash_vstream(semantic: Semantic, **sizes: Any) -> FlashMemory:
    """A memory of the source's sizes, or of those that are given, by the names of `Sizes`.

    semantic: projections of the abstract memory. TypeError for other names, ValueError below 1.
    """
    counts("flash_vstream", **sizes)
    return FlashMemory(semantic, Sizes(**sizes))


def oracle(semantic: Semantic, frames: Sequence[Tensor], s: Sizes) -> Memories:
    """What the model is to see after all of frames [P, P, D]; fp64."""
    x = [f.double() for f in frames]
    gone, last = x[: len(x) - s.spatial], x[-s.spatial :]

    def grid(frame: Tensor, side: int) -> Tensor:
        step = frame.shape[0] // side
        parts = frame.unfold(0, step, step).unfold(1, step, step)
        return parts.mean((-1, -2)).flatten(0, 1)

    points: list[Tensor] = []
    weights: list[float] = []
    for frame in gone:
        points, weights = [*points, grid(frame, s.temporal_side).flatten()], [*weights, 1.0]
        if len(points) > s.temporal:
            points, weights = _one_less(points, weights)
    heavy = sorted(range(len(points)), key=lambda j: (-weights[j], j))[: s.retrieved]
    kept = gone[-s.buffer :]
    coarse = [grid(f, s.temporal_side).flatten() for f in kept]
    found = [kept[_nearest(points[j], coarse)] for j in heavy]
    chunks = [torch.cat([grid(f, s.abstract_side) for f in gone[i : i + s.abstract]])
              for i in range(0, len(gone), s.abstract)]  # fmt: skip
    memory = chunks[0]
    q, k = semantic.query.double(), semantic.key.double()
    for new_ in chunks[1:]:
        weight = ((memory @ q.T) @ (new_ @ k.T).T / q.shape[0] ** 0.5).softmax(-1)
        memory = memory + 0.2 * (weight @ new_ - memory)
    return Memories(
        memory,
        torch.cat([p.view(s.temporal_side**2, -1) for p in points]),
        torch.cat([grid(f, s.spatial_side) for f in found]),
        torch.cat([grid(f, s.spatial_side) for f in last]),
    )


def _nearest(point: Tensor, others: Sequence[Tensor]) -> int:
    return min(range(len(others)), key=lambda j: float((point - others[j]).norm()))


def _one_less(points: list[Tensor], weights: list[float]) -> tuple[list[Tensor], list[float]]:
    """K-means to one centre less than there are points, one distance after the other."""
    pairs = [(i, j) for j in range(len(points)) for i in range(j)]
    _, late = min(pairs, key=lambda p: float((points[p[0]] - points[p[1]]).norm()))
    c = [p for j, p in enumerate(points) if j != late]
    for _ in range(10):
        own = [_nearest(p, c) for p in points]
        sums, totals = [0.0] * len(c), [torch.zeros_like(p) for p in c]
        for p, w, j in zip(points, weights, own, strict=True):
            sums[j] += w
            totals[j] += w * p
        new = [t / w if w else p for t, w, p in zip(totals, sums, c, strict=True)]
        if sum(float((a - b).norm()) for a, b in zip(new, c, strict=True)) < 1e-4:
            break
        c = new
    return c, sums


def check(semantic: Semantic) -> list[Check]:
    """The four memories after some frames and after many against the oracle; and what they take."""
    made, dim = torch.Generator().manual_seed(1), semantic.query.shape[0]
    scenes = torch.randn(9, 8, 8, dim, generator=made)
    small: dict[str, int] = {"temporal": 6, "abstract": 4, "spatial_side": 4, "temporal_side": 2}
    small |= {"spatial": 2, "buffer": 30}
    memory, frames, checks = flash_vstream(semantic, **small), [], []
    sizes, held = set(), set()
    for i in range(120):
        noise = torch.randn(8, 8, dim, generator=made)
        frames.append(scenes[i // 7 % 9] + 0.4 * noise)
        memory.watch(frames[-1])
        if i >= 40:
            sizes.add(len(memory.read().all))
            held.add(memory.nbytes - sum(x.nbytes for x in memory._waiting))
        if i + 1 in (5, 40, 120):
            want, got = oracle(semantic, frames, memory.sizes), memory.read()
            for name in ("abstract", "temporal", "retrieved", "spatial"):
                a, b = getattr(got, name), getattr(want, name)
                gap = float((a - b).abs().max()) if a.shape == b.shape else math.inf
                checks.append(Check(f"{name} memory after {i + 1} frames: max |error|", gap, 1e-5))
    full = flash_vstream(semantic)
    for _ in range(3):
        for scene in scenes.repeat_interleave(3, 0):
            full.watch(scene + 0.1 * torch.randn(8, 8, dim, generator=made))
    return [
        *checks,
        Check("sizes of what is read from frame 40 to 120, besides one", len(sizes) - 1, 0),
        Check("sizes of what is held from frame 40 to 120, besides one", len(held) - 1, 0),
        Check("tokens at the source's sizes, from 681", abs(len(full.read().all) - 681), 0),
    ]


def small() -> Semantic:
    """Random projections of 16 features."""
    made = torch.Generator().manual_seed(0)
    return Semantic(*torch.randn(2, 16, 16, generator=made) / 4)


PRESET = Preset(
    "flash_vstream",
    "Zhang et al., arXiv 2406.08085; github.com/IVGSZ/Flash-VStream",
    flash_vstream,
    check,
    small,
    oracle,
    kind="archive",
)
