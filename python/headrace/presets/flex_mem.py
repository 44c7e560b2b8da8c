# SPDX-License-Identifier: Apache-2.0
"""FlexMem: each clip writes a little of itself to a bank, and a question recalls clips of it.

Chen et al., arXiv 2603.29252; a note on it was read, not its code. Clips of 8 frames. Two paths
compress a clip (`headrace.recipes.flex_mem`): what its tokens receive with the context in sight
says which of them the next clips see; what they receive within the clip says which go to the bank.
A question takes the clips that it attends to most.

Chosen here: both paths keep an eighth, each kv head its own tokens, which are written side by side
into a page, so that only they are held; a clip's context is seen by the next 4; 8 clips are
recalled, at the positions where they stood; the bank holds 512 clips, then the oldest goes.

Oracle: one dense forward with a mask for each head, in which both paths and the recall are brute
force over all keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value, unsupported
from ..memory import Archive, Asked, InMemory, Shelf, Window, stored, turned
from ..memory.pool import QUANTISED
from ..recipes import flex_mem as rule
from ..streams import Absolute, Engine, Stream, wrap
from ..streams.asking import let_go, read
from ..streams.engine import Model
from .assembled import anew, dense, logits_of, pages_of, reported, softmax
from .given import counts, shares
from .proof import BOUND, Check, Preset, random_tokens

__all__ = ["Video", "flex_mem"]

SHARE, AHEAD, TOP, CLIPS = 0.125, 4, 8, 512


def flex_mem(
    model: Model,
    *,
    clip: int = 8 * 196,
    share: float = SHARE,
    ahead: int = AHEAD,
    top: int = TOP,
    clips: int = CLIPS,
    **options: Any,
) -> Engine:
    """An engine for `Video`.

    clip: most tokens of a clip. share: of them, what each path keeps, for which a page has room.
    ahead: clips that see what a clip left. top: clips that a question recalls. clips: those that
    the bank holds. Give `Video` the same. Options as in `headrace.wrap`, whose errors it raises.
    ValueError or TypeError where one of the five is out of range, NotImplementedError from `Video`
    where pages are not of floats.
    """
    counts("flex_mem", clip=clip, ahead=ahead, top=top, clips=clips)
    shares("flex_mem", share=share)
    size = pages_of(max(1, int(share * clip)))
    archive = Archive("mean", InMemory(clips + ahead + 1), pages=top + ahead + 1)
    options = {"page_size": size} | options
    return wrap(model, memory=Window(clip) >> archive, positions=Absolute(), **options)


class Video:
    """A stream of clips and what is left of them; it only goes on."""

    def __init__(
        self, stream: Stream, *, share: float = SHARE, ahead: int = AHEAD, clips: int = CLIPS
    ) -> None:
        pool = stream.engine.pool
        if pool.k.dtype in QUANTISED:
            raise unsupported("flex_mem", "dtype", "pages of floats", pool.k.dtype)
        self.stream, self.share = stream, share
        self.context: deque[int] = deque(maxlen=ahead)  # blocks
        self.bank: deque[int] = deque(maxlen=clips)

    @property
    def shelf(self) -> Shelf:
        """Where both are."""
        assert self.stream._shelf is not None
        return self.stream._shelf

    def watch(self, clip: Tensor) -> Tensor:
        """Reads a clip, int64 [n], and writes what both paths keep of it; logits [n, V]."""
        pool, most = self.stream.engine.pool, self.stream.engine.plan.reach
        most = min(most, int((pool.page_size + 1) / self.share) - 1)
        if not 1 <= len(clip) <= most:
            raise bad_value("flex_mem", "clip", f"1 to {most} tokens", len(clip))
        heard: dict[int, Asked] = {}

        def context(shelf: Shelf, layer: int, asked: Asked) -> np.ndarray:
            heard[layer] = asked
            return self._rows(self.context)

        stream, first = self.stream, self.stream.position
        mark = stream.mark()
        try:
            logits = reported(read(stream, clip, context, logits=True))
            stream.forget()
            paths = self._compressed(heard, first, len(clip))
        except BaseException:
            stream.rollback(mark)
            raise
        finally:
            mark.release()
        let_go(stream)
        for kept, block in zip((self.context, self.bank), paths, strict=True):
            if len(kept) == kept.maxlen:
                self.shelf.drop([kept[0]])
            kept.append(self.shelf.add(*block))
        return logits

    def ask(self, question: Tensor, *, top: int = TOP) -> tuple[Stream, Tensor]:
        """A stream beside the video's that has read the question, and its logits [T, V]."""

        def choose(shelf: Shelf, layer: int, asked: Asked) -> np.ndarray:
            rows = self._rows(self.bank)
            if not len(rows):
                return rows
            parts = [self._keys(int(row), layer) for row in rows]
            owner = torch.cat([torch.full((k.shape[1],), i) for i, k in enumerate(parts)])
            at = torch.arange(asked.at, asked.at + len(asked.q))
            q = turned(asked.q, at, shelf.store.inv_freq).transpose(0, 1)[None].contiguous()
            scores = rule.clips(q, torch.cat(parts, 1)[None].contiguous(), owner, len(rows))
            found, count = rule.recall(scores, top)
            return rows[found[0, 0, : int(count)].numpy()]

        side = self.stream.fork()
        try:
            return side, reported(read(side, question, choose, logits=True))
        except BaseException:
            side.close()
            raise

    def _rows(self, blocks: Sequence[int]) -> np.ndarray:
        return np.flatnonzero(np.isin(self.shelf.index.blocks, list(blocks)))

    def _keys(self, row: int, layer: int) -> Tensor:
        """fp32 [Hkv, n, D]: keys of a block, turned by their positions."""
        k, _ = stored(self.shelf, row, layer)
        return _moved(k, int(self.shelf.index.origins[row]), self.shelf.store.inv_freq)

    def _compressed(
        self, heard: dict[int, Asked], first: int, n: int
    ) -> list[tuple[Tensor, int, int, int, Tensor]]:
        """What `Shelf.add` takes for the context path and for the local one."""
        store, pool = self.shelf.store, self.stream.engine.pool
        spans = [(p, stop) for p, stop in self.stream.table.window_spans() if stop > first]
        origin, layout = spans[0][0].origin, store.tiers.layout
        blocks = [layout.empty().zero_() for _ in range(2)]
        fields = [torch.zeros(1, *pool.k.shape[:1], *pool.k.shape[2:4]) for _ in range(2)]
        many, rows = max(1, int(self.share * n)), self._rows(self.context)
        for layer, asked in heard.items():
            k = torch.cat(
                [
                    _moved(pool.k[layer, p.id, ..., : stop - p.start].mT, p.origin, store.inv_freq)
                    for p, stop in spans
                ],
                1,
            )
            v = torch.cat([pool.v[layer, p.id, :, : stop - p.start] for p, stop in spans], 1)
            before = [self._keys(int(row), layer) for row in rows]
            at = torch.arange(first, first + n)
            q = turned(asked.q, at, store.inv_freq).transpose(0, 1)[None].contiguous()
            for path, past in enumerate((before, [])):
                keys = torch.cat([*past, k], 1)[None].contiguous()
                kept, _ = rule.keep(rule.received(q, keys)[..., -n:], share=self.share)
                chosen = kept[0].long()[..., None].expand(-1, -1, k.shape[2])
                mine, pieces = k.gather(1, chosen), layout.split(blocks[path])
                pieces["k"][layer, ..., :many] = _moved(mine, -origin, store.inv_freq).mT
                pieces["v"][layer, :, :many] = v.gather(1, chosen)
                fields[path][0, layer] = mine.mean(1)
        return [(b, first, origin, many, f) for b, f in zip(blocks, fields, strict=True)]


def _moved(k: Tensor, steps: int, inv_freq: Tensor | None) -> Tensor:
    """Keys [Hkv, n, D] turned by so many positions more."""
    x = k.float().transpose(0, 1)
    return turned(x, torch.full((len(x),), steps), inv_freq).transpose(0, 1)


def oracle(
    model: Any,
    clips: Sequence[Tensor],
    question: Tensor,
    *,
    share: float = 0.125,
    ahead: int = 4,
    top: int = 8,
    sights: list[Tensor] | None = None,
) -> Tensor:
    """Logits fp64 [T, V] of all clips and then the question; sights: as in
    `headrace.presets.assembled.dense`."""
    tokens = torch.cat([*clips, question])
    number, n = torch.arange(len(tokens)), len(tokens) - len(question)
    inv_freq = model.inv_freq.double()
    ends = torch.tensor([len(c) for c in clips]).cumsum(0).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))

    def see(layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, None]:
        heads, group = q.shape[1], q.shape[1] // k.shape[1]
        logits = logits_of(q, k, None, inv_freq)
        seen = torch.zeros(heads, len(tokens), len(tokens), dtype=torch.bool)
        context: list[Tensor] = []
        bank = torch.zeros(heads, len(tokens), dtype=torch.bool)

        def best(rows: slice, shown: Tensor) -> Tensor:
            """bool [heads, T]: the clip's tokens that get most, the same for a kv head's heads."""
            mass = softmax(logits[:, rows], shown).mean(1).unflatten(0, (-1, group)).mean(1)
            chosen = torch.zeros_like(mass, dtype=torch.bool)
            own = mass[:, rows]
            many = max(1, int(share * own.shape[1]))
            for h, row in enumerate(own.tolist()):
                order = sorted(range(len(row)), key=lambda j: (-row[j], j))
                chosen[h, [rows.start + j for j in order[:many]]] = True
            return chosen.repeat_interleave(group, 0)

        for first, stop in spans:
            rows = slice(first, stop)
            own = (number >= first) & (number <= number[rows, None])
            shown = own.expand(heads, -1, -1)
            for passed in context[-ahead:]:
                shown = shown | passed[:, None]
            seen[:, rows] = shown
            context.append(best(rows, shown))
            bank |= best(rows, own.expand(heads, -1, -1))
        asked = slice(n, None)
        mass = softmax(logits[:, asked], bank[:, None].expand(-1, len(question), -1)).mean((0, 1))
        worth = [float(mass[first:stop].sum()) for first, stop in spans]
        for i in sorted(range(len(spans)), key=lambda i: (-worth[i], i))[:top]:
            seen[:, asked, slice(*spans[i])] = bank[:, None, slice(*spans[i])]
        seen[:, asked] |= (number >= n) & (number <= number[asked, None])
        return seen, None

    return dense(model, tokens, see, sights)


def recompute(model: Any, clips: Sequence[Tensor], question: Tensor, **options: Any) -> Tensor:
    """Logits fp64 [T, V] of the question, with the tokens that any head recalls encoded anew."""
    sights: list[Tensor] = []
    oracle(model, clips, question, sights=sights, **options)
    return anew(model, torch.cat([*clips, question]), sights, len(question))


def check(model: Model, *, clips: int = 12, size: int = 41, frames: int = 1024) -> list[Check]:
    """Clips and a question against brute force; then many frames, and what they take."""
    parts = [random_tokens(model, size, seed=i) for i in range(clips)]
    question = random_tokens(model, 7, seed=99)
    with flex_mem(model, clip=size, top=3) as engine:
        video = Video(engine.open(position=1024 - 5 * size - 9))  # a clip lies across two origins
        got = [video.watch(part) for part in parts]
        side, logits = video.ask(question, top=3)
        side.close()
    want = oracle(model, parts, question, top=3)
    gap = (torch.cat([*got, logits]) - want).abs().amax(-1)
    checks = [
        Check("clips: max |logit - oracle|", float(gap[:-7].max()), BOUND),
        Check("question: max |logit - oracle|", float(gap[-7:].max()), BOUND),
    ]
    each, held, bank = [], [], frames // 10
    with flex_mem(model, clip=32, clips=bank) as engine:
        video = Video(engine.open(), clips=bank)
        for part in random_tokens(model, frames * 4).split(32):
            video.watch(part)
            each.append(engine.pool.live_pages)
            held.append(len(video.shelf.index))
        written = int(video.shelf.index.counts.max()) / len(part)
        side, logits = video.ask(question)
        side.close()
        near = engine.archive.near().near_pages  # type: ignore[union-attr]
    return [
        *checks,
        Check(f"{frames} frames: pages in the pool beside the near ones", max(each) - near, 0),
        Check(f"{frames} frames: blocks in the bank and the context", max(held), bank + AHEAD),
        Check("tokens that a path wrote of a clip, over its tokens", written, SHARE),
        Check("1 if an answer is not finite", float(not logits.isfinite().all()), 0),
    ]


PRESET = Preset(
    "flex_mem", "Chen et al., arXiv 2603.29252", flex_mem, check, oracle=oracle,
    recompute=recompute, kind="archive",
)  # fmt: skip
