# SPDX-License-Identifier: Apache-2.0
"""Plots of loops and of work that grows, on logarithmic axes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .scaling import slope

# Okabe and Ito's palette, which keeps its order for those who see fewer colours.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#555555", "#D55E00")
INK, FAINT = "#222222", "#8a8a8a"


def loops(found: Sequence[dict[str, Any]], path: Path, source: str = "") -> None:
    """A row for each loop: what everyone does a second, how many times as much ours does, lag, and
    what is kept.

    Writes a PNG, or what the suffix of path says; source: kept in a PNG as its comment. Raises
    ImportError without matplotlib, ValueError without a right result, OSError when it cannot write.
    """
    shown = [
        loop | {"points": [p for p in loop["points"] if p["ok"]]}
        for loop in found
        if any(p["ok"] for p in loop["points"])
    ]
    if not shown:
        raise ValueError("bench(--plot): expected a loop with a right result, got none")
    figure, axes = _figure(len(shown), 4, 2.9)
    for (rate, gain, lag, kept), loop in zip(axes, shown, strict=True):
        names, amounts = list(loop["points"][0]["sides"]), [p["at"] for p in loop["points"]]
        for k, name in enumerate(names):
            points = [p for p in loop["points"] if name in p["sides"]]
            x, style = [p["at"] for p in points], {"color": COLOURS[k], "marker": "o", "ms": 3.5}
            sides = [p["sides"][name] for p in points]
            rate.plot(x, [s["throughput"] for s in sides], label=name, **style)
            lag.plot(x, [1e3 * s["lag_p50"] for s in sides], **style)
            lag.plot(x, [1e3 * s["lag_p99"] for s in sides], ls=":", lw=1, **style)
            kept.plot(x, [s["bytes"] / 2**20 for s in sides], **style)
            if k:
                each = [p["speedup"][name] for p in points]
                gain.plot(x, [s["median"] for s in each], **style)
                bounds = ([s[end] for s in each] for end in ("least", "most"))
                gain.fill_between(x, *bounds, color=COLOURS[k], alpha=0.2, lw=0)
        gain.axhline(1, color=FAINT, lw=0.8)
        if loop.get("published"):
            times, whose = loop["published"]
            gain.axhline(times, color=FAINT, lw=1, ls="--", label=f"{whose} {times:g}")
        _dress(rate, f"{loop['name']}: {loop['unit']}", loop["axis"], amounts)
        _dress(gain, "ours over it, times", loop["axis"], amounts)
        _dress(lag, "lag, ms; dotted p99", loop["axis"], amounts)
        _dress(kept, "kept between steps, MiB", loop["axis"], amounts)
    save(figure, path, source)


def scaling(found: Sequence[dict[str, Any]], path: Path, source: str = "") -> None:
    """A panel for each work: seconds over its amount, with the slopes; dashed, slope 1 (or what is
    ideal) from where ours begins. As `loops` else."""
    shown = [work for work in found if work["series"]]
    if not shown:
        raise ValueError("bench(--plot): expected a measured series, got none")
    down = -(-len(shown) // 2)
    figure, axes = _figure(down, min(2, len(shown)), 3.3)
    flat = [ax for row in axes for ax in row]
    for ax, work in zip(flat, shown, strict=False):
        for k, series in enumerate(work["series"]):
            x, y = series["at"], series["seconds"]
            ends = list(zip(*series["half"], strict=True))
            told = f"{series['name']}: {slope(series)}".rstrip(": ")
            colour = COLOURS[k % len(COLOURS)]
            ax.plot(x, y, color=colour, marker="o", ms=3.5, label=told)
            ax.fill_between(x, *ends, color=colour, alpha=0.2, lw=0)
        first = work["series"][0]
        x, y = first["at"], first["seconds"][0]
        line = [y * (at / x[0]) ** (work["ideal"] or 1.0) for at in x]
        told = f"slope {work['ideal'] or 1.0:+.0f}"
        ax.plot(x, line, color=FAINT, ls="--", lw=1, label=told, zorder=1)
        amounts = sorted({at for series in work["series"] for at in series["at"]})
        _dress(ax, f"{work['name']}: time of {work['of']}", work["axis"], amounts, _time)
    for ax in flat[len(shown) :]:
        ax.set_visible(False)
    save(figure, path, source)


def _figure(down: int, across: int, height: float) -> tuple[Any, Iterable[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(3.6 * across, height * down), dpi=110, facecolor="white", layout="constrained"
    )
    return figure, figure.subplots(down, across, squeeze=False)


def _plain(value: float) -> str:
    return f"{value:g}"


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds * 1e9:g} ns"


def _dress(
    ax: Any, title: str, axis: str, amounts: Sequence[int], text: Callable[[float], str] = _plain
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ax.set(xscale="log", yscale="log")
    ax.set_title(title, loc="left", fontsize=9, fontweight="bold", color=INK)
    ax.set_xlabel(axis, fontsize=8)
    ax.set_xticks(amounts, [_count(at) for at in amounts])
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    if high / low < 4:
        middle = (low * high) ** 0.5
        ax.set_ylim(min(low, middle / 2), max(high, middle * 2))
    if high / low < 100:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: text(float(f"{v:.6g}"))))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(color=FAINT, alpha=0.25, lw=0.5)
    ax.tick_params(labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    named = len(ax.get_legend_handles_labels()[1])
    if named > 4:  # so many cover what is drawn, wherever they stand: room for them above
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** (0.09 * named))
    if named:
        ax.legend(fontsize=6.5, frameon=False, loc="upper left" if named > 4 else "best")


def _count(at: int) -> str:
    if at < 10**4:
        return f"{at:,}"
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if at >= unit:
            return f"{at / unit:.3g}{name}"
    return str(at)


def save(figure: Any, path: Path, source: str = "") -> None:
    """The file appears whole or not at all. source: a mark of what was drawn. OSError when it
    cannot be written, ValueError for a suffix that stands for no picture."""
    told = {"Software": "headrace"} if path.suffix in ("", ".png") else {}
    if told and source:
        told["Comment"] = source
    part = path.with_name(path.name + ".part")
    try:
        figure.savefig(part, format=path.suffix[1:] or "png", metadata=told)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
