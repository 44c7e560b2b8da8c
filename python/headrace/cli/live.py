# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it goes: a table that stays in place on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from .track import Track


class View(Protocol):
    """Shows tracks as they grow. Raises BrokenPipeError when nobody reads any more."""

    def update(self, tracks: Sequence[Track], force: bool = False) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


def view(total: int | None, title: str) -> View:
    """The table where standard output is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return Table(total, title)
        except ImportError:
            print("rich is not installed, so this shows plain lines; pip install 'headrace[cli]'")
    return Lines(total, title)


COLUMNS = (
    "policy",
    "tokens",
    "tokens/s",
    "ppl",
    "ppl\n100k",
    "KV cache",
    "step ms\np50",
    "step ms\np99",
    "windows\nout",
)


WIDTHS = (12, 11, 9, 7, 8, 10, 11, 11, 11)


def cells(track: Track) -> tuple[str, ...]:
    """One row: a policy so far. ppl 100k is over the last 100k tokens; times are per step."""
    span, last = track.all, track.last.total
    rate = span.tokens / span.seconds if span.seconds else 0.0
    return (
        track.policy,
        f"{track.position:,}",
        f"{rate:,.0f}" if not track.sampled else f"{rate:,.1f}",
        number(span.perplexity),
        number(last.perplexity),
        size(track.kv_bytes),
        number(milli(track.step_times.quantile(0.5))),
        number(milli(track.step_times.quantile(0.99))),
        f"{track.windows_out:,.0f}" if track.capacity else "-",
    )


def milli(seconds: float | None) -> float | None:
    """Milliseconds."""
    return None if seconds is None else 1e3 * seconds


def number(x: float | None) -> str:
    """Four significant digits, or a dash."""
    if x is None:
        return "-"
    return f"{x:.4g}" if abs(x) < 1e4 else f"{x:.2e}"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def progress(position: int, total: int | None, started: float) -> str:
    """How far, and how long it still takes at this pace."""
    elapsed = time.monotonic() - started
    if not total or not position:
        return f"{position:,} tokens in {clock(elapsed)}"
    left = elapsed / position * (total - position)
    return f"{position:,} of {total:,} tokens in {clock(elapsed)}, {clock(left)} left"


def clock(seconds: float) -> str:
    """m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Lines:
    """A line per policy every few seconds, and at the end."""

    EVERY = 5.0

    def __init__(self, total: int | None, title: str) -> None:
        self.total = total
        self.started = time.monotonic()
        self.due = self.started + self.EVERY
        print(title, flush=True)
        self._row([name.replace("\n", " ") for name in COLUMNS])

    def _row(self, row: Sequence[str]) -> None:
        print("  ".join(c.rjust(w) for c, w in zip(row, WIDTHS, strict=True)), flush=True)

    def update(self, tracks: Sequence[Track], force: bool = False) -> None:
        now = time.monotonic()
        if now < self.due and not force:
            return
        self.due = now + self.EVERY
        for track in tracks:
            self._row(cells(track))
        if not force:
            front = max(t.position for t in tracks)
            print(f"# {progress(front, self.total, self.started)}", flush=True)

    def say(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        pass


class Table:
    """A table that is drawn again a few times a second."""

    EVERY = 0.25

    def __init__(self, total: int | None, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self.total, self.title = total, title
        self.started = time.monotonic()
        self.due = 0.0
        self.console = Console()
        # Drawn from this thread only: a second one would take its share of two cores.
        self.live = Live(console=self.console, auto_refresh=False)
        self.live.start()

    def update(self, tracks: Sequence[Track], force: bool = False) -> None:
        now = time.monotonic()
        if now < self.due and not force:
            return
        self.due = now + self.EVERY
        self.live.update(self._draw(tracks), refresh=True)

    def _draw(self, tracks: Sequence[Track]) -> Any:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        wide = self.console.width >= 100
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1) if wide else (0, 0))
        for i, name in enumerate(COLUMNS):
            grid.add_column(name, justify="right" if i else "left", no_wrap=True)
        for track in tracks:
            grid.add_row(*cells(track), style="dim" if track.ended else "")
        front = max((t.position for t in tracks), default=0)
        parts: list[Any] = [
            Text(self.title),
            grid,
            Text(progress(front, self.total, self.started), style="dim"),
        ]
        if self.total:
            parts.append(ProgressBar(total=self.total, completed=front, width=78))
        return Group(*parts)

    def say(self, line: str) -> None:
        self.live.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self.live.stop()


class Drawn:
    """What a run shows of itself, drawn again a few times a second, from the caller's thread."""

    EVERY = 0.25

    def __init__(self) -> None:
        from rich.live import Live

        self.started, self.due = time.monotonic(), 0.0
        self.live = Live(auto_refresh=False)
        self.live.start()

    def draw(self) -> Any:
        """What stands there now, for rich."""
        raise NotImplementedError

    def update(self, force: bool = False) -> None:
        now = time.monotonic()
        if now >= self.due or force:
            self.due = now + self.EVERY
            self.live.update(self.draw(), refresh=True)

    def say(self, line: str) -> None:
        self.live.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self.live.stop()
