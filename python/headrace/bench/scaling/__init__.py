# SPDX-License-Identifier: Apache-2.0
"""Cost as work grows: seconds over length, streams, adapters, cached tokens and threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..beside import time_of
from . import stored, streams, threads
from .curve import Fit, Told, Work, fit, measure

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        streams.LENGTH, streams.STREAMS, stored.ADAPTERS, stored.CACHED, stored.RECALL,
        threads.THREADS,
    )
}  # fmt: skip

__all__ = ["WORKS", "Fit", "Work", "each", "fit", "measure", "table"]


def each(
    names: Sequence[str] = (), quick: bool = False, told: Told | None = None
) -> Iterator[dict[str, Any]]:
    """Measures these works, or all, one at a time. Raises ValueError after a wrong result."""
    for name in names or WORKS:
        yield measure(WORKS[name], quick, told)


def table(found: Sequence[dict[str, Any]]) -> str:
    """A block for each work, a line for each series: its times, first to last, and its slope."""
    blocks = []
    for work in found:
        lines: list[tuple[str, ...]] = [(work["axis"], "from", "to", f"time of {work['of']}",
                                         "to", "slope", "its last part")]  # fmt: skip
        for series in work["series"]:
            at, seconds = series["at"], series["seconds"]
            lines.append((
                series["name"], f"{at[0]:,}", f"{at[-1]:,}", time_of(seconds[0]),
                time_of(seconds[-1]), slope(series),
                f"{series['last_slope']:+.2f}" if "last_slope" in series else "",
            ))  # fmt: skip
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        texts = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        head = f"{work['name']}: {work['title']}"
        blocks.append("\n".join([head, texts[0], "-" * len(texts[0]), *texts[1:]]))
    return "\n\n".join(blocks)


def slope(series: dict[str, Any]) -> str:
    """With its standard error, which two points do not have."""
    if "slope" not in series:
        return ""
    error = f" \u00b1 {series['slope_error']:.2f}" if len(series["at"]) > 2 else ""
    return f"{series['slope']:+.2f}{error}"
