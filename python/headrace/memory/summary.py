# SPDX-License-Identifier: Apache-2.0
"""What stays near of blocks that went far: enough to score them by, and to say what they may hold.

`Summary` grows with its tokens and merges with others; `Index` holds the finished ones of many
blocks where `block_score` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FIELDS = {"mean": ("mean",), "bounds": ("mean", "centre", "low", "high", "value", "spread")}
"""What an index keeps of a block. mean: of the keys before their rotation, by which blocks are
found. Of the keys as they are stored: centre (their mean), low and high (element by element).
value: the mean of the values. spread: two numbers (and zeros): the largest distance of a key from
the centre, and a bound on the keys' standard deviation in any direction."""


@dataclass
class Summary:
    """Of keys and values [..., n, D]: sums fp64, extremes, and how many they are."""

    raw: Tensor
    key: Tensor
    value: Tensor
    low: Tensor
    high: Tensor
    count: int

    @staticmethod
    def of(keys: Tensor, values: Tensor, raw: Tensor) -> Summary:
        """keys as stored and raw ones, before their rotation, values: [..., n, D], n >= 1."""
        return Summary(
            raw.double().sum(-2),
            keys.double().sum(-2),
            values.double().sum(-2),
            keys.float().amin(-2),
            keys.float().amax(-2),
            keys.shape[-2],
        )

    def merge(self, other: Summary) -> Summary:
        """Of the tokens of both."""
        return Summary(
            self.raw + other.raw,
            self.key + other.key,
            self.value + other.value,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.count + other.count,
        )

    def fields(self, index: str, keys: Tensor) -> Tensor:
        """fp32 [F, ..., D], in the order of FIELDS[index]; keys are all that it was made of."""
        made = {
            "mean": lambda: self.raw / self.count,
            "centre": lambda: self.key / self.count,
            "low": lambda: self.low,
            "high": lambda: self.high,
            "value": lambda: self.value / self.count,
            "spread": lambda: spread(keys, self.key / self.count),
        }
        return torch.stack([made[name]().float() for name in FIELDS[index]])


def spread(keys: Tensor, centre: Tensor) -> Tensor:
    """[..., D] of keys [..., n, D] about their mean: (largest distance, deviation, 0, ...), each
    rounded up.

    The deviation is the root of lambda, the largest eigenvalue of the covariance, or a little more:
    the Frobenius norm of its eighth power is at least lambda ** 8.
    """
    apart = keys.double() - centre[..., None, :]
    made = torch.zeros_like(centre)
    made[..., 0] = apart.norm(dim=-1).amax(-1)
    gram = apart @ apart.mT if apart.shape[-2] < apart.shape[-1] else apart.mT @ apart
    size = gram.flatten(-2).norm(dim=-1)  # powers are taken of what has norm 1
    power = gram / size.clamp_min(1e-300)[..., None, None]
    for _ in range(3):
        power = power @ power
    above = power.flatten(-2).norm(dim=-1) ** 0.125 * size
    made[..., 1] = (above / keys.shape[-2]).sqrt()
    return made * (1 + 1e-5)


def unrotated(keys: Tensor, first: int, inv_freq: Tensor | None) -> Tensor:
    """Keys [..., n, D] whose number i was turned by first + i steps, before that; fp32."""
    keys = keys.float()
    if inv_freq is None:
        return keys
    steps = torch.arange(first, first + keys.shape[-2], device=keys.device)
    return unturned(keys, steps[:, None] * inv_freq.to(keys.device))


def unturned(keys: Tensor, angle: Tensor) -> Tensor:
    """Keys [..., n, D] that were turned by angles fp64 [n, R], before that; fp32."""
    keys, half = keys.float(), angle.shape[-1]
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = keys[..., :half], keys[..., half : 2 * half]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, keys[..., 2 * half :]], -1)


class Index:
    """Summaries of many blocks, in the order they came; each layer ready to be scored.

    blocks, starts, origins, counts: of each its number, first token, origin and tokens.
    """

    def __init__(self, kind: str, layers: int, kv_heads: int, head_dim: int) -> None:
        self.kind = kind
        self._shape = layers, kv_heads, head_dim
        self._room = torch.empty(len(FIELDS[kind]), layers, kv_heads, 0, head_dim)
        self._facts = np.empty((0, 4), np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Of what is in use."""
        used = self._room[:, :, :, : self._count].numel() * self._room.element_size()
        return used + self._facts[: self._count].nbytes

    @property
    def summary_bytes(self) -> int:
        """Of one block."""
        layers, heads, dim = self._shape
        return 4 * len(FIELDS[self.kind]) * layers * heads * dim

    @property
    def blocks(self) -> np.ndarray:
        return self._facts[: self._count, 0]

    @property
    def starts(self) -> np.ndarray:
        return self._facts[: self._count, 1]

    @property
    def origins(self) -> np.ndarray:
        return self._facts[: self._count, 2]

    @property
    def counts(self) -> np.ndarray:
        return self._facts[: self._count, 3]

    def add(self, block: int, start: int, origin: int, count: int, fields: Tensor) -> None:
        """One more, fields fp32 [F, L, Hkv, D]."""
        at = self._count
        if at == self._room.shape[3]:
            more = max(64, at // 2)
            grown = self._room.new_empty(*self._room.shape[:3], at + more, self._shape[2])
            grown[:, :, :, :at] = self._room
            self._room = grown
            self._facts = np.concatenate([self._facts, np.empty((more, 4), np.int64)])
        self._room[:, :, :, at] = fields
        self._facts[at] = block, start, origin, count
        self._count = at + 1

    def cut(self, length: int) -> None:
        """Forgets all but the first `length`."""
        self._count = min(self._count, length)

    def keep(self, mask: np.ndarray) -> None:
        """Forgets the others: bool [len]."""
        chosen = np.flatnonzero(mask)
        self._room[:, :, :, : len(chosen)] = self._room[:, :, :, torch.from_numpy(chosen)]
        self._facts[: len(chosen)] = self._facts[chosen]
        self._count = len(chosen)

    def rows(self, field: str, layer: int) -> Tensor:
        """fp32 [Hkv, blocks, D], a view."""
        return self._room[FIELDS[self.kind].index(field), layer, :, : self._count]

    def row(self, i: int) -> Tensor:
        """fp32 [F, L, Hkv, D] of one block, as it was added."""
        return self._room[:, :, :, i].contiguous()

    def copy(self) -> Index:
        """Another of the same blocks, which goes its own way."""
        made = Index(self.kind, *self._shape)
        made._room, made._facts = self._room[:, :, :, : self._count].clone(), self._facts.copy()
        made._facts = made._facts[: self._count]
        made._count = self._count
        return made
