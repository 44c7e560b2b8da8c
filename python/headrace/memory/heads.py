# SPDX-License-Identifier: Apache-2.0
"""A cache in which every head of every layer keeps tokens of its own, and evicting frees pages.

A page of its pool holds one head of one layer, and the view has a row of entries for each head.
What a head evicts is compacted away, and whole pages go back to the pool: memory falls by what was
evicted, where masking or fake keys (as kvpress does it) leave it as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_type, bad_value
from .pool import PagePool
from .regions import UNLIMITED


class HeadCache:
    """Keys and values of one stream in a `PagePool(layers=1, kv_heads=1)`.

    All keys turn about the position `start`, so that they can move within their head's pages as
    they are. lengths [L][Hkv]: tokens that each head has.
    """

    def __init__(
        self,
        pool: PagePool,
        layers: int,
        kv_heads: int,
        *,
        start: int = 0,
        inv_freq: Tensor | None = None,
    ) -> None:
        if pool.k.shape[0] != 1 or pool.k.shape[2] != 1:
            got = f"{pool.k.shape[0]} layers and {pool.k.shape[2]} heads"
            raise bad_value("HeadCache", "pool", "pages of 1 layer and 1 kv head", got)
        self.pool, self.start, self.inv_freq = pool, start, inv_freq
        self.kv_heads = kv_heads
        self.ends = [start] * layers  # position of the next token
        self.lengths = [[0] * kv_heads for _ in range(layers)]
        self._pages: list[list[list[int]]] = [[[] for _ in range(kv_heads)] for _ in range(layers)]

    @property
    def pages(self) -> int:
        """That it holds."""
        return sum(len(run) for heads in self._pages for run in heads)

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The next tokens, k and v [T, Hkv, D], not rotated. ValueError, and nothing written, when
        too few pages are free.
        """
        size, n = self.pool.page_size, len(k)
        runs, lengths, end = self._pages[layer], self.lengths[layer], self.ends[layer]
        need = [-(-(have + n) // size) - len(run) for have, run in zip(lengths, runs, strict=True)]
        fresh = self.pool.take(sum(need))
        pages_of = fresh.copy()
        grown = [
            run + [pages_of.pop(0) for _ in range(more)]
            for run, more in zip(runs, need, strict=True)
        ]
        where = []
        for run, have in zip(grown, lengths, strict=True):
            slots = range(have, have + n)
            where.append([[run[s // size], s % size, end - self.start + s - have] for s in slots])
        table = torch.tensor(where, dtype=torch.int64).view(self.kv_heads, n, 3)
        rows = table.transpose(0, 1).reshape(-1, 3).to(k.device)
        k, v = (x.reshape(-1, 1, x.shape[-1]).contiguous() for x in (k, v))
        pages, scales = self.pool.layer(0)
        try:
            ops.append(k, v, *pages, rows, inv_freq=self.inv_freq, **scales)
        except BaseException:
            self.pool.drop(fresh)
            raise
        self._pages[layer] = grown
        self.lengths[layer] = [have + n for have in lengths]
        self.ends[layer] = end + n
        self._fill(layer)

    def attend(
        self,
        layer: int,
        q: Tensor,
        *,
        causal: bool = True,
        scale: float | None = None,
        sink_logits: Tensor | None = None,
    ) -> Tensor:
        """o [T, Hq, D] of the newest T tokens' queries, not rotated; each sees what its head has,
        causally among the newest, or without `causal` all of it, whichever of the newest it still
        has. Options as `ops.paged_attention` has them.
        """
        n, end = len(q), self.ends[layer]
        rows, offsets = self.entries(layer, n if causal else 0)
        last = None if causal else torch.full((n,), end, device=q.device)
        pages, scales = self.pool.layer(0)
        o: Tensor
        o, _ = ops.paged_attention(
            q,
            *pages,
            rows.to(q.device),
            offsets.to(q.device),
            torch.tensor([0, n], dtype=torch.int32, device=q.device),
            torch.arange(end - n, end, device=q.device),
            q_order=last,
            inv_freq=self.inv_freq,
            scale=scale,
            sink_logits=sink_logits,
            **scales,
        )
        return o

    def entries(self, layer: int, newest: int) -> tuple[Tensor, Tensor]:
        """A row of the view for each head: int64 [E, 7] and int32 [Hkv+1].

        The newest tokens have their own orders; those before, whichever they are, come earlier.
        """
        size, rows, offsets = self.pool.page_size, [], [0]
        for run, have in zip(self._pages[layer], self.lengths[layer], strict=True):
            first = self.ends[layer] - have  # order of slot 0, were nothing evicted
            if newest > have:
                raise bad_value("attend", "q", f"{have} tokens or fewer", newest)
            for i, page in enumerate(run):
                count = min(size, have - i * size)
                at = first + i * size
                rows.append([page, 0, count, self.start, UNLIMITED, at, UNLIMITED])
            offsets.append(len(rows))
        return (
            torch.tensor(rows, dtype=torch.int64).view(-1, 7),
            torch.tensor(offsets, dtype=torch.int32),
        )

    def keys(self, layer: int) -> Tensor:
        """fp32 [Hkv, N, D] as they lie, turned by their positions if at all; N tokens of each head,
        or of the one with the most, and zeros behind those of the others.
        """
        lengths = self.lengths[layer]
        made = self.pool.v.new_zeros(
            self.kv_heads, max(lengths), self.pool.v.shape[-1], dtype=torch.float32
        )
        for row, run, n in zip(made, self._pages[layer], lengths, strict=True):
            pages = torch.tensor(run, dtype=torch.int64)
            k = _tokens(self.pool.k[0, pages, 0], 0)[:n].float()
            if self.pool.k_scale is not None:
                k *= _tokens(self.pool.k_scale[0, pages, 0], 2)[:n, None]
            row[:n] = k
        return made

    def keep(self, layer: int, index: Tensor, count: Tensor) -> int:
        """Every head keeps its own tokens, the others are evicted; returns the pages that are free
        again.

        index int32 [Hkv, K] of tokens, ascending, the first count int32 [Hkv] of each row: as
        `ops.select` gives them. ValueError, and nothing evicted, for a token that a head does not
        have.
        """
        if index.dtype != torch.int32 or count.dtype != torch.int32:
            raise bad_type("keep", "index", "int32 index and count", index.dtype)
        chosen = self._chosen(layer, index, count)
        size, before = self.pool.page_size, self.pool.free_pages
        tensors = [
            x[0, :, 0]
            for x in (self.pool.k, self.pool.v, self.pool.k_scale, self.pool.v_scale)
            if x is not None
        ]
        for head, slots in enumerate(chosen):
            run = self._pages[layer][head]
            if len(slots) == self.lengths[layer][head]:
                continue
            need = -(-len(slots) // size)
            here = torch.tensor(run[:need], dtype=torch.int64)
            for number, x in enumerate(tensors):
                moved = _tokens(x[torch.tensor(run)], number)[slots]
                room = _tokens(x[here], number)
                room[: len(slots)] = moved
                x[here] = _paged(room, number, size)
            self.pool.drop(run[need:])
            del run[need:]
            self.lengths[layer][head] = len(slots)
        self._fill(layer)
        return self.pool.free_pages - before

    def _chosen(self, layer: int, index: Tensor, count: Tensor) -> list[Tensor]:
        if len(index) != self.kv_heads or count.shape != (self.kv_heads,):
            got = f"{tuple(index.shape)} and {tuple(count.shape)}"
            raise bad_value("keep", "index", f"a row for each of {self.kv_heads} heads", got)
        chosen = []
        for have, row, n in zip(self.lengths[layer], index.cpu(), count.tolist(), strict=True):
            slots = row[:n].long()
            steps = slots.diff()
            if n > len(row) or (n and not (int(slots[0]) >= 0 and int(slots[-1]) < have)):
                raise bad_value("keep", "index", f"tokens 0..{have - 1} of a head", row.tolist())
            if (steps <= 0).any():
                raise bad_value("keep", "index", "ascending tokens", row.tolist())
            chosen.append(slots)
        return chosen

    def _fill(self, layer: int) -> None:
        size = self.pool.page_size
        for run, have in zip(self._pages[layer], self.lengths[layer], strict=True):
            for i, page in enumerate(run):
                self.pool.filled[page] = min(size, have - i * size)

    def close(self) -> None:
        """Gives all pages back. Closing twice is fine."""
        for layer, heads in enumerate(self._pages):
            for run in heads:
                self.pool.drop(run)
                run.clear()
            self.lengths[layer] = [0] * self.kv_heads


def _tokens(pages: Tensor, number: int) -> Tensor:
    """[pages * P, ...] of k [pages, D, P], v [pages, P, D] or scales [pages, P]."""
    return (pages.mT if number == 0 else pages).flatten(0, 1)


def _paged(tokens: Tensor, number: int, size: int) -> Tensor:
    pages = tokens.unflatten(0, (-1, size))
    return pages.mT if number == 0 else pages


def budgets(total: int, layers: Sequence[float]) -> list[int]:
    """Tokens of each layer, in proportion to its weight, `total` of all: the largest remainders
    take what rounding down left, of equal ones the first layers.
    """
    if not layers or min(layers) < 0 or not sum(layers) > 0:
        raise bad_value("budgets", "layers", "weights of 0 or more, not all 0", list(layers))
    exact = [total * w / sum(layers) for w in layers]
    made = [int(x) for x in exact]
    order = sorted(range(len(layers)), key=lambda i: (made[i] - exact[i], i))
    for i in order[: total - sum(made)]:
        made[i] += 1
    return made
