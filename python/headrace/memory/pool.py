# SPDX-License-Identifier: Apache-2.0
"""The page pool: where the keys and values of all streams live."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import torch

from ..errors import bad_type, bad_value, unsupported

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class PagePool:
    """Pages of `page_size` tokens; one page id serves every layer.

    k [L, N, Hkv, D, P] holds keys as columns, v [L, N, Hkv, P, D]; not initialised. Free pages are
    handed out lowest id first, so that a run repeats itself. A page is free when nobody holds it.
    filled[page] is how many of its slots were ever written since it was taken: slots from there on
    belong to nobody.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        kv_heads: int,
        head_dim: int,
        page_size: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("layers", layers), ("pages", pages), ("kv_heads", kv_heads)):
            if value < 1:
                raise bad_value("PagePool", name, "1 or more", value)
        if page_size < 16 or page_size % 16:
            raise unsupported("PagePool", "page_size", "page sizes that 16 divides", page_size)
        if head_dim < 16 or head_dim % 16 or head_dim > 256:
            raise unsupported("PagePool", "head_dim", "multiples of 16 from 16 to 256", head_dim)
        if dtype not in DTYPES:
            raise bad_type("PagePool", "dtype", "float32, bfloat16 or float16", dtype)
        self.page_size = page_size
        try:
            self.k = torch.empty(
                layers, pages, kv_heads, head_dim, page_size, dtype=dtype, device=device
            )
            self.v = torch.empty(
                layers, pages, kv_heads, page_size, head_dim, dtype=dtype, device=device
            )
        except (RuntimeError, MemoryError) as error:
            values = 2 * layers * pages * kv_heads * head_dim * page_size
            got = f"{values * dtype.itemsize / 2**30:.1f} GiB"
            raise bad_value(
                "PagePool", "pages", "a pool that fits in memory", got, "lower pool_pages"
            ) from error
        self.page_bytes = 2 * self.k[:, 0].numel() * self.k.element_size()
        self.filled = [0] * pages
        self._holders = [0] * pages
        self._free = list(range(pages))

    @property
    def pages(self) -> int:
        """All pages, free or not."""
        return len(self.filled)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def live_pages(self) -> int:
        return self.pages - self.free_pages

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that somebody holds."""
        return self.live_pages * self.page_bytes

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def take(self, count: int) -> list[int]:
        """Hands out `count` pages, each with one holder.

        ValueError, and no page, when too few are free.
        """
        if count > len(self._free):
            raise bad_value(
                "step",
                "pool_pages",
                f"{count} free pages",
                f"{len(self._free)} of {self.pages}",
                "raise pool_pages, or close streams and release marks",
            )
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            self._holders[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One holder less for each page; free at the last."""
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self.filled[page] = 0
                heapq.heappush(self._free, page)

    def close(self) -> None:
        """Gives the memory back; the pages and what holds them are void."""
        self.k, self.v = self.k.new_empty(0), self.v.new_empty(0)
        self.page_bytes = 0
