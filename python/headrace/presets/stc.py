# SPDX-License-Identifier: Apache-2.0
"""STC: an encoder that computes a quarter of most frames anew, and 60 tokens of each that go on.

arXiv 2512.00891 and its code (github.com/lern-to-write/STC), which were read. The cacher and the
pruner are `filters.TokenCacher` and `recipes.stc`, with the code's defaults: every second chunk is
a reference, 25% of the tokens of other frames are computed anew, 60 of a frame's 196 reach the
language model, their order kept.

Chosen here: chunks of one frame; the history of the pruner over all channels (see the recipe);
survivors keep their time, row and column, where LLaVA-OneVision has flat positions. `threshold`
computes the tokens whose keys are at most so similar to the reference's, in place of a ratio.

Oracle: the encoder's rule frame by frame over all tokens in fp64, the pruner's over lists, and a
masked forward of the reader over the tokens of all frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import recipes
from ..filters import TokenCacher, encode, patchify
from ..ops import compact
from . import pruning_oracle as plain
from .given import counts, shares
from .proof import BOUND, Check, Preset
from .small_reader import Reading, SmallModel, SmallReader
from .small_vision import MERGE, PATCH, SmallVision, film

__all__ = ["STC", "Seen", "stc"]

INTERVAL, RATIO, TOKENS = 2, 0.25, 60


@dataclass(frozen=True)
class Seen:
    """Of a chunk: features fp32 [F, N, W], which tokens go on int32 [F, K], what the reader makes
    of them fp32 [F * K, W]."""

    features: Tensor
    index: Tensor
    read: Tensor


class STC:
    """`feed(frames)` takes a chunk, uint8 [F, H, W, C]."""

    def __init__(self, model: Any, cacher: TokenCacher, tokens: int) -> None:
        self.model, self.cacher, self.tokens = model, cacher, tokens
        self.history, self.reading, self.frames = recipes.stc.History(), Reading(model.reader), 0

    @torch.no_grad()
    def feed(self, frames: Tensor) -> Seen:
        """Encodes the next chunk, prunes it, and reads what is left."""
        vision = self.model.vision
        features = self.cacher(tokens_of(vision, frames))
        high, wide = vision.grid[0] // MERGE[0], vision.grid[1] // MERGE[1]
        cells = features.view(len(frames), high, MERGE[0], wide, MERGE[1], -1).transpose(2, 3)
        tokens = vision.project(cells.flatten(3).flatten(1, 2))
        index, count = recipes.stc.keep(tokens, self.history, tokens=self.tokens)
        rows = compact(tokens, index, count).y.flatten(0, 1)
        frame = torch.arange(self.frames, self.frames + len(frames))[:, None].expand_as(index)
        at = torch.stack([frame, index // wide, index % wide], -1).flatten(0, 1)
        self.frames += len(frames)
        return Seen(features, index, self.reading.feed(rows, at))


def stc(
    model: Any,
    *,
    ratio: float = RATIO,
    threshold: float | None = None,
    interval: int = INTERVAL,
    tokens: int = TOKENS,
) -> STC:
    """A stream over a model with `vision` and `reader`, such as
    `headrace.presets.small_reader.SmallModel`.

    ratio: share of the tokens of a frame that the encoder computes anew. threshold: cosine of keys
    up to which it does, in place of a ratio. interval: every so many chunks all are. tokens: of a
    frame, those that reach the reader. ValueError or TypeError where one is out of range.
    """
    counts("stc", tokens=tokens, interval=interval)
    shares("stc", ratio=ratio)
    cacher = TokenCacher(model.vision.layers, ratio, threshold, interval)
    return STC(model, cacher, tokens)


def tokens_of(vision: Any, frames: Tensor) -> Tensor:
    """Embedded patches fp32 [F, N, W] of frames [F, H, W, C]."""
    patches = patchify(frames, PATCH)
    places = torch.arange(patches.shape[1], dtype=torch.int32).expand(len(frames), -1)
    embedded: Tensor = vision.embed(patches, places)
    return embedded


class Counting:
    """A layer of an encoder that counts the rows it is asked for, queries, values and MLP."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.rows = layer, {"query": 0, "value": 0, "mlp": 0}

    def __getattr__(self, name: str) -> Any:
        part = getattr(self.layer, name)
        if name not in self.rows:
            return part

        def counted(x: Tensor) -> Tensor:
            self.rows[name] += x.shape[0] * x.shape[1]
            made: Tensor = part(x)
            return made

        return counted


def by_rule(vision: Any, clip: Tensor, ratio: float, interval: int) -> Tensor:
    """Features fp64 [T, N, W] of the encoder's rule, all tokens of all layers computed."""
    cached: list[list[Tensor]] = [[] for _ in vision.layers]
    out = []
    for t, frame in enumerate(clip):
        x = plain.embedded(vision, frame, PATCH)
        for layer, was in zip(vision.layers, cached, strict=True):
            q, k, v = plain.projections(layer, x)
            stale = torch.arange(len(x))
            if t % interval:
                near = torch.cosine_similarity(k, was[0], dim=-1)
                stale = near.argsort(stable=True)[: max(1, int(ratio * len(x)))]
                v = was[1].index_copy(0, stale, v[stale])
            attended = plain.attend(layer, q, k, v, layer.heads)
            if t % interval:
                attended = was[2].index_copy(0, stale, attended[stale])
            x = x + attended
            fed = plain.mlp(layer, x)
            if t % interval:
                fed = was[3].index_copy(0, stale, fed[stale])
            else:
                was[:] = [k, v, attended, fed]
            x = x + fed
        out.append(x)
    return torch.stack(out)


def pruned_by_rule(tokens: Tensor, count: int) -> list[list[int]]:
    """Of each frame of tokens fp64 [T, P, D] those that go on, by the paper's scores."""
    kept, means = [], []
    for frame in tokens:
        means.append(frame.mean(0))
        at = frame.var(0, correction=0).argsort(stable=True)[: frame.shape[1] // 2]
        unit = torch.nn.functional.normalize(frame[:, at], dim=-1)
        memory = torch.nn.functional.normalize(torch.stack(means).mean(0)[at], dim=0)
        score = torch.zeros(len(frame), dtype=torch.float64)
        for i in range(-3, 2):
            for ref in (unit.mean(0), memory):
                score += torch.exp(-(unit - ref).square().sum(1) / (2 * 2.0**i))
        kept.append(sorted(score.argsort(stable=True)[:count].tolist()))
    return kept


def check(model: Any, *, frames: int = 5, tokens: int = TOKENS) -> list[Check]:
    """Bits without and with a cache that is always stale, rows computed, rule, pruning, reading."""
    vision, reader = model.vision, model.reader
    clip = film(frames, vision.grid)
    exact = stc(model, threshold=1.0)
    none = encode(vision.layers, tokens_of(vision, clip))
    differ = sum(int((exact.feed(f[None]).features[0] != x).sum())
                 for f, x in zip(clip, none, strict=True))  # fmt: skip
    stream = stc(model, tokens=tokens)
    layers = [Counting(layer) for layer in vision.layers]
    stream.cacher.layers = layers
    seen = [stream.feed(f[None]) for f in clip]
    patches = none.shape[1]
    few = sum(patches if t % INTERVAL == 0 else int(RATIO * patches) for t in range(frames))
    extra = max(abs(n - few) for layer in layers for n in layer.rows.values())
    want = by_rule(vision, clip, RATIO, INTERVAL)
    features = torch.cat([s.features for s in seen])
    grid = (vision.grid[0] // 2, vision.grid[1] // 2)
    made = torch.stack([plain.merged(vision, x, vision.grid) for x in want])
    kept = pruned_by_rule(made, tokens)
    other = sum(len(set(s.index[0].tolist()) ^ set(k)) for s, k in zip(seen, kept, strict=True))
    on = torch.zeros(made.shape[:2], dtype=torch.bool)
    for row, places in zip(on, kept, strict=True):
        row[places] = True
    on = on.flatten()
    masked = plain.read(reader, made.flatten(0, 1), plain.positions(frames, grid),
                        on.expand(len(reader.layers), -1))[on]  # fmt: skip
    read = torch.cat([s.read for s in seen])
    apart = float((read - masked).abs().max()) if read.shape == masked.shape else torch.inf
    return [
        Check("threshold 1: features that differ from no cache", differ, 0),
        Check("rows computed beside all of the references and a quarter of the rest", extra, 0),
        Check("max |feature - rule over all tokens|", float((features - want).abs().max()), BOUND),
        Check("a cache that changes nothing", int(torch.equal(features, none)), 0),
        Check("tokens that go on against the rule", other, 0),
        Check(f"tokens read beside {tokens} a frame", abs(len(read) - tokens * frames), 0),
        Check("max |read - masked forward over all|", apart, BOUND),
    ]


def sample() -> SmallModel:
    """196 tokens a frame, of 784 patches."""
    return SmallModel(SmallVision((28, 28)), SmallReader())


PRESET = Preset(
    "stc",
    "STC, 2025; arXiv 2512.00891, github.com/lern-to-write/STC",
    stc,
    check,
    sample=sample,
    kind="pruning",
)
