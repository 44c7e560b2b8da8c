# SPDX-License-Identifier: Apache-2.0
"""Facts planted in a long stream of synthetic keys, without a model, for an archive to find again.

A drifting scene, noise, and facts of 8 tokens whose keys share a direction and whose values carry a
code. A question asks along the direction of one fact.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...memory import ArchiveStore, Edit, PagePool, Shelf, Table, view

HQ, HKV, D, PAGE = 4, 2, 64, 64
SINKS, WINDOW, PAGES = 4, 512, 256
SPAN, GAIN = 8, 16.0
TOKEN_BYTES = 2 * HKV * D * 2  # of keys and values in bfloat16
BLOCK, TOP = 196, 64  # of ReKV, as published: a frame of tokens, and how many of them


class Facts:
    """`count` facts among `tokens`: where, the direction of their keys, and their codes; keys and
    values [tokens, HKV, D] of everything once it was read, in bfloat16.
    """

    def __init__(self, tokens: int, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        slots = rng.permutation(tokens // PAGE - 20)[:count] + 4
        self.at = np.sort(slots) * PAGE + rng.integers(0, PAGE - SPAN, count)
        g = torch.Generator().manual_seed(seed)
        way = torch.randn(count, HKV, D, generator=g)
        self.way = way / way.norm(dim=-1, keepdim=True)
        self.strength = torch.linspace(4, 9, count)[torch.randperm(count, generator=g)]
        self.code = torch.randn(count, HKV, D, generator=g) * 4
        self._g, self._scene = g, torch.zeros(HKV, D)
        self.k, self.v = (torch.empty(tokens, HKV, D, dtype=torch.bfloat16) for _ in "kv")

    def read(self, lo: int, hi: int) -> tuple[Tensor, Tensor]:
        """Keys and values [hi-lo, HKV, D] of tokens lo..hi-1, to be asked for in order."""
        n, g = hi - lo, self._g
        k = torch.randn(n, HKV, D, generator=g) * 0.5
        for i in range(0, n, PAGE):
            self._scene = 0.95 * self._scene + 0.08 * torch.randn(HKV, D, generator=g)
            k[i : i + PAGE] += self._scene
        v = torch.randn(n, HKV, D, generator=g)
        for f in np.flatnonzero((self.at >= lo) & (self.at < hi)):
            span = slice(self.at[f] - lo, self.at[f] - lo + SPAN)
            k[span] += self.way[f] * self.strength[f]
            v[span] += self.code[f]
        self.k[lo:hi], self.v[lo:hi] = k, v
        return k, v

    def question(self, f: int) -> Tensor:
        """q [1, HQ, D]."""
        noise = torch.randn(1, HQ, D, generator=torch.Generator().manual_seed(f)) / D**0.5
        way = self.way[f].repeat_interleave(HQ // HKV, 0)[None]
        return GAIN * (way + 0.3 * noise)

    def answer(self, o: Tensor) -> int:
        """Which fact's code [HKV, D] the output [1, HQ, D] is nearest to."""
        mean = o.float().view(HKV, HQ // HKV, D).mean(1)
        return int(torch.einsum("hd,fhd->f", mean, self.code).argmax())

    def logits(self, q: Tensor) -> Tensor:
        """Of all tokens, fp32 [HQ, tokens]."""
        grouped = (q[0] * D**-0.5).view(HKV, HQ // HKV, D)
        parts = [torch.einsum("hgd,thd->hgt", grouped, k.float()) for k in self.k.split(1 << 16)]
        return torch.cat(parts, -1).flatten(0, 1)

    def attend(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Plain attention [1, HQ, D] to some of the tokens."""
        weight = logits[:, rows].softmax(-1).view(HKV, HQ // HKV, -1)
        return torch.einsum("hgt,thd->hgd", weight, self.v[rows].float()).view(1, HQ, D)


class Rekv:
    """ReKV's retrieval as published, in plain torch: everything is kept; a block is BLOCK tokens
    and stands by its mean key, repeated for the query heads that share it; the question's mean
    query is compared with it over all heads at once; the TOP best blocks are moved whole.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts, count = facts, len(facts.k) // BLOCK
        means = facts.k[: count * BLOCK].float().view(count, BLOCK, HKV, D).mean(1)
        self.index = means.repeat_interleave(HQ // HKV, 1).flatten(1)

    def ask(self, q: Tensor, logits: Tensor, top: int, inside: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the tokens of the blocks."""
        score = self.index @ q.mean(0).flatten()
        blocks = score.topk(min(top, len(score))).indices.sort().values
        rows = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
        return self.facts.attend(logits, torch.cat([rows, inside]).unique()), rows


def stream(
    facts: Facts, store: ArchiveStore, shelf: Shelf, table: Table, tokens: int
) -> tuple[Table, int, float]:
    """Reads all tokens; gives the table, the most pages held at any time, and seconds."""
    pool, most, spent = store.pool, 0, 0.0
    for lo in range(0, tokens, 1024):
        k, v = facts.read(lo, min(lo + 1024, tokens))
        begun = time.perf_counter()
        edit = Edit(pool)
        ((grown, where),) = edit.extend([table], [len(k)])
        (pages, scales) = pool.layer(0)
        ops.append(k, v, *pages, torch.tensor(where), **scales)
        table = edit.trim(grown, shelf.stage)
        shelf.commit()
        edit.commit()
        spent += time.perf_counter() - begun
        most = max(most, pool.live_pages)
    return table, most, spent


def attend(pool: PagePool, table: Table, rows: Sequence[list[int]], q: Tensor) -> Any:
    listed = view.entries(table, table.end, rows)
    one = torch.tensor([0, 1], dtype=torch.int32)
    entries = torch.tensor(listed, dtype=torch.int64).view(-1, 7)
    ends = torch.tensor([0, len(entries)], dtype=torch.int32)
    return ops.paged_attention(q, *pool.layer(0)[0], entries, ends, one, torch.tensor([table.end]))
