# SPDX-License-Identifier: Apache-2.0
"""Vision encoders that compute anew only what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from ..recipes import stc
from .decision import Decision, fitting


class EncoderLayer(Protocol):
    """A pre-norm layer of an encoder, in parts that run on some of the tokens alone.

    x = x + attend(query(h), key(h), value(h)) with h = norm(x), then x = x + mlp(x). Tokens are
    rows [B, M, W]; query, key and value give [B, M, E], all heads side by side. attend has its
    output projection and mlp its own norm in it; no part depends on where a row stands.
    """

    def norm(self, x: Tensor) -> Tensor:
        """[B, M, W]."""

    def query(self, h: Tensor) -> Tensor:
        """[B, M, E] of normed rows [B, M, W]."""

    def key(self, h: Tensor) -> Tensor:
        """[B, M, E] of normed rows [B, M, W]."""

    def value(self, h: Tensor) -> Tensor:
        """[B, M, E] of normed rows [B, M, W]."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, M, W] of queries [B, M, E] over keys and values [B, N, E]; every one sees all."""

    def mlp(self, x: Tensor) -> Tensor:
        """[B, M, W] of rows [B, M, W], without what is added to it."""


def encode(layers: Sequence[EncoderLayer], x: Tensor) -> Tensor:
    """All of the tokens [B, N, W] through all layers."""
    for layer in layers:
        x = _full(layer, x)[0]
    return x


class _Cached(NamedTuple):
    """Of a reference frame, all [1, N, ..]."""

    key: Tensor
    value: Tensor
    attended: Tensor
    fed: Tensor


@dataclass
class TokenCacher:
    """STC's cacher: layer by layer the tokens whose keys changed most, since a reference frame.

    Every `interval`-th chunk is computed in full, and its last frame is the reference from then on.
    Of all other frames a layer has new keys for every token; by them `recipes.stc.stale` chooses
    which tokens get new queries, values, attention and MLP (a `ratio`, or those below a
    `threshold`), while the rest adds what the reference added. One stream per cacher. Source:
    arXiv 2512.00891 and its code, which projects the keys twice.

    chunks: how many came. recomputed: int32 [layers, F], tokens that were computed of the frames
    that came last.
    """

    layers: Sequence[EncoderLayer]
    ratio: float = 0.25
    threshold: float | None = None
    interval: int = 2
    chunks: int = field(default=0, init=False)
    recomputed: Tensor | None = field(default=None, init=False, repr=False)
    _cached: list[_Cached] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise bad_value("TokenCacher", "ratio", "0 to 1", self.ratio)
        if self.interval < 1:
            raise bad_value("TokenCacher", "interval", "1 or more", self.interval)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features [F, N, W] of a chunk of frames, given its embedded tokens [F, N, W].

        Raises ValueError for frames unlike those of the reference.
        """
        if x.ndim != 3 or not x.shape[0]:
            raise bad_value("TokenCacher", "x", "[F, N, W], a frame at least", tuple(x.shape))
        full = self.chunks % self.interval == 0
        if not full and x.shape[1:] != self._cached[0].fed.shape[1:]:
            wanted = f"frames {tuple(self._cached[0].fed.shape[1:])}, as before"
            raise bad_value("TokenCacher", "x", wanted, tuple(x.shape[1:]), "call reset() first")
        made, counts = [], []
        for i, layer in enumerate(self.layers):
            if full:
                x, cached = _full(layer, x)
                made.append(_Cached(*(part[-1:].clone() for part in cached)))
                counts.append(torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.int32))
            else:
                x, count = self._partial(layer, x, self._cached[i])
                counts.append(count)
        self._cached = made or self._cached
        self.recomputed = torch.stack(counts) if counts else None
        self.chunks += 1
        return x

    def reset(self) -> None:
        """Forgets the reference: the next chunk is computed in full."""
        self.chunks, self._cached, self.recomputed = 0, [], None

    def _partial(self, layer: EncoderLayer, x: Tensor, was: _Cached) -> tuple[Tensor, Tensor]:
        h = layer.norm(x)
        k = layer.key(h)
        index, count = stc.stale(k, was.key, ratio=self.ratio, threshold=self.threshold)
        index = fitting(index, count)
        if not index.shape[1]:
            return x + was.attended + was.fed, count

        def renewed(old: Tensor, rows: Tensor) -> Tensor:
            y = old.repeat(len(x), 1, 1)
            ops.scatter_back(y, rows, index, count)
            return y

        rows = ops.compact(h, index, count).y
        v = renewed(was.value, layer.value(rows))
        x = x + renewed(was.attended, layer.attend(layer.query(rows), k, v))
        return x + renewed(was.fed, layer.mlp(ops.compact(x, index, count).y)), count


@dataclass
class GatedEncoder:
    """An encoder that computes only the places which a decision keeps, in all layers.

    Every place stands, in all layers, as it was when it was last kept: its keys and values are seen
    by those that are computed now, and its features go on unchanged. With `LastKept` that is, of
    every place, within the filter's threshold of the frame at hand; what has changed elsewhere
    reaches it when it is kept next. A decision that keeps all computes all.

    features [B, N, W]: of all places. Streams of a batch know nothing of one another.
    """

    layers: Sequence[EncoderLayer]
    features: Tensor | None = field(default=None, init=False, repr=False)
    _keys: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _values: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @torch.no_grad()
    def __call__(self, rows: Tensor, decision: Decision) -> Tensor:
        """Features [B, N, W] (or [N, W]) of all places, once `rows` have been computed.

        rows [B, K, W] (or [K, W]): embedded tokens of the places that `decision` keeps, in its
        order. The result is the encoder's own: the next call writes into it. Raises ValueError for
        a batch or places unlike those before, and (looked at on the CPU only) where the first
        decision does not keep every place.
        """
        single = rows.ndim == 2
        index, count = decision.index, decision.count
        if single:
            rows, index, count = rows[None], index[None], count[None]
        places = decision.mask.shape[-1]
        new = self.features is None
        if new and rows.device.type == "cpu" and not bool(decision.mask.all()):
            raise bad_value("GatedEncoder", "decision", "every place kept at first", "some")
        if self.features is None:
            self.features = rows.new_zeros(rows.shape[0], places, rows.shape[2])
        got = (rows.shape[0], places, rows.shape[2])
        if tuple(self.features.shape) != got:
            wanted = f"{tuple(self.features.shape)}, as before"
            raise bad_value("GatedEncoder", "rows", wanted, got, "call reset() first")
        for i, layer in enumerate(self.layers if rows.shape[1] else ()):
            h = layer.norm(rows)
            for kept, made in ((self._keys, layer.key(h)), (self._values, layer.value(h))):
                if new:
                    kept.append(made.new_zeros(made.shape[0], places, made.shape[2]))
                ops.scatter_back(kept[i], made, index, count)
            rows = rows + layer.attend(layer.query(h), self._keys[i], self._values[i])
            rows = rows + layer.mlp(rows)
        ops.scatter_back(self.features, rows, index, count)
        return self.features[0] if single else self.features

    def reset(self) -> None:
        """Forgets all places; the next decision has to keep every one."""
        self.features, self._keys, self._values = None, [], []


def _full(layer: EncoderLayer, x: Tensor) -> tuple[Tensor, _Cached]:
    h = layer.norm(x)
    k, v = layer.key(h), layer.value(h)
    attended = layer.attend(layer.query(h), k, v)
    x = x + attended
    fed = layer.mlp(x)
    return x + fed, _Cached(k, v, attended, fed)
