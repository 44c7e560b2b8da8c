# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a ring must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported


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


def cut_like(cut: object, keep: object, cache: str | None, recalls: bool, flying: int) -> None:
    """NotImplementedError or ValueError when a shot cannot begin so."""
    if cache != "clean" or recalls:
        raise unsupported("Ring.tick", "cut", "cache 'clean'", "recall" if recalls else repr(cache))
    if flying:
        raise bad_value("Ring.tick", "cut", "no frame in flight", flying, "drain() first")
    for name, value in (("cut", cut), ("keep", keep)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_value("Ring.tick", name, "a whole number, 0 or more", repr(value))


def recall_like(
    arg: str, memory: object, wants: object, depth: int, together: bool, guidance: str
) -> None:
    """NotImplementedError when a rule, or a mixer, cannot serve such a ring."""
    for name, value, wanted in (
        ("memory" if wants is None else "cache", memory, wants),
        ("depth", depth, 1),
        ("together", together, False),
    ):
        if value != wanted:
            raise unsupported("Ring", arg, f"{name} {wanted}", f"{name} {value}")
    if guidance not in ("none", "self"):
        raise unsupported("Ring", arg, "guidance none or self", guidance)
