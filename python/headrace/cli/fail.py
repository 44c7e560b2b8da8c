# SPDX-License-Identifier: Apache-2.0
"""A user's mistake, or the world's: one line on standard error and an exit status."""

from __future__ import annotations

import argparse
from typing import NoReturn

USAGE = 2
INTERRUPTED = 130
TERMINATED = 143
PIPE = 141


class Fail(Exception):  # noqa: N818
    """Ends a command with this one line and status."""

    def __init__(self, line: str, status: int = USAGE) -> None:
        super().__init__(line)
        self.status = status


def reason(error: BaseException) -> str:
    """What an error says, in one line, without the number and the path that OSError puts around."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def one_line_errors(parser: argparse.ArgumentParser) -> None:
    """Makes a parser tell of a wrong option in one line, without the usage before it."""

    def error(message: str) -> NoReturn:
        parser.exit(USAGE, f"{parser.prog}: {message}\n")

    parser.error = error  # type: ignore[method-assign]
