# SPDX-License-Identifier: Apache-2.0
"""LiveVLM: what the video looks at stays as long-term memory, and a question takes pages of it.

Ning et al., LiveVLM, arXiv 2505.15269v2; a note on it was read, its code was not to be had. Clips
are read before any question comes. What the newest vision tokens attend to stays, half of it freely
and half spread over the video (`headrace.recipes.live_vlm`), 12,000 tokens; a question takes 0.4 of
the pages of 16 by their mean keys before rotation, which then stand where they stood, and sees the
recent tokens too.

Chosen here: pages are compressed as wholes, by the attention to all their tokens and heads, and
each layer has its own; what no layer keeps is let go of. Attention is reckoned among the pages that
compete. Clips see the whole long-term memory. Recent are 4,096 tokens, and the newest 16 tokens of
a clip say what is looked at.

Oracle: one dense forward in which every clip sees the pages that brute force keeps, and the
question those that brute force retrieves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..memory import Archive, Asked, InMemory, Shelf, Window, tokens_of, turned
from ..recipes import live_vlm as rule
from ..streams import Absolute, Engine, Stream, wrap
from ..streams.asking import read
from ..streams.engine import Model
from .assembled import anew, dense, logits_of, reported
from .given import counts
from .proof import BOUND, Check, Preset, random_tokens

__all__ = ["Video", "live_vlm"]

PAGE, BUDGET, RECENT, SHARE = 16, 12_000, 4096, 0.4


def live_vlm(
    model: Model,
    *,
    recent: int = RECENT,
    budget: int = BUDGET,
    tier: InMemory | None = None,
    **options: Any,
) -> Engine:
    """An engine for `Video`.

    recent: tokens of short-term memory. budget: of long-term memory; give `Video` the same. tier:
    where that lies, host memory. Options as in `headrace.wrap`, whose errors it raises. ValueError
    or TypeError where recent or budget has no room for a page of 16.
    """
    counts("live_vlm", least=PAGE, recent=recent, budget=budget)
    pages = budget // PAGE + recent // PAGE + 2  # and what waits to be compressed
    memory = Window(recent) >> Archive("mean", tier or InMemory(), pages=pages)
    return wrap(model, memory=memory, positions=Absolute(), page_size=PAGE, **options)


class Video:
    """A stream of clips with its long-term memory, which only goes on.

    last: how many of a clip's newest queries say what is looked at. kept: the blocks of each layer.
    log: of each clip and question its first and last position + 1 and where the archive ended.
    """

    def __init__(self, stream: Stream, *, budget: int = BUDGET, last: int = 16) -> None:
        self.stream, self.budget, self.last = stream, budget // PAGE, last
        layers = stream.engine.pool.k.shape[0]
        self.kept: list[set[int]] = [set() for _ in range(layers)]
        self.log: list[tuple[int, int, int]] = []
        self._known: set[int] = set()
        self._asked: dict[int, Asked] = {}

    @property
    def shelf(self) -> Shelf:
        """What is archived."""
        assert self.stream._shelf is not None
        return self.stream._shelf

    def watch(self, clip: Tensor) -> Tensor:
        """Reads a clip, int64 [n]; logits [n, V]. Then the memory is within its budget again."""

        def everything(shelf: Shelf, layer: int, asked: Asked) -> np.ndarray:
            self._asked[layer] = asked
            return self._rows(layer)

        span = self._span(clip)
        logits = reported(read(self.stream, clip, everything, logits=True))
        self.log.append(span)
        self.stream.forget()
        self._compress()
        return logits

    def ask(self, question: Tensor, *, share: float = SHARE) -> tuple[Stream, Tensor]:
        """A stream beside the video's that has read the question, and its logits [T, V]."""

        def some(shelf: Shelf, layer: int, asked: Asked) -> np.ndarray:
            rows = self._rows(layer)
            if not len(rows):
                return rows
            mean = shelf.index.rows("mean", layer)[:, torch.from_numpy(rows)]
            q = asked.q.transpose(0, 1)[None].contiguous()
            found, count = rule.recall(q, mean[None].contiguous(), share=share)
            return rows[found[0, 0, : int(count)].numpy()]

        side = self.stream.fork()
        try:
            logits = reported(read(side, question, some, logits=True))
        except BaseException:
            side.close()
            raise
        self.log.append(self._span(question))
        return side, logits

    def _span(self, tokens: Tensor) -> tuple[int, int, int]:
        at, window = self.stream.position, self.stream.table.window
        return at, at + len(tokens), window[0].start if window else at

    def _rows(self, layer: int) -> np.ndarray:
        """Of the index, what a layer keeps."""
        blocks = self.shelf.index.blocks
        return np.flatnonzero(np.isin(blocks, list(self.kept[layer])))

    def _compress(self) -> None:
        blocks = set(self.shelf.index.blocks.tolist())
        for layer, kept in enumerate(self.kept):
            kept |= blocks - self._known
            if len(kept) > self.budget:
                rows = self._rows(layer)
                scores = self._looked_at(layer, rows)
                found, count = rule.keep(scores[None, None], self.budget)
                chosen = self.shelf.index.blocks[rows[found[0, 0, : int(count)].numpy()]]
                self.kept[layer] = set(chosen.tolist())
        gone = blocks.difference(*self.kept)
        self.shelf.drop(sorted(gone))
        self._known = blocks - gone

    def _looked_at(self, layer: int, rows: np.ndarray) -> Tensor:
        """fp32 [pages]: attention of the newest queries to all tokens and heads of each page."""
        asked, inv_freq = self._asked[layer], self.shelf.store.inv_freq
        q = asked.q[-self.last :]
        first = asked.at + len(asked.q) - len(q)
        q = turned(q, torch.arange(first, first + len(q)), inv_freq)
        keys, owner = [], []
        for page, row in enumerate(rows):
            k, _ = tokens_of(self.shelf, int(row), layer)
            at = torch.arange(k.shape[1]) + int(self.shelf.index.starts[row])
            keys.append(turned(k.transpose(0, 1), at, inv_freq))
            owner += [page] * len(at)
        joined = torch.cat(keys).transpose(0, 1)[None].contiguous()
        mass = rule.score(q.transpose(0, 1)[None].contiguous(), joined, past=True)[0].sum(0)
        return torch.zeros(len(rows)).index_add(0, torch.tensor(owner), mass)


def oracle(
    model: Any,
    parts: Sequence[Tensor],
    log: Sequence[tuple[int, int, int]],
    *,
    recent: int,
    budget: int,
    share: float = 0.4,
    last: int = 16,
    held: list[set[int]] | None = None,
    sights: list[Tensor] | None = None,
) -> Tensor:
    """Logits fp64 [T, V] of clips and then a question, by brute force over all keys; log as that of
    `Video`; held: the pages that each layer keeps in the end are added to it; sights: as in
    `headrace.presets.assembled.dense`.
    """
    tokens, number = torch.cat(list(parts)), torch.arange(sum(map(len, parts)))
    page, inv_freq = number // PAGE, model.inv_freq.double()

    def see(layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, None]:
        seen = Window(recent).keeps(number[:, None], number)
        kept: set[int] = set()
        known = 0
        logits = logits_of(q, k, None, inv_freq)
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1).flatten(1)
        ends = [archived for *_, archived in log[1:]] + [log[-1][2]]
        for i, ((first, stop, archived), after) in enumerate(zip(log, ends, strict=True)):
            shown = set(kept)
            if i == len(log) - 1:
                wanted = q[first:stop].mean(0).flatten()
                likes = {j: float(wanted @ keys[page == j].mean(0)) for j in kept}
                many = int(share * len(kept) + 0.5)
                shown = set(sorted(kept, key=lambda j: (-likes[j], j))[:many])
            own = torch.isin(page, torch.tensor(sorted(shown), dtype=torch.int64))
            leaving = (number >= archived) & (number <= first - recent)
            seen[first:stop] |= own | leaving
            kept |= set(range(known, after // PAGE))
            known = after // PAGE
            if len(kept) > budget // PAGE:
                there = torch.isin(page, torch.tensor(sorted(kept)))
                mass = logits[:, max(first, stop - last) : stop, there].softmax(-1).mean(1).sum(0)
                worth = {j: float(mass[page[there] == j].sum()) for j in sorted(kept)}
                kept = _bucketed(worth, budget // PAGE)
        if held is not None:
            held.append(kept)
        return seen, None

    return dense(model, tokens, see, sights)


def recompute(
    model: Any, parts: Sequence[Tensor], log: Sequence[tuple[int, int, int]], **options: Any
) -> Tensor:
    """Logits fp64 [T, V] of the question alone, with the pages that any layer found, and the recent
    tokens, encoded anew; arguments as `oracle`."""
    sights: list[Tensor] = []
    oracle(model, parts, log, sights=sights, **options)
    return anew(model, torch.cat(list(parts)), sights, len(parts[-1]))


def _bucketed(worth: dict[int, float], budget: int) -> set[int]:
    """Half of the budget by worth alone, the rest only into stretches that have none yet."""
    pages = sorted(worth)
    stretch = {p: ((i + 1) * budget - 1) // len(pages) for i, p in enumerate(pages)}
    order = sorted(pages, key=lambda p: (-worth[p], p))
    kept = set(order[: budget // 2])
    for p in order[budget // 2 :]:
        if len(kept) < budget and stretch[p] not in {stretch[x] for x in kept}:
            kept.add(p)
    return kept


def check(model: Model, *, clips: int = 20, size: int = 24) -> list[Check]:
    """Clips and a question at the end against brute force; how much is held all the while."""
    recent, budget, most = 40, 96, 0
    parts = [random_tokens(model, size, seed=i) for i in range(clips)]
    parts.append(random_tokens(model, 7, seed=99))
    with live_vlm(model, recent=recent, budget=budget) as engine:
        video = Video(engine.open(), budget=budget)
        got = []
        for part in parts[:-1]:
            got.append(video.watch(part))
            most = max(most, len(video.shelf.index))
        index = video.shelf.index
        side, logits = video.ask(parts[-1])
        sides = side._recalled
        assert sides is not None
        retrieved = sum(len(blocks) for blocks in sides.blocks)
        side.close()
        row = dict(zip(index.blocks.tolist(), (index.starts // PAGE).tolist(), strict=True))
        kept = [{row[b] for b in blocks} for blocks in video.kept]
        log, layers = video.log, len(kept)
    held: list[set[int]] = []
    want = oracle(model, parts, log, recent=recent, budget=budget, held=held)
    gaps = (torch.cat([*got, logits]) - want).abs().amax(-1)
    wrong = sum(a != b for a, b in zip(kept, held, strict=True))
    many = layers * budget // PAGE
    return [
        Check("clips: max |logit - oracle|", float(gaps[:-7].max()), BOUND),
        Check("question: max |logit - oracle|", float(gaps[-7:].max()), BOUND),
        Check("layers that keep other pages than brute force", wrong, 0),
        Check("pages in long-term memory, over layers times budget", most, many),
        Check("pages retrieved, over all that are kept", retrieved / many, 0.5),
        Check("1 if all layers keep the same", float(len({frozenset(p) for p in kept}) == 1), 0),
    ]


PRESET = Preset(
    "live_vlm", "Ning et al., LiveVLM, arXiv 2505.15269", live_vlm, check, oracle=oracle,
    recompute=recompute, kind="archive",
)  # fmt: skip
