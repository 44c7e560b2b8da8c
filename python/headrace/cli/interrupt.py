# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and its kin, between steps and not within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .fail import INTERRUPTED, PIPE, TERMINATED, Fail, reason


class Interrupted(Exception):  # noqa: N818
    """The user, or the system, asked to stop."""

    def __init__(self, number: int) -> None:
        term = number == signal.SIGTERM
        super().__init__("terminated" if term else "interrupted")
        self.status = TERMINATED if term else INTERRUPTED


class Guard:
    """While active, SIGINT and SIGTERM raise Interrupted at `check` or while `waiting`; a second
    one raises at once, and none does after `finish`.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._waiting = self._finishing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Guard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked is not None, number
        if (self._waiting or again) and not self._finishing:
            raise Interrupted(number)

    def check(self) -> None:
        """Raises Interrupted when asked to stop."""
        if self._asked is not None:
            raise Interrupted(self._asked)

    def finish(self) -> None:
        """From here on nothing raises: what was done is being written."""
        self._finishing = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that may wait for long and that can be left anywhere."""
        self.check()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False


STOPS = (
    Interrupted, Fail, BrokenPipeError, ValueError, NotImplementedError, MemoryError, OSError,
    RuntimeError, ImportError,
)  # fmt: skip
"""What ends a run with one line and a report of what was done so far."""


def ending(error: BaseException) -> tuple[int, str, str]:
    """Of one of STOPS: (exit status, what the report says, the line for standard error)."""
    if isinstance(error, Interrupted):
        return error.status, str(error), f"headrace stream: {error}"
    if isinstance(error, BrokenPipeError):
        return PIPE, "broken pipe", "headrace stream: nobody reads the output"
    if isinstance(error, Fail):
        return error.status, str(error), f"headrace {error}"
    return 1, reason(error), f"headrace stream: {reason(error)}"
