# SPDX-License-Identifier: Apache-2.0
"""A user's mistake, or the world's: one line on standard error and an exit status."""

from __future__ import annotations

USAGE = 2
INTERRUPTED = 130
TERMINATED = 143
PIPE = 141


class Fail(Exception):
    """Ends a command with this one line and status."""

    def __init__(self, line: str, status: int = USAGE) -> None:
        super().__init__(line)
        self.status = status


def reason(error: BaseException) -> str:
    """What an error says, in one line, without the number and the path that OSError puts around."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
