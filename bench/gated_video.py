# SPDX-License-Identifier: Apache-2.0
"""Frames a second when one mask of a pixel gate decides what is computed, on real clips.

    python bench/gated_video.py OUT.json [--frames N] [--thresholds T ...]

The clips of `clips.py`, scaled so that 4 pixels were 14 (28 of the large one), through an encoder
with random weights (6 layers, 192 wide) and its merger. Three ways, frame by frame in turns, that
a slow moment of the machine be one for all: every patch of every frame (`dense`); the same, after
which tokens that differ little from the frame before are dropped (`dropped`, the published form,
whose encoder sees all); and `filters.GatedVideo` with what was last kept (`gated`). Times are sums
over all frames but the first. kept: shares of patches and of tokens; worst: as in `clips.py`, of
pixels; times: frames a second over those of `dense`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from clips import CLIPS, SIDE, decoded
from torch import Tensor

from headrace.cli import report
from headrace.filters import GatedVideo, LastKept, PreviousFrame, encode, patchify
from headrace.presets.small_vision import MERGE, PATCH, SmallVision

DROP, MOST = 0.9, 1500
"""Cosine of the published form; patches of a frame."""


class Dense:
    """All of every frame; with a filter, tokens of which few go on."""

    def __init__(self, model: SmallVision, drop: PreviousFrame | None = None) -> None:
        self.model, self.drop = model, drop
        self.places = torch.arange(model.grid[0] * model.grid[1], dtype=torch.int32)

    def __call__(self, frame: Tensor) -> Tensor:
        m, (rows, columns) = self.model, self.model.grid
        x = encode(m.layers, m.embed(patchify(frame, PATCH), self.places)[None])
        cells = x.view(rows // MERGE[0], MERGE[0], columns // MERGE[1], MERGE[1], -1)
        tokens = m.project(cells.transpose(1, 2).flatten(0, 1).flatten(1))
        return tokens if self.drop is None else self.drop(tokens).fitted().rows(tokens)


def measure(clip: str, thresholds: list[float], most: int | None) -> list[dict[str, Any]]:
    """A row of figures for each threshold."""
    high, wide = decoded(clip, 1).shape[1:3]
    side = SIDE
    while high // side * (wide // side) > MOST:
        side *= 2
    grid = (high // (2 * side) * 2, wide // (2 * side) * 2)
    frames = decoded(clip, most, size=(grid[0] * PATCH, grid[1] * PATCH))
    model = SmallVision(grid, width=192, layers=6, heads=6, tokens=192)
    gated = {t: GatedVideo(LastKept(t, "l1", patch=PATCH), model) for t in thresholds}
    ways: dict[Any, Any] = {
        "dense": Dense(model), "dropped": Dense(model, PreviousFrame(DROP)), **gated,
    }  # fmt: skip
    seconds, worst = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    kept: dict[Any, list[tuple[float, float]]] = {way: [] for way in ways}
    for i, frame in enumerate(frames):
        for name, way in ways.items():
            started = time.perf_counter()
            made = way(frame)
            if i == 0:
                continue
            seconds[name] += time.perf_counter() - started
            if name in gated:
                parts = made.patches, made.tokens
                kept[name].append(tuple(1 - float(part.dropped()) for part in parts))
                shown = patchify(way.gate.reference[0], PATCH).float()  # what is believed
                off = (patchify(frame, PATCH).float() - shown).abs().mean(-1)
                worst[name] = max(worst[name], float(off.max()))
            else:
                kept[name].append((1.0, 4 * len(made) / (grid[0] * grid[1])))
    count = len(frames) - 1
    return [
        {
            "clip": clip, "threshold": t, "frames": len(frames), "patches": grid[0] * grid[1],
            "kept_patches": round(mean(k[0] for k in kept[t]), 4),
            "kept_tokens": round(mean(k[1] for k in kept[t]), 4), "worst": round(worst[t], 3),
            "dropped_kept_tokens": round(mean(k[1] for k in kept["dropped"]), 4),
            "dense_per_second": round(count / seconds["dense"], 2),
            "gated_per_second": round(count / seconds[t], 2),
            "times": round(seconds["dense"] / seconds[t], 3),
            "dropped_times": round(seconds["dense"] / seconds["dropped"], 3),
        }
        for t in thresholds
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, help="of each clip, the first so many")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[3, 8, 20])
    args = parser.parse_args()
    torch.set_num_threads(1)
    told = {**report.taken(), "rows": []}
    with torch.no_grad():
        for clip in CLIPS:
            for row in measure(clip, args.thresholds, args.frames):
                told["rows"].append(row)
                print(json.dumps(row), flush=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
