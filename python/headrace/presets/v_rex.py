# SPDX-License-Identifier: Apache-2.0
"""V-Rex (ReSV): every frame, and every question, recalls the clusters of tokens that it needs.

Kim et al., arXiv 2512.12284; there is no public code, and the system is an accelerator, simulated:
the paper and a note on it were read. Keys, rotated, are hashed to 32 sign bits and clustered as
`headrace.recipes.resv` says; every layer and head takes as few clusters as hold the share 0.3, all
heads together are fetched, and the rest of the stream stays far. Frames are read that way, too.

Chosen here: clusters are scored by a bound that holds for every key (their mean, extent and
variance, `headrace.memory.dial`), so that the share is one of the softmax that full attention would
have over the archive, per head and query; with proven=False by count * exp(score), the estimate,
which takes fewer. What has not left the window, 256 tokens, is always seen; a frame is 16; both are
ours. A cluster is a set of tokens in pages, and pages move whole, where the accelerator stores
clusters side by side.

Oracle: one dense forward that sees what was selected; in it, full attention tells what share of the
softmax that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..memory import Archive, Asked, InMemory, OnDisk, Picked, Shelf, Window, tokens_of, turned
from ..memory.dial import Dialled, Masses, dial, masses
from ..recipes import resv
from ..streams import Absolute, Engine, Stream, wrap
from ..streams.asking import read, seal
from ..streams.engine import Model
from .assembled import anew, dense, logits_of, pages_of, reported, softmax
from .given import counts
from .proof import BOUND, Check, Preset, random_tokens

__all__ = ["Choice", "Selector", "v_rex", "watch"]


class Choice(NamedTuple):
    """For the tokens first..stop-1 a layer chose `tokens` of those at 0..archived-1."""

    first: int
    stop: int
    layer: int
    archived: int
    tokens: np.ndarray


class Selector:
    """Which tokens a frame or a question needs; it remembers the clusters of one stream, which
    begins at position 0 and only goes on. log: every choice.
    """

    def __init__(
        self,
        *,
        share: float = resv.SHARE,
        near: int = resv.NEAR,
        bits: int = resv.BITS,
        proven: bool = True,
        seed: int = 0,
    ) -> None:
        self.share, self.near, self.bits = share, near, bits
        self.proven, self.seed = proven, seed
        self.clusters: dict[tuple[int, int], resv.Clusters] = {}
        self.log: list[Choice] = []
        self._archived: dict[int, int] = {}

    def __call__(self, shelf: Shelf, layer: int, asked: Asked) -> Picked:
        """Pages and tokens of the archive that these queries need in a layer."""
        self._follow(shelf, layer)
        end, heads = shelf.end, shelf.index.rows("mean", layer).shape[0]
        wanted, group = np.zeros(end, bool), asked.q.shape[1] // heads
        steps = torch.arange(asked.at, asked.at + len(asked.q))
        q = turned(asked.q, steps, shelf.store.inv_freq)
        for head in range(heads if end else 0):
            c = self.clusters[layer, head]
            m = _bounds(q[:, head * group : (head + 1) * group], c)
            got: Dialled = dial(m, self.share, proven=self.proven)
            wanted |= torch.isin(c.ids, got.chosen).numpy()
        tokens = np.flatnonzero(wanted)
        self.log.append(Choice(asked.at, asked.at + len(q), layer, end, tokens))
        starts, counts = shelf.index.starts, shelf.index.counts
        some = np.searchsorted(tokens, starts) < np.searchsorted(tokens, starts + counts)
        return Picked(np.flatnonzero(some), tokens)

    def _follow(self, shelf: Shelf, layer: int) -> None:
        """Takes in what has been archived since."""
        known = self._archived.get(layer, 0)
        for row in range(int((shelf.index.starts < known).sum()), len(shelf.index)):
            raw, _ = tokens_of(shelf, row, layer)
            at = torch.arange(raw.shape[1]) + int(shelf.index.starts[row])
            keys = turned(raw.transpose(0, 1), at, shelf.store.inv_freq).transpose(0, 1)
            for head, k in enumerate(keys):
                p = resv.planes(k.shape[-1], bits=self.bits, seed=self.seed + 97 * head)
                c = self.clusters.get((layer, head))
                c = c or resv.Clusters.none(self.bits // 32, k.shape[-1])
                self.clusters[layer, head] = resv.join(c, k, resv.signs(k, p), near=self.near)
        self._archived[layer] = shelf.end


def _bounds(q: Tensor, c: resv.Clusters) -> Masses:
    """Log bounds [W * group, M] for queries [W, group, D] of a kv head, turned as the keys are."""
    apart = (c.mean - c.leader).double().norm(dim=-1)
    spread = torch.zeros(1, len(c.count), c.mean.shape[1])
    spread[0, :, 0] = c.far + apart
    variance = c.squares / c.count - c.mean.double().square().sum(-1)
    spread[0, :, 1] = (variance.clamp_min(0) + 1e-6 * c.squares / c.count).sqrt()
    scale = q.shape[-1] ** -0.5
    return masses(q, c.mean[None], c.low[None], c.high[None], spread, c.count, scale)


def v_rex(
    model: Model,
    *,
    window: int = 256,
    frame: int = 16,
    tier: InMemory | OnDisk | None = None,
    pages: int = 256,
    **options: Any,
) -> Engine:
    """An engine whose streams archive all that leaves the window; feed them with `watch`.

    window: tokens that are always seen. frame: most tokens of a frame. tier: where the archive is,
    by default host memory. pages: the most of the archive that one choice may bring. Options as in
    `headrace.wrap`, whose errors it raises. ValueError or TypeError where one of the numbers is
    none from 1 on.
    """
    counts("v_rex", frame=frame, pages=pages)
    archive = Archive("mean", tier or InMemory(), pages=pages)
    options = {"page_size": pages_of(frame)} | options
    return wrap(model, memory=Window(window) >> archive, positions=Absolute(), **options)


def watch(stream: Stream, frames: Sequence[Tensor], selector: Selector) -> list[Tensor]:
    """Reads frames or questions, int64 [n] each, each with what it needs; logits after them."""
    made = []
    for frame in frames:
        made.append(reported(read(stream, frame, selector, logits=True)))
        seal(stream)
    return made


def oracle(
    model: Any,
    frames: Sequence[Tensor],
    selector: Selector,
    window: int,
    sights: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits fp64 [T, V] of a forward that sees what a selector chose, and the shares of the
    archive's softmax fp64 [N] that the queries and heads of all choices saw; sights: as in
    `headrace.presets.assembled.dense`.
    """
    tokens, number = torch.cat(list(frames)), torch.arange(sum(map(len, frames)))
    inv_freq, shares = model.inv_freq.double(), [torch.zeros(0, dtype=torch.float64)]

    def see(layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, None]:
        seen = Window(window).keeps(number[:, None], number)
        full = logits_of(q, k, None, inv_freq)
        for first, stop, where, archived, chosen in selector.log:
            if where != layer:
                continue
            again = torch.isin(number, torch.from_numpy(chosen))
            if archived:
                far = torch.ones(stop - first, archived, dtype=torch.bool)
                mass = softmax(full[:, first:stop, :archived], far)
                shares.append((mass * again[:archived]).sum(-1).flatten())
            leaving = (number >= archived) & (number <= first - window)
            seen[first:stop] |= again | leaving
        return seen, None

    return dense(model, tokens, see, sights), torch.cat(shares)


def recompute(model: Any, frames: Sequence[Tensor], selector: Selector, window: int) -> Tensor:
    """Logits fp64 [T, V] of the last frame or question alone, with the tokens that any layer chose
    for it, and its window, encoded anew."""
    sights: list[Tensor] = []
    oracle(model, frames, selector, window, sights)
    return anew(model, torch.cat(list(frames)), sights, len(frames[-1]))


def check(model: Model, *, frames: int = 14, size: int = 13) -> list[Check]:
    """A scene that repeats with a few new tokens each time, and then a question."""
    scene, made = random_tokens(model, size), torch.Generator().manual_seed(1)
    parts = []
    for i in range(frames):
        new = torch.rand(size, generator=made) < 0.15
        parts.append(torch.where(new, random_tokens(model, size, seed=2 + i), scene))
    parts.append(random_tokens(model, 5, seed=99))
    checks, taken = [], {}
    for name, proven in (("proven", True), ("estimated", False)):
        selector = Selector(proven=proven)
        with v_rex(model, window=20, frame=size) as engine:
            got = torch.cat(watch(engine.open(), parts, selector))
        want, shares = oracle(model, parts, selector, 20)
        taken[name] = sum(len(c.tokens) for c in selector.log)
        taken["all"] = sum(c.archived for c in selector.log)
        gap = float((got - want).abs().max())
        checks.append(Check(f"{name}: max |logit - oracle|", gap, BOUND))
        if proven:
            short = selector.share - float(shares.min())
            checks.append(Check("share asked for, less the least that a head got", short, 0))
            continue
        few = float((shares < selector.share).double().mean())
        checks.append(Check("estimated: queries of a head that got less, of all", few, 0.05))
    name = "tokens recalled, over all there were: {}"
    for kind, bound in (("proven", 0.95), ("estimated", 0.8)):
        checks.append(Check(name.format(kind), taken[kind] / taken["all"], bound))
    return checks


PRESET = Preset(
    "v_rex", "Kim et al., V-Rex, arXiv 2512.12284", v_rex, check, oracle=oracle,
    recompute=recompute, kind="archive",
)  # fmt: skip
