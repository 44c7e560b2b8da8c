# SPDX-License-Identifier: Apache-2.0
"""The picture of a benchmark: a roofline per family of ops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops

if TYPE_CHECKING:
    from . import Row

OURS, THEIRS, INK, FAINT = "#0072B2", "#E69F00", "#222222", "#8a8a8a"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG, or what the suffix of path says: FLOP/s over FLOPs a byte, a panel per family.

    Ours and the peer of every shape, under the roof of this machine: multiply-adds in registers,
    and the read rate of a buffer of each shape's size, the fastest and the slowest of them. Raises
    ImportError without matplotlib, ValueError without a row to show, OSError when it cannot write.
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
    figure.savefig(path)


def _panel(ax: Any, family: str, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import NullFormatter

    at = np.array([row.flops / row.bytes for row in rows])
    rates = np.array([row.rates for row in rows])
    peak = float(rates[:, 1].max())
    ridge = peak / rates[:, 0].min()
    x = np.geomspace(min(at.min(), ridge) / 4, max(at.max(), ridge) * 4, 200)
    for k, rate in enumerate(sorted({float(rates[:, 0].min()), float(rates[:, 0].max())})):
        roof = np.minimum(x * rate, peak)
        ax.plot(x, roof, color=INK, lw=1.2, ls=("-", "--")[k], label=None if k else "roof")
    ours = np.array([row.flops / row.ours_s for row in rows])
    peer = [(a, row.flops / row.peer_s) for a, row in zip(at, rows, strict=True) if row.peer_s]
    if peer:
        ax.scatter(*zip(*peer, strict=True), s=26, facecolors="none", edgecolors=THEIRS,
                   label="peer", zorder=3)  # fmt: skip
    ax.scatter(at, ours, s=26, color=OURS, label="ours", zorder=4)
    ax.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="FLOP/s")
    ax.set_title(family, loc="left", fontsize=10, fontweight="bold", color=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    ax.grid(color=FAINT, alpha=0.25, lw=0.5)
    ax.tick_params(labelsize=8)
