# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class History:
    """The tokens of a stream so far, four bytes each; never changes.

    One that follows from another shares its buffer, so that a token costs the same however many
    came before, and a fork or a mark costs nothing until the two part.
    """

    __slots__ = ("_buffer", "length")

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._buffer = array("i", tokens)
        self.length = len(self._buffer)

    def __len__(self) -> int:
        return self.length

    def extend(self, tokens: Iterable[int]) -> History:
        """These tokens and those."""
        after = History.__new__(History)
        shared = len(self._buffer) == self.length
        after._buffer = self._buffer if shared else self._buffer[: self.length]
        after._buffer.extend(tokens)
        after.length = len(after._buffer)
        return after

    def cut(self, length: int) -> History:
        """The first `length` of them."""
        before = History.__new__(History)
        before._buffer, before.length = self._buffer, min(length, self.length)
        return before

    def tokens(self, lo: int = 0, hi: int | None = None) -> list[int]:
        """Tokens lo..hi-1."""
        stop = self.length if hi is None else min(hi, self.length)
        return self._buffer[lo:stop].tolist()

    def common(self, tokens: Sequence[int]) -> int:
        """Length of the longest common prefix with these."""
        n = min(self.length, len(tokens))
        differ = np.array(self._buffer[:n]) != np.asarray(tokens[:n])
        return int(differ.argmax()) if differ.any() else n
