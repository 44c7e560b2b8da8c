# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: perplexity, memory and time per token, a line per policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, which keeps its order for those who see fewer colours.
COLOURS = {
    "sinks-window": "#0072B2",
    "window": "#E69F00",
    "dense": "#CC3311",
    "recompute": "#555555",
}
INK, FAINT = "#222222", "#8a8a8a"
PANELS = (
    ("perplexity", "Perplexity per byte", 1.0),
    ("kv_bytes", "Resident KV cache", 2.0**-10),
    ("ms_per_token_p50", "Time per token (median)", 1e3),
)
WIDE = 8.0  # a panel whose values span more than this ratio gets a logarithmic axis


def plot(report: dict[str, Any], path: Path, source: str = "") -> None:
    """Writes the three panels of a report as PNG (or what the suffix of path says). source: kept in
    a PNG as its comment.

    Raises ImportError without matplotlib, OSError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    runs = [run for run in report["policies"] if run["series"]["start"]]
    figure = Figure(figsize=(9.6, 8.4), dpi=150, facecolor="white", layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.09, w_pad=0.1)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1.35, 1, 1))
    logarithmic = _ends_early(runs)
    for ax, (key, title, unit) in zip(axes, PANELS, strict=True):
        _panel(ax, report, runs, key, unit, logarithmic)
        ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=7)
    _value_axes(axes)
    _position_axis(axes[-1], runs, logarithmic)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9.5
    )
    figure.suptitle(_headline(report), x=0.012, ha="left", fontsize=11, color=INK)
    told = {"Software": f"headrace {report['versions']['headrace']}"}
    figure.savefig(path, metadata=told | ({"Comment": source} if source else {}))


def _headline(report: dict[str, Any]) -> str:
    model, text, s = report["model"], report["text"], report["settings"]
    threads = report["machine"]["threads"]
    longest = max((run["tokens"] for run in report["policies"]), default=0)
    return (
        f"{model['name']} on {longest:,} bytes: {text['name']}\n"
        f"window {s['window']} + {s['sinks']} sinks, fed {s['chunk']} tokens a step, "
        f"{threads} thread{'s' if threads > 1 else ''} of {report['machine']['cpu']}"
    )


def _ends_early(runs: list[dict[str, Any]]) -> bool:
    ends = [run["series"]["end"][-1] for run in runs]
    return bool(ends) and min(ends) * WIDE < max(ends)


def _panel(
    ax: Any, report: dict[str, Any], runs: list[dict[str, Any]], key: str, unit: float, log: bool
) -> None:
    for run in runs:
        colour = COLOURS[run["policy"]]
        front = run["policy"] == "sinks-window"
        style: dict[str, Any] = {"color": colour, "label": run["policy"]}
        style |= {"lw": 2.0, "zorder": 4} if front else {"lw": 1.5, "zorder": 3}
        estimate = report.get("recompute_estimate")
        if run["sampled"]:
            style |= {"ls": (0, (4, 2)), "lw": 1.2, "zorder": 5}
            style["label"] = f"recompute ({run['scored_tokens']:,} positions)"
        if run["sampled"] and key == "perplexity" and estimate and estimate["position"]:
            x, y = estimate["position"], estimate["perplexity"]
            ends = [
                [v - u for u, v in zip(estimate["low"], y, strict=True)],
                [u - v for u, v in zip(estimate["high"], y, strict=True)],
            ]
            ax.errorbar(x, y, ends, marker="o", ms=3.5, elinewidth=1, **style)
        else:
            # Equal steps to the eye: a logarithmic axis would crowd its right end.
            x, y = _curve(run["series"], key, 24 if log else 200, log)
            y = [v * unit for v in y]
            ax.plot(x, y, **style)
        if run["ended"] != "with the text":
            ax.plot(x[-1], y[-1], marker="o", ms=5, color=colour, zorder=6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    ax.grid(axis="y", color="#e4e4e4", lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    if log:
        ax.set_xscale("log")


def _curve(
    series: dict[str, list[Any]], key: str, points: int, log: bool
) -> tuple[list[float], list[float]]:
    """A value per stretch, of which no more than about `points` lie in the whole (log: in every
    factor of e) of the stream. Perplexities average as nats, times and bytes as they are.
    """
    x: list[float] = []
    y: list[float] = []
    names = ("start", "end", "scored", key)
    stretch: list[tuple[Any, ...]] = []
    rows = list(zip(*(series[n] for n in names), strict=True))
    for row in rows:
        stretch.append(row)
        first, end = stretch[0][0], row[1]
        wanted = first / points if log else rows[-1][1] / points
        if end - first < wanted and row is not rows[-1]:
            continue
        weight = sum(r[2] for r in stretch)
        if key == "perplexity":
            mean = math.exp(sum(math.log(r[3]) * r[2] for r in stretch) / weight)
        else:
            mean = sum(r[3] * r[2] for r in stretch) / weight
        x.append((first + end) / 2)
        y.append(mean)
        stretch = []
    return x, y


def _value_axes(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    for ax, (key, _, _) in zip(axes, PANELS, strict=True):
        values = [float(v) for line in ax.get_lines() for v in line.get_ydata() if v > 0]
        if not values:
            continue
        low, high = min(values), max(values)
        if high > WIDE * low:
            ax.set_yscale("log")
            if key == "kv_bytes":
                ax.set_yscale("log", base=2)
                ax.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
                ax.yaxis.set_minor_locator(NullLocator())
            else:
                subs = (1, 2, 5) if high < 100 * low else (1,)
                ax.yaxis.set_major_locator(LogLocator(subs=subs))
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_ylim(low / 1.3, high * 1.3)
        else:
            ax.set_ylim(
                0 if key != "perplexity" else max(0.0, low - 0.15 * (high - low) - 0.05),
                high * 1.12,
            )
            ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(FuncFormatter(FORMATS[key]))


def _position_axis(ax: Any, runs: list[dict[str, Any]], logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _count(v)))
    if logarithmic:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    elif runs:
        ax.set_xlim(0, max(run["series"]["end"][-1] for run in runs))
    scale = ", logarithmic" if logarithmic else ""
    ax.set_xlabel(f"position in the stream (bytes{scale})", fontsize=9.5, color=INK)


def _count(v: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if v >= unit:
            return f"{v / unit:g}{name}"
    return f"{v:g}"


def _size(kib: float) -> str:
    return f"{kib:g} KiB" if kib < 1024 else f"{kib / 1024:g} MiB"


def _time(microseconds: float) -> str:
    if microseconds < 1e3:
        return f"{microseconds:g} \N{MICRO SIGN}s"
    return f"{microseconds / 1e3:g} ms"


FORMATS = {
    "perplexity": lambda v, _: f"{v:g}",
    "kv_bytes": lambda v, _: _size(v),
    "ms_per_token_p50": lambda v, _: _time(v),
}
