# SPDX-License-Identifier: Apache-2.0
"""Streams of a batch cut into pieces of tokens, each a program's. Lengths are on the device alone.

A stream is cut from its own first token on, so no bit of it knows its neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton_bounds import span


def pieces(tokens: int, streams: int, size: int) -> int:
    """Programs that are enough for `tokens` of `streams` in pieces of `size`."""
    return tokens // size + streams


@triton.jit
def first_piece(indptr, b, tokens, SIZE: tl.constexpr):
    """Where the pieces of stream b begin: those of two streams never meet, few stay idle."""
    begin, _ = span(indptr, b, tokens)
    return begin // SIZE + b


@triton.jit
def stream_of(indptr, piece, streams, tokens, SIZE: tl.constexpr):
    """The last stream whose pieces begin at `piece` or before; the first where there is none."""
    low, high = 0, streams
    while high - low > 1:
        mid = (low + high) // 2
        here = first_piece(indptr, mid, tokens, SIZE) <= piece
        low = tl.where(here, mid, low)
        high = tl.where(here, high, mid)
    return low
