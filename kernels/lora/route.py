# SPDX-License-Identifier: Apache-2.0
"""Which rows go together, worked out where the rows are: nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16  # rows of x of one tile, rank rows of one block


def route(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in the order of what they use, int32 [T], and tiles of them, int32 [tiles, 2].

    A tile is (first place in the order, number of rows), of rows that use the same; rows that use
    nothing are in none. There are as many tiles as the worst batch of T rows needs, so the shape
    follows T alone; those left over have 0 rows. Nothing waits for the device.
    """
    tokens, width = slots.shape
    key = slots[:, 0].long()
    for w in range(1, width):  # -1 .. 2^31 - 2, a digit each: ties in sums do no harm, see below
        key = key * 1000003 + slots[:, w].long()
    none = (slots < 0).all(1)
    order = torch.argsort(torch.where(none, torch.iinfo(torch.int64).max, key), stable=True)
    ordered = slots[order]
    fresh = torch.ones(tokens, dtype=torch.bool, device=slots.device)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(1)
    place = torch.arange(tokens, device=slots.device)
    head = torch.cummax(torch.where(fresh, place, 0), 0).values  # where each run begins
    leads = ((place - head) % TILE == 0) & ~none[order]
    tile = leads.cumsum(0) - 1
    used = ~none[order]
    tiles = torch.zeros(tokens + 1, 2, dtype=torch.int32, device=slots.device)
    last = torch.where(used, tile, tokens)
    tiles[:, 1].scatter_add_(0, last, torch.ones_like(last, dtype=torch.int32))
    tiles[:, 0].scatter_(0, torch.where(leads, tile, tokens), place.int())
    return order.int(), tiles[:tokens]
