# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import _signal  # what `signal` wraps: its enumerations cost more than all the rest of a block
from signal import SIGINT
from types import FrameType, TracebackType
from typing import Any


class deferred:  # noqa: N801 - used like a function
    """Ctrl-C waits until the block is done, so that no bookkeeping is cut in half."""

    __slots__ = ("_caught", "_handler")

    def __enter__(self) -> None:
        self._caught: list[tuple[int, FrameType | None]] = []
        self._handler: Any = None
        handler = _signal.getsignal(SIGINT)
        if callable(handler):  # otherwise no interrupt is raised here
            try:
                _signal.signal(SIGINT, self._note)
                self._handler = handler
            except ValueError:  # nor in a thread that is not the main one
                pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            _signal.signal(SIGINT, handler)
            if self._caught:
                handler(*self._caught[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._caught.append((number, frame))
