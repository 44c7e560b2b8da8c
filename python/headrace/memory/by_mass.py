# SPDX-License-Identifier: Apache-2.0
"""Recall by mass: as many blocks as capture a share of the softmax, under the bound that is named.

| bound | blocks are chosen so that | what is said of the rest |
|---|---|---|
| proven | no key at all can make a query miss more | a limit that holds for every key |
| estimate | the centroids' estimate says so | the same proven limit, which may be near 1 |
| sampled | a sample of the rest says so | a limit that holds with a chance (see `Sampled`) |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..errors import bad_value
from .dial import dial
from .recall import Asked, Told, bounds
from .sampled import by_sample
from .shelf import Shelf

BOUNDS = ("proven", "sampled", "estimate")


def check_bound(bound: str, mass: float | None) -> None:
    """ValueError for one that there is not, or that has nothing to bound."""
    if bound not in BOUNDS:
        raise bad_value("recall", "bound", ", ".join(BOUNDS), repr(bound))
    if mass is None and bound != "proven":
        raise bad_value("recall", "bound", "a mass beside it", repr(bound), "pass mass=0.9, say")


def by_mass(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    p: float,
    bound: str,
    reach: int | None,
    inv_freq: Tensor | None,
    released: Sequence[int] = (),
) -> tuple[np.ndarray, Told]:
    """Blocks with which every query and head captures the share p of its softmax; (index rows,
    what is said of them).

    reach: None where queries see blocks at their own positions, and then every figure is exact
    there. A number places each block right before a window of that reach. released: blocks of the
    layer that the recall before this one holds in near pages. ValueError, by a sample alone, when
    the near pages are too few for what it takes.
    """
    if bound != "sampled":
        m = bounds(shelf, layer, asked, reach, inv_freq)
        got = dial(m, p, near=asked.lse.reshape(-1), proven=bound == "proven")
        return got.chosen.numpy().astype(np.int64), Told(got.captured, got.missed)
    tiers = shelf.store.near()
    room = tiers.idle_pages(layer, released)
    most = room - -(-room // 8)  # the others are to look at what is left out, the next time too
    rows, said = by_sample(shelf, layer, asked, p, most, reach, inv_freq)
    if said.at_most > 1 - p:
        expected = f"more than {most} pages to recall, and some to look at others"
        hint = f"with {most} a query may miss {said.at_most:.2g}; give the archive more pages"
        raise bad_value("recall", "pages", expected, f"{room} of {tiers.near_pages}", hint)
    return rows, Told(1 - said.missed, said.at_most, said.sure, said.unlike)
