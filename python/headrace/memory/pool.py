# SPDX-License-Identifier: Apache-2.0
"""The page pool: where the keys and values of all streams live."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import audit
from ..buffers import huge
from ..errors import bad_type, bad_value, unsupported

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)
QUANTISED = DTYPES[3:]


class PagePool:
    """Pages of `page_size` tokens; one page id serves every layer.

    k [L, N, Hkv, D, P] holds keys as columns, v [L, N, Hkv, P, D]; not initialised. Pages of int8
    and float8_e4m3fn have a scale for every slot, k_scale and v_scale fp32 [L, N, Hkv, P], which
    `append` writes; others have None. Free pages are
    handed out lowest id first, so that a run repeats itself. A page is free when nobody holds it.
    filled[page] is how many of its slots were ever written since it was taken: slots from there on
    belong to nobody. written_bytes counts all that steps ever wrote into it, moved the slots that
    were ever copied to pack pages.
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
            raise bad_type(
                "PagePool", "dtype", "float32, bfloat16, float16, int8 or float8_e4m3fn", dtype
            )
        self.page_size = page_size
        self.k_scale: Tensor | None = None
        self.v_scale: Tensor | None = None
        try:
            self.k, self.v = (
                torch.empty(layers, pages, kv_heads, *page, dtype=dtype, device=device)
                for page in ((head_dim, page_size), (page_size, head_dim))
            )
            for x in (self.k, self.v):
                huge(x, part=x[0].nbytes)
            if dtype in QUANTISED:
                self.k_scale, self.v_scale = (
                    torch.empty(layers, pages, kv_heads, page_size, device=device) for _ in "kv"
                )
        except (RuntimeError, MemoryError) as error:
            row = head_dim * dtype.itemsize + 4 * (dtype in QUANTISED)
            got = f"{2 * layers * pages * kv_heads * page_size * row / 2**30:.1f} GiB"
            raise bad_value(
                "PagePool", "pages", "a pool that fits in memory", got, "lower pool_pages"
            ) from error
        self._show_layers()
        tensors = (self.k, self.v, self.k_scale, self.v_scale)
        self.page_bytes = sum(x[:, 0].nbytes for x in tensors if x is not None)
        self.filled = [0] * pages
        self.written_bytes = 0
        self.moved = 0
        self._holders = [0] * pages
        self._free = list(range(pages))
        audit.owns(self.k, self)

    @property
    def pages(self) -> int:
        """All pages, free or not."""
        return len(self.filled)

    @property
    def row_bytes(self) -> int:
        """Bytes of the keys and values of one token in one layer."""
        return self.page_bytes // (self.page_size * self.k.shape[0])

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def live_pages(self) -> int:
        """Pages that somebody holds, a page that several share once."""
        return self.pages - self.free_pages

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that somebody holds."""
        return self.live_pages * self.page_bytes

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def layer(self, index: int) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Keys and values of a layer, and the scales by the names that the ops give them."""
        return self._layers[index]

    def _show_layers(self) -> None:
        """Views of every layer, made once for as long as the tensors stay: every step asks."""
        self._layers = [
            (
                (self.k[i], self.v[i]),
                {
                    "k_scale": None if self.k_scale is None else self.k_scale[i],
                    "v_scale": None if self.v_scale is None else self.v_scale[i],
                },
            )
            for i in range(len(self.k))
        ]

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
        self.k_scale = self.v_scale = None
        self._show_layers()
        self.page_bytes = 0
