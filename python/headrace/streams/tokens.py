# SPDX-License-Identifier: Apache-2.0
"""Token ids, from whatever a caller holds them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _C
from ..errors import bad_type, bad_value

BYTES = 256
"""Vocabulary of a model that reads bytes."""

HOST = torch.device("cpu")

Tokens = Tensor | np.ndarray | Sequence[int] | bytes | bytearray | memoryview | str


def ids(tokens: Any, vocab: int, device: torch.device, op: str = "feed") -> Tensor:
    """int64 [T] on `device` from a tensor, an array, a sequence of ints, or bytes or text (UTF-8).

    Bytes and text are for models of 256 tokens. TypeError or ValueError, one line, when these are
    not tokens of the model.
    """
    return ids_of_each([tokens], vocab, device, op)[1]


def ids_of_each(
    given: Sequence[Any], vocab: int, device: torch.device, op: str = "feed"
) -> tuple[list[int], Tensor]:
    """How many `ids` each has, and all of them in a row, a copy; with one look at the values."""
    if device == HOST:
        made = _C.join_ids(list(given), vocab, _empty)
        if made is not None:
            return made
    parts = list(given)
    joined = _joined(parts, device)
    if joined is None:
        parts = [_whole_numbers(x, vocab, device, op) for x in given]
        joined = torch.cat(parts) if parts else _empty(0)
    if joined.numel():
        low, high = (int(x) for x in torch.aminmax(joined))
        if low < 0 or high >= vocab:
            raise bad_value(op, "tokens", f"ids in [0, {vocab})", low if low < 0 else high)
    return [x.numel() for x in parts], joined


def _empty(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64)


def _joined(given: list[Any], device: torch.device) -> Tensor | None:
    """All in a row, where each is int64 [T] on `device` already; else None, for a closer look.

    The axes of what comes out tell those of all: only such are joined to such.
    """
    if set(map(type, given)) != {Tensor} or {x.dtype for x in given} != {torch.int64}:
        return None
    try:
        joined = torch.cat(given)
    except RuntimeError:
        return None
    return joined if joined.device == device and joined.dim() == 1 else None


def _whole_numbers(tokens: Any, vocab: int, device: torch.device, op: str) -> Tensor:
    """int64 [T], of whatever values."""
    if isinstance(tokens, str):
        tokens = tokens.encode()
    if isinstance(tokens, (bytes, bytearray, memoryview)):
        if vocab != BYTES:
            raise bad_type(
                op,
                "tokens",
                f"token ids below {vocab}",
                type(tokens).__name__,
                "only a model of 256 tokens reads bytes",
            )
        tokens = np.frombuffer(tokens, dtype=np.uint8)
    made = tokens if isinstance(tokens, Tensor) else _from_host(tokens, op).to(device)
    if made.device != device:
        raise bad_value(op, "tokens", f"a tensor on {device}", made.device)
    if made.dtype.is_floating_point or made.dtype.is_complex or made.dtype == torch.bool:
        raise bad_type(op, "tokens", "whole numbers, int64", str(made.dtype).removeprefix("torch."))
    if made.dim() != 1:
        raise bad_value(op, "tokens", "one axis, [T]", list(made.shape))
    return made.long()


def _from_host(tokens: Any, op: str) -> Tensor:
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError) as error:  # lists within lists, of different lengths
        raise bad_value(op, "tokens", "one axis, [T]", type(tokens).__name__) from error
    if array.size == 0 and array.ndim == 1:
        return torch.zeros(0, dtype=torch.int64)
    if array.dtype.kind not in "iu":
        got = f"{type(tokens).__name__} of {array.dtype}"
        raise bad_type(op, "tokens", "whole numbers, int64", got)
    return torch.from_numpy(array.astype(np.int64))
