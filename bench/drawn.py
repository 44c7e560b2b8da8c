# SPDX-License-Identifier: Apache-2.0
"""The plots of what the scripts of this folder record, each from its record alone.

`source` is kept in a PNG as its comment: a mark of what was drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.pictures import save

Record = dict[str, Any]
FAINT = "#e4e4e4"
PARTS = {
    "zipf_in_page_cache": "Zipf replay, page cache",
    "zipf_on_disk": "Zipf replay, files not cached",
    "twice_the_slots": "2x the slots, 2.8M model",
    "twice_the_slots_wide": "2x the slots, 100M model",
}
"""Of adapter_bank.py."""
CLIP_STYLES = {"last kept": {"color": "tab:blue"}, "frame before": {"color": "tab:red", "ls": "--"}}


def adapter_bank(told: Record, path: Path, source: str = "") -> None:
    """How the delays of requests are spread."""
    from matplotlib.ticker import NullFormatter

    figure = _figure(11, 4.6, 130)
    axes = figure.subplots(1, len(PARTS))
    for ax, part in zip(axes, PARTS, strict=True):
        found = told.get(part)
        if found is None:
            continue
        for key, ms in found["curves"].items():
            style = "--" if key.endswith(("half of them", "miss")) else "-"
            weight = 0.8 if key.startswith(("closed", "batch")) else 1.6
            ax.plot(ms, np.linspace(0, 1, len(ms)), style, lw=weight, label=key)
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(f"{PARTS[part]}\n{_of_part(found)}", loc="left", fontsize=8.5)
        ax.set_xlabel("first-token delay, ms")
        ax.grid(color=FAINT, lw=0.8)
        ax.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("share of requests")
    save(figure, path, source)


def _of_part(found: Record) -> str:
    if "hit_rate" in found and "adapters" in found:
        return (
            f"{found['adapters']:,} adapters, {found['slots']} slots, {found['hit_rate']:.0%} hits"
        )
    return f"median x{found['poisson']['ratio_of_medians']:g} of all resident"


def archive(told: Record, path: Path, source: str = "") -> None:
    """Facts that are answered, over pages recalled and over bytes moved."""
    stream = told["stream"]
    figure = _figure(10, 4, 120)
    left, right = figure.subplots(1, 2, sharey=True)
    for policy, by in stream["curves"].items():
        answered = [x["answered"] for x in by.values()]
        if policy in ("mean", "largest logit", "window only"):
            left.plot([int(b) for b in by], answered, "o-", label=policy)
        if policy not in ("window only", "estimate alone"):
            right.plot([x["moved_kb"] for x in by.values()], answered, "o-", label=policy)
    left.set(xscale="log", xlabel="pages of 64 tokens", ylabel="share of facts answered")
    right.set(xscale="log", xlabel="KB moved for a question")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(f"{stream['facts']} facts in a stream of {stream['tokens']:,} tokens")
    save(figure, path, source)


def clips(told: Record, path: Path, source: str = "") -> None:
    """A column a clip: shares dropped and worst distances over thresholds, shares over time."""
    rows = told["rows"]
    names = list(dict.fromkeys(row["clip"] for row in rows))
    figure = _figure(4.2 * len(names), 14, 90)
    axes = figure.subplots(5, len(names), squeeze=False)
    for column, clip in zip(axes.T, names, strict=True):
        mine = [row for row in rows if row["clip"] == clip and row["stride"] == 1]
        column[0].set_title(clip)
        for i, form in enumerate(("pixels", "features")):
            _of_form(column[2 * i], column[2 * i + 1], form, mine)
        _over_time(column[4], mine)
    for axis in axes[:, 0]:
        axis.legend(fontsize="small")
    save(figure, path, source)


def _of_form(dropped: Any, worst: Any, form: str, rows: list[Record]) -> None:
    for reference, style in CLIP_STYLES.items():
        shown = [r for r in rows if (r["form"], r["reference"]) == (form, reference)]
        at = [r["threshold"] for r in shown]
        for axis, key in ((dropped, "dropped"), (worst, "worst")):
            axis.plot(at, [r[key] for r in shown], marker=".", label=reference, **style)
            if form == "pixels":
                axis.set_xscale("log")
    bound = [t if form == "pixels" else 1 - t for t in at]
    worst.plot(at, bound, color="gray", lw=0.8, label="threshold")
    dropped.set_ylabel(f"{form}: share dropped")
    unit = "levels of 255" if form == "pixels" else "1 - cosine"
    worst.set_ylabel(f"{form}: worst, {unit}")
    worst.set_xlabel("threshold")


def _over_time(axis: Any, rows: list[Record]) -> None:
    """Of pixels, at the threshold whose frames were kept."""
    for reference, style in CLIP_STYLES.items():
        (row,) = [r for r in rows if "curve" in r
                  and (r["form"], r["reference"]) == ("pixels", reference)]  # fmt: skip
        axis.plot(row["curve"], lw=0.9, label=reference, **style)
        axis.set_ylabel(f"share dropped, pixels at {row['threshold']}")
    axis.set_xlabel("frame, all of them")
    axis.set_ylim(0, 1.02)


def transformers_stream(told: Record, path: Path, source: str = "") -> None:
    """Memory and processor time of each cache over the tokens generated."""
    figure = _figure(10, 3.6, 120)
    axes = figure.subplots(1, 2)
    for run in told["runs"]:
        x = [b["tokens"] for b in run["blocks"]]
        axes[0].plot(x, [b["cache_bytes"] / 2**20 for b in run["blocks"]], label=run["cache"])
        axes[1].plot(x, [b["cpu_ms"] for b in run["blocks"]], label=run["cache"])
    for axis, label in zip(axes, ("keys and values, MiB", "processor ms per token"), strict=True):
        axis.set_xlabel("tokens generated")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.legend()
    save(figure, path, source)


def _figure(across: float, down: float, dpi: int) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(across, down), dpi=dpi, layout="constrained")
