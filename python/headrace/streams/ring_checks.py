# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a ring must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import bad_type, bad_value


def at_least_one(name: str, value: object) -> int:
    """The number, when it is one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_type("Ring", name, "a whole number", repr(value))
    if value < 1:
        raise bad_value("Ring", name, "1 or more", value)
    return value


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """ValueError when it is none of those known."""
    if value not in known:
        raise bad_value("Ring", name, "one of " + ", ".join(known), repr(value))


def frame_like(frame: object, shape: tuple[int, int]) -> None:
    """ValueError when it is no frame of this shape."""
    if not isinstance(frame, Tensor) or tuple(frame.shape) != shape:
        got = str(list(frame.shape)) if isinstance(frame, Tensor) else type(frame).__name__
        raise bad_value("Ring.tick", "frame", f"a tensor {list(shape)}", got)


def mask_like(given: Tensor | None, tokens: int) -> None:
    """ValueError when it is no mask over the tokens of a frame."""
    if given is not None and (given.dtype != torch.bool or tuple(given.shape) != (tokens,)):
        got = f"{given.dtype} {list(given.shape)}"
        raise bad_value("Ring.tick", "given", f"torch.bool [{tokens}]", got)
