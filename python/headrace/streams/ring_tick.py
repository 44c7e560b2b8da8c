# SPDX-License-Identifier: Apache-2.0
"""One model call of a ring: where its keys go, what it reads, and what is alive after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from ..memory import UNLIMITED
from ..memory.view import BEFORE
from .ring_kept import Held, Kept, Row

if TYPE_CHECKING:
    from .ring_cache import Caches


class Tick:
    """One model call: `attend` for the denoiser, then `commit` or `undo`."""

    def __init__(
        self, caches: Caches, rows: Sequence[Row], pages: list[int], new_shot: int | None
    ) -> None:
        self._caches, self._rows, self._taken, self._shot = caches, rows, pages, new_shot
        self._new = {name: list(kept) for name, kept in caches.kept.items()}
        self._dropped: list[int] = []
        self._keys: dict[int, list[Tensor]] = {}
        self._far: dict[tuple[int, ...], dict[int, int]] = {}
        for row in rows:
            if row.cache is not None and row.sees is None:
                self._new.setdefault(row.cache, [Kept()] * caches.layers)
        device, count = caches.offset.device, caches.tokens
        slot = torch.arange(count)
        size = caches.pool.page_size
        where = torch.empty(caches.layers, len(rows), count, 3, dtype=torch.int64)
        for r, row in enumerate(rows):
            for layer, ids in enumerate(row.pages):
                if ids:
                    where[layer, r, :, 0] = torch.tensor(ids)[slot // size]
        where[..., 1] = slot % size
        where[..., 2] = caches.offset.cpu()
        self._where = where.flatten(1, 2).to(device)
        self._q_pos = caches.offset.repeat(len(rows))

    @property
    def caches(self) -> Caches:
        return self._caches

    @property
    def rows(self) -> Sequence[Row]:
        """What runs in this call, each row `caches.tokens` tokens, in this order."""
        return self._rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        """Writes the rows' keys, decides what stays alive, and reads."""
        if self._caches.mixer is not None:
            return self._caches.mixer.attend(self, layer, q, k, v, *gates)
        self.write(layer, k, v)
        return self.read(q, self.seen(layer, k, v))

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The rows' keys and values into their pages."""
        caches = self._caches
        pages, scales = caches.pool.layer(0)
        ops.append(k, v, *pages, self._where[layer], inv_freq=caches.inv_freq, **scales)
        caches.pool.written_bytes += len(k) * caches.pool.row_bytes

    def read(self, q: Tensor, seen: Sequence[list[list[int]]], rows: int = 0) -> Tensor:
        """Attention [T, Hq, D]; seen: for every `rows` queries, a frame's unless said, their rows
        of a view."""
        caches, device = self._caches, q.device
        pages, scales = caches.pool.layer(0)
        counts = [len(entries) for entries in seen]
        entries = [entry for each in seen for entry in each]
        indptr = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        size = rows or caches.tokens
        q_indptr = torch.arange(len(seen) + 1, dtype=torch.int32) * size
        o, _ = ops.paged_attention(
            q,
            *pages,
            torch.tensor(entries, dtype=torch.int64).view(-1, 7).to(device),
            indptr.to(device),
            q_indptr.to(device),
            self._q_pos,
            inv_freq=caches.inv_freq,
            max_rows=size,
            **scales,
        )
        return o

    def leaving(self, row: Row, layer: int) -> tuple[Held, ...]:
        """Frames that a row's cache still holds and that the row, which is not in it, is the first
        not to see; after `seen`."""
        assert row.cache is not None
        plan, kept = self._caches.plan, self._new[row.cache][layer]
        assert plan is not None
        seen = {held.at for held in kept.next(plan)}
        return tuple(held for held in kept.frames if held.at not in seen)

    def seen(self, layer: int, k: Tensor, v: Tensor) -> list[list[list[int]]]:
        """For every row of the call what it sees, as rows of a view, each at its distance in time;
        after `write`, once per layer."""
        caches, plan = self._caches, self._caches.plan
        seen: dict[int, list[Held]] = {}
        for r, row in enumerate(self._rows):
            if row.sees is not None and row.writes:
                mean = k[r * caches.tokens : (r + 1) * caches.tokens].flatten(1).float().mean(0)
                self._keys.setdefault(row.at, []).append(mean)
            if row.cache is None or not row.writes or row.sees is not None:
                continue
            assert plan is not None
            new = Held(row.at, row.pages[layer], self._mean(r, k, v))
            kept, out = self._new[row.cache][layer].then(new, plan, caches.swap)
            self._new[row.cache][layer] = kept
            self._drop(out)
            seen[r] = list(kept.frames)
        if self._shot is not None:
            for by_layer in self._new.values():
                by_layer[layer], out = caches.next_shot(by_layer[layer], self._shot)
                self._drop(out)
        flying: dict[object, list[Held]] = {}
        for row in self._rows:
            if not row.writes:
                flying.setdefault(row.group, []).append(Held(row.at, row.pages[layer]))
        entries: list[list[list[int]]] = []
        for r, row in enumerate(self._rows):
            if row.sees is not None:
                entries.append(self._recalled(row, layer))
                continue
            if r not in seen:
                before: Sequence[Held] = ()
                if row.cache is not None and plan is not None:
                    before = self._new[row.cache][layer].next(plan)
                together = [Held(row.at, row.pages[layer])]
                if row.group is not None:
                    together = sorted(flying[row.group], key=lambda held: held.at)
                seen[r] = [*before, *together]
            entries.append(self._view(row.at, seen[r]))
        return entries

    def _recalled(self, row: Row, layer: int) -> list[list[int]]:
        """Rows of a view: what a rule names, and the frame itself."""
        shelf = self._caches.shelf
        assert shelf is not None
        written = {other.at: other.pages[layer] for other in self._rows if other.writes}
        rows = self._placed(row.pages[layer], 0)
        for number, back in row.sees or ():
            pages = written.get(number) or shelf.pages(number, layer)
            rows += self._placed(pages, -self._caches.span * back)
        return rows

    def _placed(self, pages: Sequence[int], origin: int) -> list[list[int]]:
        """The pages of a frame, seen from `origin` in time."""
        size, tokens = self._caches.pool.page_size, self._caches.tokens
        counts = (min(size, tokens - i * size) for i in range(len(pages)))
        return [
            [page, 0, count, origin, UNLIMITED, BEFORE, UNLIMITED]
            for page, count in zip(pages, counts, strict=True)
        ]

    def _view(self, at: int, frames: Sequence[Held]) -> list[list[int]]:
        caches = self._caches
        order = tuple(sorted(held.at for held in frames))
        if order not in self._far:  # the same in every layer, but for swaps
            self._far[order] = dict(zip(order, caches.distances(order), strict=True))
        back = self._far[order]
        rows = []
        for held in frames:
            rows += self._placed(held.pages, caches.span * (back[at] - back[held.at]))
        return rows

    def _mean(self, r: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._caches.swap is None:
            return None
        tokens = slice(r * self._caches.tokens, (r + 1) * self._caches.tokens)
        mean_k, mean_v = (x[tokens].flatten(1).float().contiguous().mean(0) for x in (k, v))
        return mean_k, mean_v

    def _drop(self, frames: Sequence[Held]) -> None:
        self._dropped += [page for held in frames for page in held.pages]

    def commit(self) -> None:
        """The new caches count; pages of frames that none of them holds are free again."""
        scratch = [p for row in self._rows if not row.writes for ids in row.pages for p in ids]
        self._caches.kept = self._new
        if self._caches.shelf is not None:
            written = {
                row.at: (list(row.pages), torch.stack(self._keys[row.at]))
                for row in self._rows
                if row.writes
            }
            seen = {j for row in self._rows for j, _ in row.sees or ()}
            self._caches.shelf.commit(written, seen)
        if self._caches.mixer is not None:
            self._caches.mixer.commit()
        self._caches.pool.drop(scratch + self._dropped)

    def undo(self) -> None:
        """The old caches count, and the pool holds what it held."""
        self._caches.pool.drop(self._taken)
        if self._caches.shelf is not None:
            self._caches.shelf.undo()
