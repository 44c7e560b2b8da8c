# SPDX-License-Identifier: Apache-2.0
"""Whole loops, not single ops: streams, adapters, recall, rings and video, and what they gain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from ..peers import WANTED
from ..tables import BAD, SLOWER, STRONG, WRONG, Line, Table, bytes_of, names, numbers, ratio
from . import adapters, lanes, recall, rings, stock, streaming, streams, video
from .turns import Loop, Told, measure

LOOPS: dict[str, Loop] = {
    loop.name: loop
    for loop in (
        streaming.LOOP, streams.LOOP, lanes.LOOP, adapters.LOOP, recall.LOOP, rings.LOOP,
        video.LOOP, stock.LOOP,
    )
}  # fmt: skip

__all__ = ["LOOPS", "Loop", "each", "measure", "missing", "tables"]


def each(
    names: Sequence[str] = (), quick: bool = False, told: Told | None = None
) -> Iterator[dict[str, Any]]:
    """Measures these loops, or all whose packages are there, one at a time. Raises
    ImportError for a loop that was named and lacks its package."""
    absent = missing()
    for name in names:
        if name in absent:
            raise ImportError(f"bench(--loops): {name} needs {LOOPS[name].needs}; {absent[name]}")
    for name in names or LOOPS:
        if name not in absent:
            yield measure(LOOPS[name], quick, told)


def missing() -> dict[str, str]:
    """Loops whose package is not there, and how to get it."""
    return {
        name: WANTED[loop.needs]
        for name, loop in LOOPS.items()
        if loop.needs and find_spec(loop.needs) is None
    }


def tables(found: Sequence[dict[str, Any]]) -> list[Table]:
    """One for each loop, a line for each side of each size; no ratio where ours is wrong."""
    return [_table(loop) for loop in found]


def _table(loop: dict[str, Any]) -> Table:
    columns = (
        *numbers(loop["axis"]), *names(""), *numbers(loop["unit"], "lag p50, ms", "p99, ms"),
        *numbers("kept", "ours is", "within"),
    )  # fmt: skip
    lines = []
    for point in loop["points"]:
        if not point["ok"]:
            told = f"{WRONG} off by {point['error']:.1e}, more than {point['tolerance']:.1e}"
            lines.append(Line((f"{point['at']:,}", told, *[""] * 6), {1: BAD}))
            continue
        for i, (name, side) in enumerate(point["sides"].items()):
            gain = point["speedup"].get(name)
            cells = (
                "" if i else f"{point['at']:,}", name, f"{side['throughput']:,.1f}",
                f"{1e3 * side['lag_p50']:.2f}", f"{1e3 * side['lag_p99']:.2f}",
                bytes_of(side["bytes"]), ratio(gain and gain["median"]),
                f"{gain['least']:.2f} to {gain['most']:.2f}" if gain else "",
            )  # fmt: skip
            looks = {} if i else {1: STRONG}
            lines.append(Line(cells, looks | ({6: BAD} if cells[6].startswith(SLOWER) else {})))
    return Table(columns, tuple(lines), title=f"{loop['name']}: {loop['title']}")
