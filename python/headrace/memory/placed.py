# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Placed:
    """Where the tokens of a table are in time, rows and columns; never changes.

    times: of each of its pages, by the position that it starts at, the time about which its keys
    were turned; of rows and columns that is 0. first: time of the first token of all, which pinned
    pages turn about. top: the largest coordinate so far, which text goes on from. given: whether
    any places were told, so that the tokens alone do not say them.
    """

    times: Mapping[int, int]
    first: int
    top: int
    given: bool = False
