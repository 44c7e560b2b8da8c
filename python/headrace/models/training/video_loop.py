# SPDX-License-Identifier: Apache-2.0
"""The training loop of the vision model: Muon for the matrices of layers, AdamW for the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...filters import Filter, LastKept
from ..vision import Vision, VisionConfig
from ..vision_files import save_vision
from .video import Clip, codebook, fitted, gated, sample, watch

GRIDS = (((9, 11), 0.6), ((9, 20), 0.25), ((11, 20), 0.15))
"""Rows and columns of training crops, and how often."""
LONGEST = 320
"""Pixels of the long side of frames that scores are about."""
DROPPER = 0.98
"""Of the dropper that is trained and scored with, as a cosine."""
STILL = 1.0
"""Levels of 255 off at which a patch is foretold well enough for training."""
CHANGE = 2.0
"""Levels of 255, as a mean over a thumb: what differs by more from frame to frame changes."""


@dataclass(frozen=True)
class Run:
    """What one training does. minutes: of wall clock, or `steps`. tokens: kept ones of a clip, and
    `clips` of them in a step."""

    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    clips: int = 2
    tokens: int = 900
    longest: int = 24
    muon_rate: float = 0.01
    adam_rate: float = 0.001
    few_rate: float = 0.03
    weight_decay: float = 0.05
    warmup: int = 50
    decay: float = 0.75
    pruned: float = 0.7
    reach: int = 4
    frozen_tower: bool = False

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("Run(minutes, steps): expected one of the two, got both or neither")

    def rate(self, step: int, seconds: float) -> float:
        """Factor of the learning rate, 0..1; 0 when the run is over."""
        done = step / self.steps if self.steps else seconds / (60.0 * (self.minutes or 0.0))
        return max(0.0, min(1.0, (step + 1) / self.warmup, (1.0 - done) / self.decay))


def loss_of(
    model: Vision,
    frames: Tensor,
    begins: Tensor,
    kept: Tensor,
    times: Tensor,
    dropper: Filter | None = None,
) -> Tensor:
    """Of kept patches whose next is in the same scene the share that is left of the squares of how
    far it goes, in nats, and nats for its code; nats per frame for scenes."""
    seen = watch(model, frames, kept, times, dropper)
    with torch.no_grad():
        thumbs = model.thumbs(model.patches(frames))
        codes = model.coded(thumbs)
    f, p = kept.nonzero(as_tuple=True)
    counts = (f < len(frames) - 1) & ~torch.cat([begins[1:], begins[:1]])[f]
    moving = None if seen.moving is None else seen.moving.rows(counts)
    said, now = seen.said[counts], seen.thumbs[counts]
    at, next_ = model.next_thumb(said, now, moving), (f[counts] + 1, p[counts])
    after = thumbs[next_]
    # Sums over a clip, in logarithms: wild clips do not drown calm ones, nor still ones the rest.
    # None of frames that nothing is known to have moved to: the first of a scene.
    goes = ~(begins | (torch.arange(len(frames)) == 0))[f[counts]]
    floor = (1 + int(goes.sum()) * at.shape[1]) * (2 * STILL / 255) ** 2
    left, whole = ((x - after)[goes].square().sum() + floor for x in (at, now))
    patches = F.cross_entropy(model.next_code(said, now, at.detach()), codes[next_])
    scenes = F.binary_cross_entropy_with_logits(
        seen.scenes(model)[1:], begins[1:].float(), pos_weight=torch.tensor(3.0)
    )
    return (left / whole).log() + 0.1 * patches + 0.5 * scenes


def train(
    run: Run,
    clips: Sequence[Clip],
    weights: Sequence[float],
    held_out: Sequence[Clip],
    out: Path,
    initial: Vision | None = None,
) -> Vision:
    """Trains, prints a line every 25 steps, leaves the model at `out`. weights: how often clips are
    drawn. initial: weights to begin with, the book too, but of another reach the heads not."""
    torch.manual_seed(run.seed)
    model = Vision(VisionConfig(reach=run.reach))
    if initial is None:
        model.book.data = codebook(model, clips)
    else:
        old = initial.state_dict()
        if initial.config.reach != run.reach:  # its heads foretell another way
            old = {name: p for name, p in old.items() if name not in ("move", "sure", "bias")}
        model.load_state_dict(model.state_dict() | old)
    if run.frozen_tower:
        for p in (model.embed, model.tower_norm, *model.tower.parameters()):
            p.requires_grad_(False)
    often = [w * len(s.frames) / len(c.frames) for c, w in zip(clips, weights, strict=True)
             for s in c.shots()]  # fmt: skip
    shots = [s for c in clips for s in c.shots()]
    hidden = [
        p
        for n, p in model.named_parameters()
        if p.ndim == 2 and p.requires_grad and n[:5] in ("tower", "block")
    ]
    few = [model.signs, model.bias, *([model.prior] if run.reach else [])]
    inside = {id(p) for p in [*hidden, *few]}
    rest = [p for p in model.parameters() if id(p) not in inside and p.requires_grad]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=run.muon_rate, weight_decay=run.weight_decay),
        torch.optim.AdamW(rest, lr=run.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.AdamW(few, lr=run.few_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [run.muon_rate, run.adam_rate, run.few_rate]
    begun, saved, losses, step = time.monotonic(), time.monotonic(), [], 0
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    while (factor := run.rate(step, seconds := time.monotonic() - begun)) > 0:
        for _ in range(run.clips):
            loss = loss_of(model, *_batch(model, run, shots, often)) / run.clips
            loss.backward()
            losses.append(loss.item() * run.clips)
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimiser, full in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = full * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % 25 == 0:
            mean, losses = sum(losses) / len(losses), []
            line = f"step {step} minutes {seconds / 60:.1f} rate {factor:.2f} loss {mean:.3f}"
            if step % 250 == 0:
                line += "".join(
                    f"; {c.name} {s['moved']:.1f}, {s['next']:.1f} (stays {s['stays']:.1f})"
                    for c in held_out
                    for s in [score(model, c, model.config.threshold)]
                )
            print(line, flush=True)
        if time.monotonic() - saved > 120:
            save_vision(model, out, provenance(run, step, seconds))
            saved = time.monotonic()
    save_vision(model, out, provenance(run, step, seconds))
    print(f"step {step} minutes {seconds / 60:.1f} done", flush=True)
    return model


def _batch(
    model: Vision, run: Run, clips: Sequence[Clip], weights: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Filter | None]:
    """Frames, scenes, what is kept and times, `tokens` kept patches long or a little more; and the
    dropper of every other pruned clip."""
    sizes = torch.tensor([often for _, often in GRIDS])
    grid = GRIDS[int(torch.multinomial(sizes, 1))][0]
    threshold = 0.0 if torch.rand(()) > run.pruned else float(0.5 + 4 * torch.rand(()))
    length = run.longest if threshold else max(2, run.tokens // (grid[0] * grid[1]))
    frames, begins, times = sample(clips, weights, grid, 16, length)
    kept = gated(model, frames, threshold)
    if threshold and torch.rand(()) < 0.3:  # any patch may be missing, not only calm ones
        kept[1:] &= torch.rand(kept[1:].shape) > 0.3 * torch.rand(())
    dropper = LastKept(DROPPER, "cos") if threshold and torch.rand(()) < 0.5 else None
    stop = max(2, int((kept.sum(1).cumsum(0) <= run.tokens).sum()))
    return frames[:stop], begins[:stop], kept[:stop], times[:stop], dropper


@torch.no_grad()
def score(model: Vision, clip: Clip, threshold: float, length: int = 12) -> dict[str, float]:
    """What is foretold of the next frame, of `length` frames at a time, in per cent. next: patches
    whose code is; `stays`: by saying that nothing changes. moved: of the variance of patches that
    change (`changes`) the share explained. With a threshold the dropper is there too."""
    frames = fitted(clip.frames, model.config.patch, LONGEST)
    right, stays, count, left, all_ = 0.0, 0.0, 0, 0.0, 0.0
    for first in range(0, len(frames) - 1, length):
        part = frames[first : first + length]
        if len(part) < 2:
            break
        kept = gated(model, part, threshold)
        dropper = LastKept(DROPPER, "cos") if threshold else None
        seen = watch(model, part, kept, torch.arange(len(part)), dropper)
        thumbs = model.thumbs(model.patches(part))
        codes = model.coded(thumbs)
        at = model.next_thumb(seen.said, seen.thumbs, seen.moving)
        said, moved = codes.clone(), thumbs.clone()
        said[kept] = model.next_code(seen.said, seen.thumbs, at).argmax(-1)
        moved[kept] = at
        counts = torch.ones(len(part) - 1, dtype=torch.bool)
        for cut in clip.cuts:
            if first < cut < first + len(part):
                counts[cut - first - 1] = False
        right += float((said[:-1] == codes[1:])[counts].sum())
        stays += float((codes[:-1] == codes[1:])[counts].sum())
        count += int(counts.sum()) * codes.shape[1]
        off, whole = unexplained(moved[:-1][counts], thumbs[:-1][counts], thumbs[1:][counts])
        left, all_ = left + off, all_ + whole
    moved_ = 100 * (1 - left / max(all_, 1e-9))
    return {"next": 100 * right / count, "stays": 100 * stays / count, "moved": moved_}


def changes(now: Tensor, after: Tensor) -> Tensor:
    """Which thumbs change visibly from a frame to the next: bool [...] of [..., small]."""
    return (after - now).abs().mean(-1) > CHANGE * 2 / 255


def unexplained(said: Tensor, now: Tensor, after: Tensor) -> tuple[float, float]:
    """Of thumbs that change, sums of squares: of what is foretold from what comes, and of what was
    from what comes, which is what `it stays` leaves."""
    at = changes(now, after)
    return float((said - after)[at].square().sum()), float((now - after)[at].square().sum())


def provenance(run: Run, step: int, seconds: float) -> dict[str, str]:
    told = {**asdict(run), "step": step, "trained_minutes": round(seconds / 60, 1)}
    return {"training": json.dumps(told)}
