# SPDX-License-Identifier: Apache-2.0
"""Clips to train and to score the vision model on, and the forward over a whole clip at once.

`watch` computes, for all frames of a clip together, what a stream computes frame by frame: patches
that a gate dropped keep the keys and values they had in every layer of the tower, and the decoder
never sees them. So the model is trained on the graph that it runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...filters import Filter, LastKept
from .. import motion
from ..motion import Motion
from ..vision import Vision, reduced, usual

DRIFT = 6.0
"""Pixels a frame that a crop drifts by at most, of the size that it is shown at."""


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [F, H, W, 3], and where new scenes begin."""

    name: str
    frames: Tensor
    cuts: tuple[int, ...] = ()

    def shots(self) -> list[Clip]:
        """Its scenes, each a clip without cuts."""
        ends = [0, *self.cuts, len(self.frames)]
        return [self.part(a, b) for a, b in pairwise(ends)]

    def part(self, first: int, stop: int) -> Clip:
        """Frames first..stop-1."""
        inside = tuple(cut - first for cut in self.cuts if first < cut < stop)
        return Clip(self.name, self.frames[first:stop], inside)


@dataclass(frozen=True)
class Seen:
    """Of a clip of F frames of N places. kept bool [F, N]. said [M, width]: of the kept, frame by
    frame, or what was last said of the place where the decoder did not see it; thumbs [M, small]
    and `moving` of them. ends [F, width]: of the frames' own tokens. stirs, usual [F, 2]: how much
    changed, and had before. read bool [M]: of the kept, what the decoder saw."""

    kept: Tensor
    said: Tensor
    thumbs: Tensor
    moving: Motion | None
    read: Tensor
    ends: Tensor
    stirs: Tensor
    usual: Tensor

    def scenes(self, model: Vision) -> Tensor:
        """Logits [F] that a frame begins a scene; the first one's says nothing."""
        return model.new_scene(self.ends, self.stirs, self.usual)


def gated(model: Vision, frames: Tensor, threshold: float) -> Tensor:
    """What the pixel gate keeps, bool [F, N]; all of it where the threshold is 0."""
    c = model.config
    if threshold <= 0:
        places = frames.shape[1] * frames.shape[2] // c.patch**2
        return torch.ones(len(frames), places, dtype=torch.bool)
    gate = LastKept(threshold, "l1", patch=c.thumb)
    return torch.stack([gate(frame).mask for frame in reduced(frames, c.patch // c.thumb)])


def watch(
    model: Vision, frames: Tensor, kept: Tensor, times: Tensor, dropper: Filter | None = None
) -> Seen:
    """The forward over frames uint8 [F, H, W, 3] of which `kept` bool [F, N] is computed, the first
    whole; times int64 [F]. dropper: takes more away before the decoder."""
    c = model.config
    high, wide = frames.shape[1] // c.patch, frames.shape[2] // c.patch
    count, places = kept.shape
    f, p = kept.nonzero(as_tuple=True)
    patches = model.patches(frames)[f, p]
    row = torch.full(kept.shape, -1)
    row[f, p] = torch.arange(len(f))
    at = row.cummax(0).values
    cos, sin = (t[p] for t in model.turns(high, wide))

    def within(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[at].transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)[f, p]

    seen = model.encode(patches, (cos, sin), within)
    thumbs = model.thumbs(patches)
    before = torch.where(f > 0, at[f - 1, p], row[f, p])
    change = thumbs - thumbs[before]
    stirs = torch.stack([model.stir(change[f == t], places) for t in range(count)])
    usuals, known = [stirs[0]], None
    for t in range(1, count):
        usuals.append(stirs[t] if known is None else known)
        known = usual(known, stirs[t])
    small = motion.reduce(frames, model.step)
    parts, earlier = [], None
    for t in range(count):
        costs = model.costs(small[t - 1] if t else None, small[t])
        parts.append(model.moving(costs, earlier, small[t], p[f == t]))
        earlier = costs
    moving = Motion(*(torch.cat(x) for x in zip(*parts, strict=True))) if c.reach else None
    read = torch.ones(len(f), dtype=torch.bool)
    if dropper is not None:
        with torch.no_grad():
            read = torch.stack([dropper(seen[rows]).mask for rows in at])[f, p]
    x = model.tokens(seen[read], change[read], None if moving is None else moving.rows(read))
    row[f, p] = torch.where(read, read.cumsum(0) - 1, -1)
    held = row.cummax(0).values[f, p]
    f, p = f[read], p[read]
    x = torch.cat([x, model.frame.expand(count, -1)])
    order = torch.cat([f * (places + 1) + p, torch.arange(1, count + 1) * (places + 1) - 1])
    order = order.argsort()
    zero = torch.zeros_like(times)
    where = torch.cat(
        [torch.stack([times[f], p // wide, p % wide], 1), torch.stack([times, zero, zero], 1)]
    )[order]
    angle = where.double()[:, model.freq_axis.long()] * model.inv_freq
    turns = angle.cos().float()[:, None], angle.sin().float()[:, None]

    def across(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (_turn(q, *turns), _turn(k, *turns), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y[0].transpose(0, 1)

    out = model.decode(x[order], across)
    said = torch.empty_like(out).index_copy(0, order, out)
    return Seen(
        kept, said[held], thumbs, moving, read, said[len(f) :], stirs, torch.stack(usuals)
    )  # fmt: skip


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def codebook(
    model: Vision, clips: Sequence[Clip], rounds: int = 20, samples: int = 20000
) -> Tensor:
    """Codes for the patches of clips: k-means [codes, small] from torch's global generator."""
    rows = []
    for clip in clips:
        small = fitted(clip.frames[:: max(1, len(clip.frames) // 40)], model.config.patch, 320)
        rows.append(model.thumbs(model.patches(small)).flatten(0, 1))
    x = torch.cat(rows)
    x = x[torch.randperm(len(x))[:samples]]
    book = x[: model.config.codes].clone()
    for _ in range(rounds):
        near = (x @ book.T - book.square().sum(1) / 2).argmax(1)
        sums = torch.zeros_like(book).index_add_(0, near, x)
        counts = near.bincount(minlength=len(book))[:, None]
        lost = counts[:, 0] == 0
        book = sums / counts.clamp(min=1)
        book[lost] = x[torch.randint(len(x), (int(lost.sum()),))]
    return book


def fitted(frames: Tensor, patch: int, longest: int) -> Tensor:
    """Frames whose long side is at most `longest`, both sides multiples of `patch`."""
    _, high, wide, _ = frames.shape
    scale = min(1.0, longest / max(high, wide))
    to = [max(1, round(side * scale / patch)) * patch for side in (high, wide)]
    return resized(frames, to[0], to[1])


def resized(frames: Tensor, high: int, wide: int) -> Tensor:
    """Frames uint8 [F, high, wide, 3], by the means of the pixels."""
    if frames.shape[1:3] == (high, wide):
        return frames
    x = F.interpolate(frames.movedim(-1, 1).float(), (high, wide), mode="area")
    return x.round().byte().movedim(1, -1).contiguous()


def sample(
    shots: Sequence[Clip], weights: Sequence[float], grid: tuple[int, int], patch: int, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Training frames uint8 [F, H, W, 3], which of them begin a scene bool [F], and times int64
    [F], from shots that have no cuts and are drawn as often as `weights` say.

    Crops at all scales that enlarge nothing, which drift now and then as under a camera that turns,
    also over a still frame; flips, in time too, gains of light, strides of 1 to 5, and splices of
    different shots; from torch's global generator.
    """
    high, wide = grid[0] * patch, grid[1] * patch
    frames: list[Tensor] = []
    begins = torch.zeros(length, dtype=torch.bool)
    left, last = length, -1
    whole = [min(s.frames.shape[1] / high, s.frames.shape[2] / wide) >= 1 for s in shots]
    weights = [w * (not any(whole) or ok) for w, ok in zip(weights, whole, strict=True)]
    while left:
        n = left if torch.rand(()) < 0.5 or left < 4 else int(torch.randint(2, left, ()))
        often = torch.tensor(weights)
        if last >= 0:
            if int((often > 0).sum()) > 1:
                often[last] = 0
            begins[length - left] = True
        last = int(torch.multinomial(often, 1))
        frames.append(_shot(shots[last].frames, high, wide, n))
        left -= len(frames[-1])
    jumps = torch.where(
        torch.rand(length) < 0.9, 1.0, (torch.rand(length) * 7).exp2()
    ).long()  # a pruned stream's window holds frames that are far apart
    return torch.cat(frames), begins, jumps.cumsum(0)


def _shot(frames: Tensor, high: int, wide: int, n: int) -> Tensor:
    count, tall, broad, _ = frames.shape
    stride = 1 if torch.rand(()) < 0.5 else int(torch.randint(2, 6, ()))
    n = min(n, (count - 1) // stride + 1)
    start = int(torch.randint(0, count - (n - 1) * stride, ()))
    most = min(tall / high, broad / wide)
    scale = most ** float(torch.rand(())) if most > 1 else most
    size = max(1, int(high * scale)), max(1, int(wide * scale))
    picked = torch.arange(n) * stride + start
    drift = torch.zeros(2)
    kind = float(torch.rand(()))
    if kind < 0.3:
        drift = DRIFT * scale * (2 * torch.rand(2) - 1)
    if kind < 0.1:
        picked = picked[:1].expand(n)
    if torch.rand(()) < 0.3:
        picked = picked.flip(0)
    room = torch.tensor([tall - size[0], broad - size[1]]).float()
    corner = (room * torch.rand(2) + torch.arange(n)[:, None] * drift).round().long()
    corner = corner.clamp(min=0).minimum(room.long())
    crops = [f[y : y + size[0], x : x + size[1]]
             for f, (y, x) in zip(frames[picked], corner.tolist(), strict=True)]  # fmt: skip
    shot = resized(torch.stack(crops), high, wide)
    for axis, often in ((2, 0.5), (1, 0.2)):
        if torch.rand(()) < often:
            shot = shot.flip(axis)
    gain, lift = 0.8 + 0.4 * torch.rand(3), 20 * torch.rand(3) - 10
    noise = 2 * torch.rand(()) * torch.randn(shot.shape)
    return (shot.float() * gain + lift + noise).clamp(0, 255).byte()
