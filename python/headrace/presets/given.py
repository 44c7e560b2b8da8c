# SPDX-License-Identifier: Apache-2.0
"""What options of presets must be, where nothing else looks at them."""

from __future__ import annotations

from typing import Any

from ..errors import bad_type, bad_value


def counts(op: str, least: int = 1, **given: object) -> None:
    """TypeError or ValueError for what is no whole number from `least` on."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_type(op, name, "a whole number", repr(value))
        if value < least:
            raise bad_value(op, name, f"{least} or more", value)


def numbers(op: str, least: float = 0.0, **given: object) -> None:
    """TypeError or ValueError for what is no number from `least` on."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise bad_type(op, name, "a number", repr(value))
        if not value >= least:
            raise bad_value(op, name, f"{least:g} or more", value)


def shares(op: str, **given: Any) -> None:
    """TypeError or ValueError for what is no number from 0 to 1."""
    numbers(op, **given)
    for name, value in given.items():
        if not value <= 1:
            raise bad_value(op, name, "0 to 1", value)


def layers_of(op: str, name: str, given: tuple[int, ...], count: int) -> None:
    """ValueError for numbers of layers that are not there."""
    if not all(0 <= layer < count for layer in given):
        raise bad_value(op, name, f"layers from 0 to {count - 1}", given)
