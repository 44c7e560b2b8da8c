# SPDX-License-Identifier: Apache-2.0
"""Survivors: tokens of a stream that stay alive one by one, wherever in the pages they lie.

A survivor keeps its slot, and its key the turn with which it was written. To place it anew among
the others is to choose the origin of its entry, so evicting copies nothing. A page goes back to the
pool when no token in it is alive. Pages that are mostly dead are packed, which copies slots as they
are, only when a stream would hold more than `most_pages` of them; `PagePool.moved` counts that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .choice import TOKEN, Held
from .edit import Edit
from .pool import PagePool
from .regions import UNLIMITED
from .table import Page, Row, Table


def most_pages(tokens: int, page_size: int) -> int:
    """Pages that a stream holds at most for so many tokens alive, once it has evicted."""
    return 2 * -(-tokens // page_size) + 2


@dataclass(frozen=True)
class Kept:
    """Tokens alive of a table, oldest first; never changes.

    tokens: an array of `choice.TOKEN`; those from position `since` on lie in the table's window,
    the others where they say. tags: what their codes mean, and how many of each there ever were.
    upto: position after the last. rows: entries of a view for those before `since`. at, frame: the
    newest time and frame id.
    """

    tokens: np.ndarray
    since: int
    upto: int
    tags: tuple[str | None, ...] = ()
    counts: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
    at: float = np.nan
    frame: float = np.nan

    @staticmethod
    def of(table: Table) -> Kept:
        """Of a table; an empty one has none yet."""
        return table.kept or Kept(np.empty(0, TOKEN), table.start, table.start)

    @property
    def pages(self) -> list[int]:
        """Ids of the pages that the rows name."""
        return list(dict.fromkeys(row[0] for row in self.rows))

    def noted(
        self,
        number: int,
        count: int,
        tag: str | None,
        at: float,
        frame: float,
        scores: np.ndarray | float,
        surprisal: np.ndarray | float,
    ) -> Kept:
        """With the tokens number..number+count-1 that were read, and what is known of them."""
        tags, counts = self.tags, self.counts
        if tag not in tags:
            tags, counts = (*tags, tag), (*counts, 0)
        code = tags.index(tag)
        new = np.zeros(count, TOKEN)
        new["number"] = number + np.arange(count)
        new["nth"] = counts[code] + np.arange(count)
        new["tag"], new["page"] = code, -1
        new["at"], new["frame"], new["score"], new["surprisal"] = at, frame, scores, surprisal
        counts = tuple(n + count * (i == code) for i, n in enumerate(counts))
        tokens = np.concatenate([self.tokens, new])
        return replace(
            self, tokens=tokens, upto=self.upto + count, tags=tags, counts=counts, at=at,
            frame=frame,
        )  # fmt: skip

    def renumbered(self, moved: dict[int, int]) -> Kept:
        """In other pages."""
        tokens = self.tokens.copy()
        tokens["page"] = [moved.get(page, page) for page in tokens["page"].tolist()]
        rows = tuple((moved.get(row[0], row[0]), *row[1:]) for row in self.rows)
        return replace(self, tokens=tokens, rows=rows)


def held(table: Table, pool: PagePool, inv_freq: Tensor) -> Held:
    """The tokens alive of a table, for regions to choose from."""
    kept = Kept.of(table)

    def keys(tokens: np.ndarray) -> Tensor:
        placed = _placed(table)
        mine = np.searchsorted(placed["number"], tokens["number"])
        return _keys(placed[mine], pool, inv_freq)

    return Held(kept.tokens, kept.tags, keys)


def evict(edit: Edit, pool: PagePool, table: Table, stay: np.ndarray, pack: bool) -> Table:
    """The table of the tokens alive that stay, bool [N]; the pages of no survivor are given up.

    pack: survivors move up to the end, so that what is evicted leaves no gap. ValueError when the
    pool has no page to pack into; then undo the edit.
    """
    kept = Kept.of(table)
    tokens = _placed(table)[stay]
    if pack:
        tokens["place"] = np.arange(table.end - len(tokens), table.end)
    tail = table.window[-1:]
    if tail and (table.end - tail[0].start >= pool.page_size or tail[0].id not in tokens["page"]):
        tail = ()
    tokens = _packed(edit, pool, tokens, tail)
    new = replace(
        table,
        window=tail,
        kept=replace(kept, tokens=tokens, since=table.end, rows=_rows(tokens)),
        cell=[],
    )
    held_still = set(new.page_ids)
    edit.retire(page for page in table.page_ids if page not in held_still)
    return new


def _placed(table: Table) -> np.ndarray:
    """All tokens alive, with the slots of those in the window."""
    kept = Kept.of(table)
    tokens = kept.tokens.copy()
    at = len(tokens) - (kept.upto - kept.since)
    for page, stop in table.window_spans():
        first = max(page.start, kept.since)
        if first >= stop:
            continue
        place = np.arange(first, stop)
        mine = tokens[at : at + len(place)]
        mine["page"], mine["place"] = page.id, place
        mine["slot"], mine["turn"] = place - page.start, place - page.origin
        at += len(place)
    return tokens


def _rows(tokens: np.ndarray) -> tuple[Row, ...]:
    """Entries: a run of slots in a row with one origin each. All are before every query."""
    if not len(tokens):
        return ()
    page, slot, place = tokens["page"], tokens["slot"], tokens["place"]
    origin = place - tokens["turn"]
    breaks = (np.diff(page) != 0) | (np.diff(slot) != 1) | (np.diff(origin) != 0)
    bounds = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(tokens)]
    first = bounds[:-1]
    columns = (x[first].tolist() for x in (page, slot, origin, place))
    return tuple(
        (p, s, stop - start, o, UNLIMITED, at, UNLIMITED)
        for p, s, o, at, (start, stop) in zip(*columns, pairwise(bounds), strict=True)
    )


def _packed(edit: Edit, pool: PagePool, tokens: np.ndarray, tail: tuple[Page, ...]) -> np.ndarray:
    """The tokens with those of half-empty pages moved together, if there are too many pages."""
    size = pool.page_size
    pages, which, alive = np.unique(tokens["page"], return_inverse=True, return_counts=True)
    if len(pages) <= most_pages(len(tokens), size):
        return tokens
    sparse = 2 * alive <= size
    if tail:
        sparse &= pages != tail[0].id
    moving = np.flatnonzero(sparse[which])
    fresh = edit.take(-(-len(moving) // size))
    to = np.arange(len(moving))
    page, slot = np.asarray(fresh)[to // size], to % size
    old_page, old_slot = (torch.from_numpy(tokens[name][moving]) for name in ("page", "slot"))
    new_page, new_slot = torch.from_numpy(page), torch.from_numpy(slot)
    # Both indices are tensors with a slice between: they come first, then the layers.
    pool.k[:, new_page, :, :, new_slot] = pool.k[:, old_page, :, :, old_slot]
    pool.v[:, new_page, :, new_slot] = pool.v[:, old_page, :, old_slot]
    for scale in (pool.k_scale, pool.v_scale):
        if scale is not None:
            scale[:, new_page, :, new_slot] = scale[:, old_page, :, old_slot]
    for i, one in enumerate(fresh):
        pool.filled[one] = min(size, len(moving) - i * size)
    pool.moved += len(moving)
    tokens["page"][moving], tokens["slot"][moving] = page, slot
    return tokens


def _keys(tokens: np.ndarray, pool: PagePool, inv_freq: Tensor) -> Tensor:
    """Keys without rotation, fp32 [L, Hkv, N, D]."""
    page, slot, turn = (
        torch.from_numpy(tokens[name].copy()).to(pool.k.device) for name in ("page", "slot", "turn")
    )
    k = pool.k[:, page, :, :, slot].float()  # [N, L, Hkv, D]
    if pool.k_scale is not None:
        k *= pool.k_scale[:, page, :, slot][..., None]
    half = len(inv_freq)
    angle = (turn[:, None] * inv_freq.to(turn.device))[:, None, None].float()
    cos, sin = angle.cos(), angle.sin()
    a, b = k[..., :half].clone(), k[..., half : 2 * half].clone()
    k[..., :half], k[..., half : 2 * half] = a * cos + b * sin, b * cos - a * sin
    return k.permute(1, 2, 0, 3).contiguous()
