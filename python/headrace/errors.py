# SPDX-License-Identifier: Apache-2.0
"""How a mistake is told: one line that names op, argument, what was expected and what came."""

from __future__ import annotations


class BackendError(RuntimeError):
    """A backend that was asked for by name is not there."""


def message(op: str, arg: str, expected: object, got: object, hint: str = "") -> str:
    """`op(arg): expected X, got Y; hint`."""
    return f"{op}({arg}): expected {expected}, got {got}" + (f"; {hint}" if hint else "")


def bad_value(op: str, arg: str, expected: object, got: object, hint: str = "") -> ValueError:
    """A wrong shape or value."""
    return ValueError(message(op, arg, expected, got, hint))


def bad_type(op: str, arg: str, expected: object, got: object, hint: str = "") -> TypeError:
    """A wrong type or dtype."""
    return TypeError(message(op, arg, expected, got, hint))


def unsupported(
    op: str, arg: str, supported: object, got: object, hint: str = ""
) -> NotImplementedError:
    """A valid request that no kernel serves; lists what is served."""
    return NotImplementedError(message(op, arg, f"one of {supported}", got, hint))
