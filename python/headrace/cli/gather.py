# SPDX-License-Identifier: Apache-2.0
"""What a long run has found is kept when it ends early, and a line says how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from .fail import INTERRUPTED, Fail, reason

ERRORS = (ValueError, RuntimeError, MemoryError, ImportError, OSError)


def gather(coming: Iterable[Any], what: str) -> tuple[list[Any], Fail | None]:
    """What came, and what ended it early, to be raised once that is shown and written: Ctrl-C or an
    error. Raises it at once where nothing came. what: the plural of one that comes."""
    got: list[Any] = []
    ended: Fail | None = None
    try:
        for one in coming:
            got.append(one)
    except KeyboardInterrupt:
        ended = Fail(f"bench: interrupted, after {len(got)} {what}", INTERRUPTED)
    except ERRORS as error:
        ended = Fail(f"bench: {reason(error)}" + (f"; after {len(got)} {what}" if got else ""), 1)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if ended is not None and not got:
        raise ended
    return got, ended


def progress() -> Callable[[str], None] | None:
    """A line that is drawn again, ten times a second at most, cut where the terminal ends: a line
    that goes on below cannot be drawn again. None where nobody looks."""
    if not sys.stderr.isatty():
        return None
    began = last = time.perf_counter()

    def told(line: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last > 0.1:
            last = now
            text = f"{now - began:4.0f} s  {line}"[: _columns() - 1]
            print(f"\r{text}\x1b[K", end="\r", file=sys.stderr, flush=True)

    return told


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
