# SPDX-License-Identifier: Apache-2.0
"""What a run over video shows: a table that stays in place on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from .live import Drawn, clock, milli, number, size

if TYPE_CHECKING:
    from .video import Videos

COLUMNS = (
    "frames", "frames/s", "computed", "kept", "KV cache", "step ms\np50", "step ms\np99",
    "surprise", "reports",
)  # fmt: skip
WIDTHS = (9, 9, 9, 7, 10, 11, 11, 9, 8)


class View(Protocol):
    """Shows the run as it goes. Raises BrokenPipeError when nobody reads any more."""

    def update(self, force: bool = False) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


def view(run: Videos) -> View:
    """The table where standard output is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return Table(run)
        except ImportError:
            print("rich is not installed, so this shows plain lines; pip install 'headrace[cli]'")
    return Lines(run)


def cells(run: Videos) -> tuple[str, ...]:
    """The run so far. computed, kept: mean shares of a frame's patches."""
    t = run.track
    surprise = t.surprise / t.surprised if t.surprised else None
    return (
        f"{t.total.frames:,}",
        number(run.rate()),
        f"{t.share('changed'):.1%}",
        f"{t.share('kept'):.1%}",
        size(t.total.kv_bytes),
        number(milli(t.steps.quantile(0.5))),
        number(milli(t.steps.quantile(0.99))),
        "-" if surprise is None else f"{surprise:.1%}",
        f"{t.scenes:,}",
    )


def progress(run: Videos, started: float) -> str:
    """How far."""
    total = run.expected()
    of = f" of {total:,}" if total else ""
    return f"{run.frames_read():,}{of} frames in {clock(time.monotonic() - started)}"


class Lines:
    """A line every few seconds, and at the end."""

    EVERY = 5.0

    def __init__(self, run: Videos) -> None:
        self.run, self.started = run, time.monotonic()
        self.due = self.started + self.EVERY
        print(run.title(), flush=True)
        self._row([name.replace("\n", " ") for name in COLUMNS])

    def _row(self, row: Any) -> None:
        print("  ".join(c.rjust(w) for c, w in zip(row, WIDTHS, strict=True)), flush=True)

    def update(self, force: bool = False) -> None:
        now = time.monotonic()
        if now < self.due and not force:
            return
        self.due = now + self.EVERY
        self._row(cells(self.run))
        if not force:
            print(f"# {progress(self.run, self.started)}", flush=True)

    def say(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        pass


class Table(Drawn):
    """A table that stays in place."""

    def __init__(self, run: Videos) -> None:
        super().__init__()
        self.run = run

    def draw(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in COLUMNS:
            grid.add_column(name, justify="right", no_wrap=True)
        grid.add_row(*cells(self.run))
        parts: list[Any] = [
            Text(self.run.title()), grid, Text(progress(self.run, self.started), style="dim"),
        ]  # fmt: skip
        if total := self.run.expected():
            parts.append(ProgressBar(total=total, completed=self.run.frames_read(), width=78))
        return Group(*parts)
