# SPDX-License-Identifier: Apache-2.0
"""One layer's attention over the pages of an engine whose keys come, and stay, turned.

Keys lie in the pages as the model turned them, by their positions: all have the origin 0, so that
the query is all that has to be turned, once back by its own position and once, by the kernel, to
the distance at which it is to see a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...memory import UNLIMITED, Plan
from ...memory.summary import unturned
from ...memory.view import REACH


@dataclass(frozen=True)
class Step:
    """What all layers read in a step: entries and offsets as `ops.paged_attention` takes them.

    slots int64 [T]: where each new token goes, page * page_size + slot. inv_freq fp64 [R] of the
    model, or None where keys are not turned. max_rows: new tokens of any request.
    """

    entries: Tensor
    entry_indptr: Tensor
    q_indptr: Tensor
    q_pos: Tensor
    slots: Tensor
    inv_freq: Tensor | None
    max_rows: int

    @property
    def tokens(self) -> int:
        return len(self.q_pos)


def planned(
    plan: Plan,
    block_table: np.ndarray,
    lengths: np.ndarray,
    queries: np.ndarray,
    slots: Tensor,
    page_size: int,
    inv_freq: Tensor | None,
) -> Step:
    """The step of a batch, on the device of `slots`.

    block_table [B, blocks]: pages of each request in the order of its tokens. lengths [B]: its
    tokens, new ones included. queries [B]: how many are new.
    """
    rows: list[tuple[int, ...]] = []
    ends, starts = [0], [0]
    positions = []
    for pages, length, new in zip(block_table, lengths.tolist(), queries.tolist(), strict=True):
        oldest = length - new
        if new:
            pinned = min(plan.pinned, length)
            first = max(pinned, oldest - plan.reach + 1)
            rows += _rows(pages, 0, pinned, page_size, plan.cap, UNLIMITED)
            rows += _rows(pages, first, length, page_size, UNLIMITED, plan.reach)
        positions.append(np.arange(oldest, length))
        ends.append(len(rows))
        starts.append(starts[-1] + new)
    device = slots.device
    entries = np.array(rows, np.int64).reshape(-1, 7)
    where = np.concatenate(positions) if positions else np.empty(0, np.int64)
    return Step(
        torch.from_numpy(entries).to(device),
        torch.tensor(ends, dtype=torch.int32, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.from_numpy(where).to(device),
        slots[: starts[-1]],
        None if inv_freq is None else inv_freq.to(device),
        int(queries.max(initial=0)),
    )


def _rows(
    pages: np.ndarray, first: int, stop: int, page_size: int, cap: int, reach: int
) -> list[tuple[int, ...]]:
    """Entries of the tokens first..stop-1: page, first slot, count, origin, cap, order, reach."""
    rows: list[tuple[int, ...]] = []
    for at in range(first - first % page_size, stop, page_size):
        lo, hi = max(first, at), min(stop, at + page_size)
        rows.append((int(pages[at // page_size]), lo - at, hi - lo, 0, cap, lo, reach))
    return rows


def attend(
    step: Step,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    sink_logits: Tensor | None = None,
    sliding: int | None = None,
) -> Tensor:
    """Writes k and v [T, Hkv, D] to the cache and gives what q [T, Hq, D] reads of it.

    q and k are turned by their positions. cache [blocks, Hkv, page_size, 2 * D], each head of a
    block in one piece of memory, which is keys [D, page_size] and values [page_size, D] here. With
    k None what is there is read. sliding: a layer's own window.
    """
    blocks, heads, size, both = cache.shape
    dim = both // 2
    pieces = cache.view(blocks, heads, 2, size * dim)
    k_pages, v_pages = pieces.unbind(2)
    pages = k_pages.view(blocks, heads, dim, size), v_pages.view(blocks, heads, size, dim)
    if k is not None and v is not None:
        where = torch.stack(
            [step.slots // size, step.slots % size, torch.zeros_like(step.slots)], 1
        )
        ops.append(k, v, *pages, where)
    entries = step.entries
    if sliding is not None:
        entries = entries.clone()
        entries[:, REACH].clamp_(max=sliding)
    if step.inv_freq is not None:
        angle = step.q_pos[:, None] * step.inv_freq
        q = unturned(q.transpose(0, 1), angle).transpose(0, 1).contiguous()
    return ops.paged_attention(
        q,
        *pages,
        entries,
        step.entry_indptr,
        step.q_indptr,
        step.q_pos,
        inv_freq=step.inv_freq,
        scale=scale,
        softcap=softcap,
        sink_logits=sink_logits,
        max_rows=step.max_rows,
    )[0]
