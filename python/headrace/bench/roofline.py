# SPDX-License-Identifier: Apache-2.0
"""The picture of a benchmark: a roofline per family of ops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from .pictures import save

if TYPE_CHECKING:
    from . import Row

ALIKE = 1.15
"""Rates nearer than this are drawn as one roof."""
OURS, THEIRS, INK, FAINT = "#0072B2", "#E69F00", "#222222", "#8a8a8a"


def plot(rows: Sequence[Row], path: Path, source: str = "") -> None:
    """Writes a PNG, or what the suffix of path says: FLOP/s over FLOPs a byte, a panel per family.
    source: kept in a PNG as its comment.

    Ours and the peer of every shape, under the roofs of this machine: the rate of multiply-adds in
    registers for each dtype of the products, and two read rates, the best of any shape and that of
    the largest. Raises ImportError without matplotlib, ValueError without a row to show, OSError
    when it cannot write.
    """
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.ok and row.flops and row.bytes and row.rates]
    if not shown:
        raise ValueError("bench(--plot): expected a shape with FLOPs and bytes, got none")
    families: dict[str, list[Row]] = {}
    for row in shown:
        families.setdefault(ops.specs()[row.op].family, []).append(row)
    across = min(3, len(families))
    down = -(-len(families) // across)
    figure = Figure(
        figsize=(4.6 * across, 3.6 * down + 0.6), dpi=150, facecolor="white", layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for ax, (family, members) in zip(axes, sorted(families.items()), strict=False):
        _panel(ax, family, members)
    for ax in axes[len(families) :]:
        ax.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, path, source)


def _panel(ax: Any, family: str, rows: Sequence[Row]) -> None:
    at = np.array([row.flops / row.bytes for row in rows])
    read = max(row.rates[0] for row in rows if row.rates)
    largest = max(rows, key=lambda row: row.bytes)
    memory = min(read, largest.rates[0]) if largest.rates else read
    peaks = _peaks(rows)
    top = max(peaks)
    x = np.geomspace(min(at.min(), top / memory) / 4, max(at.max(), top / memory) * 4, 200)
    for rate, style, told in (
        (read, "-", "fastest read"),
        (memory, "--", "read of the largest shape"),
    ):
        ax.plot(x, np.minimum(x * rate, top) / 1e9, color=INK, lw=1.2, ls=style, label=told)
    for peak, names in peaks.items():
        flat = x[x * read >= peak]
        ax.plot(flat, np.full(len(flat), peak / 1e9), color=INK, lw=1.2)
        ax.annotate(", ".join(names), (x[-1], peak / 1e9), (0, 2), textcoords="offset points",
                    ha="right", fontsize=7, color=INK)  # fmt: skip
    peer = [
        (a, row.flops / row.peer_s / 1e9)
        for a, row in zip(at, rows, strict=True)
        if row.peer_s and row.peer_ok
    ]
    if peer:
        ax.scatter(*zip(*peer, strict=True), s=26, facecolors="none", edgecolors=THEIRS,
                   label="peer", zorder=3)  # fmt: skip
    ours = np.array([row.flops / row.ours_s / 1e9 for row in rows])
    ax.scatter(at, ours, s=26, color=OURS, label="ours", zorder=4)
    ax.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s")
    ax.set_title(family, loc="left", fontsize=10, fontweight="bold", color=INK)
    for axis in (ax.xaxis, ax.yaxis):
        _plain(axis)
    ax.grid(color=FAINT, alpha=0.25, lw=0.5)
    ax.tick_params(labelsize=8)


def _peaks(rows: Sequence[Row]) -> dict[float, list[str]]:
    """Rates of multiply-adds, and the dtypes that have each: two that noise sets apart are one."""
    most: dict[str, float] = {}
    for row in rows:
        if row.rates:
            most[row.product] = max(most.get(row.product, 0.0), row.rates[1])
    found: dict[float, list[str]] = {}
    for name, rate in sorted(most.items(), key=lambda item: -item[1]):
        near = next((peak for peak in found if rate > peak / ALIKE), rate)
        found.setdefault(near, []).append(name)
    return found


def _plain(axis: Any) -> None:
    """Numbers as they are read, more of them where an axis is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 60 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
