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

from ..vision import Vision, VisionConfig
from ..vision_files import save_vision
from .video import Clip, codebook, fitted, gated, sample, watch

GRIDS = (((9, 11), 0.6), ((9, 20), 0.25), ((11, 20), 0.15))
"""Rows and columns of training crops, and how often."""
LONGEST = 320
"""Pixels of the long side of frames that scores are about."""


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
    frozen_tower: bool = False

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("Run(minutes, steps): expected one of the two, got both or neither")

    def rate(self, step: int, seconds: float) -> float:
        """Factor of the learning rate, 0..1; 0 when the run is over."""
        done = step / self.steps if self.steps else seconds / (60.0 * (self.minutes or 0.0))
        return max(0.0, min(1.0, (step + 1) / self.warmup, (1.0 - done) / self.decay))


def loss_of(model: Vision, frames: Tensor, begins: Tensor, kept: Tensor, times: Tensor) -> Tensor:
    """Nats per kept patch whose next is in the same scene, and per frame for scenes."""
    seen = watch(model, frames, kept, times)
    with torch.no_grad():
        codes = model.coded(model.thumbs(model.patches(frames)))
    f, p = kept.nonzero(as_tuple=True)
    counts = (f < len(frames) - 1) & ~torch.cat([begins[1:], begins[:1]])[f]
    logits = model.next_code(seen.said[counts], seen.thumbs[counts])
    patches = F.cross_entropy(logits, codes[f[counts] + 1, p[counts]])
    scenes = F.binary_cross_entropy_with_logits(
        seen.scenes(model)[1:], begins[1:].float(), pos_weight=torch.tensor(3.0)
    )
    return patches + 0.5 * scenes


def train(
    run: Run,
    clips: Sequence[Clip],
    weights: Sequence[float],
    held_out: Sequence[Clip],
    out: Path,
    initial: Vision | None = None,
) -> Vision:
    """Trains, prints a line every 25 steps, leaves the model at `out`. weights: how often clips are
    drawn. initial: weights to begin with, all but the book."""
    torch.manual_seed(run.seed)
    model = Vision(VisionConfig())
    if initial is not None:
        model.load_state_dict(initial.state_dict() | {"book": model.book})
    model.book.data = codebook(model, clips)
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
    few = [model.signs, model.bias]
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
                    f"; {c.name} {s['next']:.1f} (stays {s['stays']:.1f})"
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, scenes, what is kept and times, `tokens` kept patches long or a little more."""
    sizes = torch.tensor([often for _, often in GRIDS])
    grid = GRIDS[int(torch.multinomial(sizes, 1))][0]
    threshold = 0.0 if torch.rand(()) > run.pruned else float(0.5 + 4 * torch.rand(()))
    length = run.longest if threshold else max(2, run.tokens // (grid[0] * grid[1]))
    frames, begins, times = sample(clips, weights, grid, 16, length)
    kept = gated(model, frames, threshold)
    stop = max(2, int((kept.sum(1).cumsum(0) <= run.tokens).sum()))
    return frames[:stop], begins[:stop], kept[:stop], times[:stop]


@torch.no_grad()
def score(model: Vision, clip: Clip, threshold: float, length: int = 12) -> dict[str, float]:
    """Per cent of patches whose next code is foretold, of `length` frames at a time. `stays`: by
    saying that nothing changes. A place that the gate dropped is foretold to stay."""
    frames = fitted(clip.frames, model.config.patch, LONGEST)
    right, stays, count = 0.0, 0.0, 0
    for first in range(0, len(frames) - 1, length):
        part = frames[first : first + length]
        if len(part) < 2:
            break
        kept = gated(model, part, threshold)
        seen = watch(model, part, kept, torch.arange(len(part)))
        codes = model.coded(model.thumbs(model.patches(part)))
        said = model.next_code(seen.said, seen.thumbs).argmax(-1)[seen.at]
        said = torch.where(kept, said, model.coded(seen.thumbs)[seen.at])
        counts = torch.ones(len(part) - 1, dtype=torch.bool)
        for cut in clip.cuts:
            if first < cut < first + len(part):
                counts[cut - first - 1] = False
        right += float((said[:-1] == codes[1:])[counts].sum())
        stays += float((codes[:-1] == codes[1:])[counts].sum())
        count += int(counts.sum()) * codes.shape[1]
    return {"next": 100 * right / count, "stays": 100 * stays / count}


def provenance(run: Run, step: int, seconds: float) -> dict[str, str]:
    told = {**asdict(run), "step": step, "trained_minutes": round(seconds / 60, 1)}
    return {"training": json.dumps(told)}
