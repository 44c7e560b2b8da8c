# SPDX-License-Identifier: Apache-2.0
"""Which of two kernels a call is made for."""

from __future__ import annotations

# Rows that one wave of blocks serves one by one, and bytes of adapters that they may read in all:
# what a row does not share with the one before it comes out of the second-level cache, some 5 TB/s
# against 4.3 TB/s of memory on an H200, so that these cost about ten microseconds. Estimates: no
# GPU has run either kernel yet.
GATHERED_ROWS = 128
GATHERED_BYTES = 48 << 20


def plan(
    tokens: int,
    adapters: int,
    rank: float,
    depth: int,
    outputs: int,
    slices: int = 1,
    width: int = 1,
    item: float = 2,
) -> str:
    """ "gathered": every row reads its own adapters; "segmented": rows that share them, in tiles.

    tokens rows over at most `adapters` distinct ones, `width` each, of mean rank `rank`; depth
    inputs, outputs of all slices; `item` bytes a weight. Segments pay where many rows share an
    adapter: they read it once a tile of 16. The choice depends on sizes alone, so one captured
    graph keeps its kernel whatever the mix.
    """
    if tokens > GATHERED_ROWS:
        return "segmented"
    each = rank * (slices * depth + outputs) * item * width
    distinct = min(tokens, adapters)
    # All rows distinct read no more than segments would; else the cache serves what they share.
    if tokens <= 2 * distinct or tokens * each <= GATHERED_BYTES:
        return "gathered"
    return "segmented"
