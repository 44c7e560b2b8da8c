# SPDX-License-Identifier: Apache-2.0
"""Cost as work grows: seconds over length, streams, adapters, cached tokens and threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..tables import STRONG, Line, Table, micro, names, numbers
from . import stored, streams, threads
from .curve import Fit, Told, Work, fit, measure

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        streams.LENGTH, streams.STREAMS, stored.ADAPTERS, stored.CACHED, stored.RECALL,
        threads.THREADS,
    )
}  # fmt: skip

__all__ = ["WORKS", "Fit", "Work", "each", "fit", "measure", "tables"]


def each(
    names: Sequence[str] = (), quick: bool = False, told: Told | None = None
) -> Iterator[dict[str, Any]]:
    """Measures these works, or all, one at a time. Raises ValueError after a wrong result."""
    for name in names or WORKS:
        yield measure(WORKS[name], quick, told)


def tables(found: Sequence[dict[str, Any]]) -> list[Table]:
    """One for each work, a line for each series: its times, first to last, and its slope."""
    return [_table(work) for work in found]


def _table(work: dict[str, Any]) -> Table:
    columns = (
        *names(work["axis"]), *numbers("from", "to", f"time of {work['of']}, us", "to"),
        *numbers("slope", "its last part"),
    )  # fmt: skip
    lines = []
    for series in work["series"]:
        at, seconds = series["at"], series["seconds"]
        cells = (
            series["name"], f"{at[0]:,}", f"{at[-1]:,}", micro(seconds[0]), micro(seconds[-1]),
            slope(series), f"{series['last_slope']:+.2f}" if "last_slope" in series else "",
        )  # fmt: skip
        lines.append(Line(cells, {5: STRONG}))
    return Table(columns, tuple(lines), title=f"{work['name']}: {work['title']}")


def slope(series: dict[str, Any]) -> str:
    """With its standard error, which two points do not have."""
    if "slope" not in series:
        return ""
    error = f" \u00b1 {series['slope_error']:.2f}" if len(series["at"]) > 2 else ""
    return f"{series['slope']:+.2f}{error}"
