# SPDX-License-Identifier: Apache-2.0
"""Pages of a stream that waits, copied out of the pool and back, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .pool import PagePool
from .table import Lease, Page, Table


class Parked:
    """The pages of a table outside the pool, those that nobody else holds; others stay in it.

    pages: how many were copied. nbytes: of the copies.
    """

    def __init__(self, pool: PagePool, lease: Lease) -> None:
        """Copies what `lease` holds alone and releases it."""
        self._pool: PagePool | None = pool
        self.table = table = lease.table
        self._private = [page for page in table.page_ids if pool.holders(page) == 1]
        self._shared = [page for page in table.page_ids if pool.holders(page) > 1]
        self._filled = [pool.filled[page] for page in self._private]
        self._copies = [x[:, self._private] for x in _tensors(pool)]
        pool.hold(self._shared)
        lease.release()

    @property
    def pages(self) -> int:
        return len(self._private)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self._copies)

    def restore(self) -> Lease:
        """A lease on the same table, in pages of its own. ValueError when too few are free."""
        pool = self._pool
        assert pool is not None
        fresh = pool.take(len(self._private))
        for tensor, copy in zip(_tensors(pool), self._copies, strict=True):
            tensor[:, fresh] = copy
        for page, filled in zip(fresh, self._filled, strict=True):
            pool.filled[page] = filled
        moved = dict(zip(self._private, fresh, strict=True))
        lease = Lease(pool, _renumbered(self.table, moved))
        pool.drop(fresh)
        self.release()
        return lease

    def release(self) -> None:
        """Forgets the copies. Releasing twice is fine."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.drop(self._shared)
            self._copies = []

    def __del__(self) -> None:
        self.release()


class Backup:
    """What the slots of a page from `slot` on hold, to be put back."""

    def __init__(self, pool: PagePool, page: int, slot: int) -> None:
        self._pool, self._page, self._slot, self._filled = pool, page, slot, pool.filled[page]
        self._copies = [x.clone() for x in self._slots()]
        pool.filled[page] = slot

    def restore(self) -> None:
        for x, copy in zip(self._slots(), self._copies, strict=True):
            x.copy_(copy)
        self._pool.filled[self._page] = self._filled

    def _slots(self) -> list[Tensor]:
        k, v, *scales = (x[:, self._page] for x in _tensors(self._pool))
        return [
            k[..., self._slot :],
            v[:, :, self._slot :],
            *(x[..., self._slot :] for x in scales),
        ]


def _tensors(pool: PagePool) -> list[Tensor]:
    return [x for x in (pool.k, pool.v, pool.k_scale, pool.v_scale) if isinstance(x, torch.Tensor)]


def _renumbered(table: Table, moved: dict[int, int]) -> Table:
    def run(pages: tuple[Page, ...]) -> tuple[Page, ...]:
        return tuple(page._replace(id=moved.get(page.id, page.id)) for page in pages)

    kept = None if table.kept is None else table.kept.renumbered(moved)
    return replace(table, pinned=run(table.pinned), window=run(table.window), kept=kept, cell=[])
