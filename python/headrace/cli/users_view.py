# SPDX-License-Identifier: Apache-2.0
"""What a run with many users shows: a table that stays in place on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from .live import Drawn, milli, number, progress, size
from .track import Histogram

if TYPE_CHECKING:
    from .users import Users

COLUMNS = ("adapter", "users", "tokens", "ppl", "ppl without")
WIDTHS = (20, 7, 11, 9, 11)


class View(Protocol):
    """Shows the run as it goes. Raises BrokenPipeError when nobody reads any more."""

    def update(self, force: bool = False) -> None: ...
    def close(self) -> None: ...


def view(run: Users) -> View:
    """The table where standard output is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return Table(run)
        except ImportError:
            print("rich is not installed, so this shows plain lines; pip install 'headrace[cli]'")
    return Lines(run)


def quantiles(times: Histogram) -> dict[str, float | int | None]:
    """p50 and p99 in milliseconds, and how many."""
    return {
        "count": int(times.counts.sum()),
        "p50": rounded(milli(times.quantile(0.5))),
        "p99": rounded(milli(times.quantile(0.99))),
    }


def rounded(x: float | None) -> float | None:
    """Five digits."""
    return None if x is None else float(f"{x:.5g}")


def title(run: Users) -> str:
    """One line about the run."""
    return (
        f"{run.number:,} users of {run.base}, Zipf {run.args.zipf:g}, each with its own adapter: "
        f"{run.batch} streams a step, {run.args.slots} slots"
    )


def rows(run: Users) -> list[tuple[str, ...]]:
    """A row for every kind of adapter."""
    return [
        (
            g.name,
            f"{len(g.users):,}",
            f"{g.mine.tokens:,}",
            number(g.mine.perplexity),
            number(g.base.perplexity),
        )
        for g in sorted(run.groups.values(), key=lambda g: g.name)
    ]


def summary(run: Users) -> list[str]:
    """What the bank did, and how long things took."""
    f, stats = run.figures, run.bank.stats
    asked = stats.hits + stats.misses
    rate = f"{stats.hits / asked:.1%}" if asked else "-"
    first = ", ".join(
        f"{kind} {number(milli(h.quantile(0.5)))} / {number(milli(h.quantile(0.99)))}"
        for kind, h in f.first.items()
    )
    speed = f.tokens / f.seconds if f.seconds else 0.0
    return [
        f"bank: {len(run.bank.residents())} resident, hit rate {rate}, "
        f"{stats.evictions:,} evictions, {size(stats.bytes_loaded)} loaded",
        f"first token ms p50 / p99: {first}; step {number(milli(f.step.quantile(0.5)))} / "
        f"{number(milli(f.step.quantile(0.99)))}; {speed:,.0f} tokens/s",
    ]


class Lines:
    """A line per kind every few seconds, and at the end."""

    EVERY = 5.0

    def __init__(self, run: Users) -> None:
        self.run, self.started = run, time.monotonic()
        self.due = self.started + self.EVERY
        print(title(run), flush=True)
        self._row(COLUMNS)

    def _row(self, row: tuple[str, ...]) -> None:
        print("  ".join(c.rjust(w) for c, w in zip(row, WIDTHS, strict=True)), flush=True)

    def update(self, force: bool = False) -> None:
        now = time.monotonic()
        if now < self.due and not force:
            return
        self.due = now + self.EVERY
        for row in rows(self.run):
            self._row(row)
        for line in summary(self.run):
            print(line)
        if not force:
            print(f"# {progress(self.run.figures.tokens, self.run.total, self.started)}")
        sys.stdout.flush()

    def close(self) -> None:
        pass


class Table(Drawn):
    """A table that stays in place."""

    def __init__(self, run: Users) -> None:
        super().__init__()
        self.run = run

    def draw(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(COLUMNS):
            grid.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in rows(self.run):
            grid.add_row(*row)
        done, total = self.run.figures.tokens, self.run.total
        return Group(
            Text(title(self.run)),
            grid,
            *(Text(line) for line in summary(self.run)),
            Text(progress(done, total, self.started), style="dim"),
            ProgressBar(total=total, completed=done, width=78),
        )
