# SPDX-License-Identifier: Apache-2.0
"""How the tables of `headrace bench` are shown: drawn on a terminal, else as plain text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bench.tables import BAD, GOOD, QUIET, SLOWER, STRONG, WRONG, Column, Line, Table

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {BAD: "bold red", GOOD: "green", QUIET: "dim", STRONG: "bold", "": ""}
NARROW = 12
"""No column of words is made narrower; where that does not help, text stays plain."""
INDENT = 2

Show = Callable[[Table], None]


def shower() -> Show:
    """What shows a table: drawn where standard output is a terminal and rich is installed, else
    its text, whose lines are as long as they are."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            print("rich is not installed, so this shows plain text; pip install 'headrace[cli]'")
        else:
            console = Console()
            return lambda table: draw(table, console)
    return lambda table: print(table, flush=True)


def draw(table: Table, console: Console) -> None:
    """In the width that there is: names that are too long go on in another line, and notes go
    below them. Lines stand below what they belong to."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    indent = INDENT if table.by else 0
    groups = list(table.groups())
    fitted = _fitted(table, [line for _, lines in groups for line in lines], console.width - indent)
    if fitted is None:
        print(table, flush=True)
        return
    parts: list[Any] = [Text(table.title, STYLES[STRONG])] if table.title else []
    parts.append(Padding(_grid(fitted, (), head=True), (0, 0, 0, indent)))
    for name, lines in groups:
        if table.by:
            parts.append(Text("  ".join(name), STYLES[STRONG]))
        parts.append(Padding(_grid(fitted, lines), (0, 0, 0, indent)))
    for told in table.below:
        parts.append(Text(told, STYLES[BAD] if told.startswith((SLOWER, WRONG)) else ""))
    console.print(Group(*parts))


@dataclass(frozen=True)
class Fitted:
    """Columns with their widths and what lies between two. below: the last cell of a line, which
    has no column, stands below its first."""

    columns: Sequence[Column]
    widths: Sequence[int]
    gap: int
    below: bool


def _fitted(table: Table, lines: Sequence[Line], room: int) -> Fitted | None:
    """As much of it in one line as there is room for."""
    whole, less = table.columns[table.by :], table.columns[table.by : len(table.columns) - 1]
    ways = [(whole, 2, True), (less if table.notes else whole, 2, False)]
    for columns, gap, intact in (*ways, (ways[1][0], 1, False)):
        widths = _widths(columns, lines, room - gap * (len(columns) - 1), intact)
        if widths is not None:
            return Fitted(columns, widths, gap, len(columns) < len(whole))
    return None


def _widths(
    columns: Sequence[Column], lines: Sequence[Line], room: int, whole: bool
) -> list[int] | None:
    """Of every column, in so much room, None where there is too little. Heads may go on in another
    line, and words too, the first column's at twice the width of others, unless all is to stay
    whole."""
    widths = []
    for at, column in enumerate(columns):
        head = len(column.name) if whole else max(map(len, column.name.split()), default=0)
        widths.append(max([head, *(len(line.cells[at]) for line in lines)]))
    words = [at for at, column in enumerate(columns) if not column.right]
    while sum(widths) > room:
        wide = [at for at in words if widths[at] > NARROW]
        if whole or not wide:
            return None
        widths[max(wide, key=lambda at: widths[at] * (2 if at else 1))] -= 1
    for at, column in enumerate(columns):  # a head stays whole where there is room
        widths[at] += max(0, min(room - sum(widths), len(column.name) - widths[at]))
    return widths


def _grid(fitted: Fitted, lines: Sequence[Line], head: bool = False) -> Any:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, fitted.gap - 1, 0, 0),
        show_header=head,
    )  # fmt: skip
    for column, width in zip(fitted.columns, fitted.widths, strict=True):
        justify: Any = "right" if column.right else "left"
        grid.add_column(column.name, justify=justify, width=width, overflow="fold")
    for line in lines:
        cells = [Text(cell, STYLES[line.looks.get(at, "")]) for at, cell in enumerate(line.cells)]
        if fitted.below and line.cells[-1]:
            cells[0] = Text.assemble(cells[0], "\n", cells[-1])
        grid.add_row(*cells[: len(fitted.columns)])
    return grid
