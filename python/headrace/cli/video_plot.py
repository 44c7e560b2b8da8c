# SPDX-License-Identifier: Apache-2.0
"""The picture of a run over video: frames with what was kept, drop ratio, memory and latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .plot import FAINT, INK
from .video_track import VideoTrack, shaded

SHOWN = 6
BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#CC3311"


def plot(report: dict[str, Any], track: VideoTrack, patch: int, path: Path) -> None:
    """Writes the picture as PNG (or what the suffix of path says).

    Raises ImportError without matplotlib, OSError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = track.pictures
    if len(shown) > SHOWN:
        shown = [shown[round(i * (len(shown) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    figure = Figure(figsize=(11, 9), dpi=130, facecolor="white", layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 2.2))
    upper, lower = halves
    for ax, picture in zip(upper.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        ax.imshow(shaded(picture, patch).numpy())
        kept = float(picture.kept.sum()) / len(picture.kept)
        ax.set_title(
            f"frame {picture.number}, {picture.seconds:.1f} s\n{kept:.0%} kept",
            fontsize=9,
            color=INK,
        )
        ax.set_axis_off()
    series = report["series"]
    x = series["end"]
    drop, memory, latency = lower.subplots(3, 1, sharex=True)
    drop.plot(
        x, [100 - 100 * v for v in series["kept"]], color=BLUE, lw=1.4, label="by all filters"
    )
    drop.plot(
        x,
        [100 - 100 * v for v in series["changed"]],
        color=ORANGE,
        lw=1.0,
        label="before the tower",
    )
    drop.set_title("Patches dropped, per cent", **_title())
    drop.set_ylim(-3, 103)
    for event in report["reports"]["events"]:
        drop.axvline(event["frame"] + 1, color=RED, lw=0.8, alpha=0.7)
    drop.plot([], [], color=RED, lw=0.8, label="reported")
    drop.legend(frameon=False, fontsize=8.5, ncols=3, loc="lower right")
    memory.plot(x, [v / 2**20 for v in series["kv_bytes"]], color=BLUE, lw=1.4)
    memory.set_title("Keys and values of the decoder, MiB", **_title())
    memory.set_ylim(0)
    latency.plot(x, series["step_ms"], color=BLUE, lw=1.2, label="mean")
    latency.plot(x, series["step_ms_longest"], color=ORANGE, lw=0.7, label="longest")
    latency.set_title("Time of a step, ms", **_title())
    latency.set_ylim(0)
    latency.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper right")
    latency.set_xlabel("frame", fontsize=9.5, color=INK)
    for ax in (drop, memory, latency):
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color(FAINT)
        ax.grid(axis="y", color="#e4e4e4", lw=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=INK, labelsize=9, length=3)
    figure.suptitle(_headline(report), x=0.012, ha="left", fontsize=11, color=INK)
    figure.savefig(path, metadata={"Software": f"headrace {report['versions']['headrace']}"})


def _title() -> dict[str, Any]:
    return {"loc": "left", "fontsize": 10.5, "fontweight": "bold", "color": INK}


def _headline(report: dict[str, Any]) -> str:
    video, step = report["video"], report["step_ms"]
    return (
        f"{report['model']['name']} watches {video['name']}: {report['frames']:,} frames of "
        f"{video['width']} x {video['height']}, {report['kept']:.0%} of patches kept\n"
        f"{report['frames_per_second']:.1f} frames/s, step p50 {step['p50']:.3g} ms, p99 "
        f"{step['p99']:.3g} ms; colour: kept, grey: dropped behind the tower, dark: before it"
    )
