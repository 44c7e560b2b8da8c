# SPDX-License-Identifier: Apache-2.0
"""A small random decoder with the protocol that the engine asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    vocab: int = 256
    layers: int = 2
    width: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    sink_logits: bool = False


class TinyDecoder(nn.Module):
    """Two matrices per half layer, weights loud enough that attention matters."""

    def __init__(self, seed: int = 0, **config) -> None:
        super().__init__()
        self.config = c = Config(**config)
        made = torch.Generator().manual_seed(seed)

        def weight(rows, columns, gain=1.0):
            values = torch.randn(rows, columns, generator=made) * gain * columns**-0.5
            return nn.Parameter(values)

        self.embedding = weight(c.vocab, c.width, gain=c.width**0.5)
        kv = c.kv_heads * c.head_dim
        wide = c.heads * c.head_dim
        self.q = nn.ParameterList(weight(wide, c.width, 2.0) for _ in range(c.layers))
        self.k = nn.ParameterList(weight(kv, c.width, 2.0) for _ in range(c.layers))
        self.v = nn.ParameterList(weight(kv, c.width) for _ in range(c.layers))
        self.o = nn.ParameterList(weight(c.width, wide) for _ in range(c.layers))
        self.up = nn.ParameterList(weight(2 * c.width, c.width) for _ in range(c.layers))
        self.down = nn.ParameterList(weight(c.width, 2 * c.width) for _ in range(c.layers))
        self.learned = (
            nn.Parameter(torch.randn(c.layers, c.heads, generator=made)) if c.sink_logits else None
        )
        self.register_buffer("mean", torch.full((1, c.width), 1 / c.width), persistent=False)

    @property
    def inv_freq(self):
        d = self.config.head_dim
        return 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)

    def sink_logits(self, layer):
        return None if self.learned is None else self.learned[layer]

    def forward(self, tokens, attend, linear=F.linear):
        c, rows = self.config, len(tokens)
        x = self.embedding[tokens]
        for layer in range(c.layers):
            h = self.norm(x, linear)
            q = linear(h, self.q[layer]).view(rows, c.heads, c.head_dim)
            k = linear(h, self.k[layer]).view(rows, c.kv_heads, c.head_dim)
            v = linear(h, self.v[layer]).view(rows, c.kv_heads, c.head_dim)
            x = x + linear(attend(layer, q, k, v).reshape(rows, -1), self.o[layer])
            h = linear(self.norm(x, linear), self.up[layer])
            x = x + linear(torch.relu(h).square(), self.down[layer])
        return linear(self.norm(x, linear), self.embedding / c.width**0.5)

    def norm(self, x, linear):
        return x / torch.sqrt(linear(x * x, self.mean) + 1e-6)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """int64 [count], random bytes."""
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed))


def streamed(engine, fed, chunk, **kwargs) -> torch.Tensor:
    """Logits [T, V] of a new stream that is fed `chunk` tokens at a time."""
    with engine.open(**kwargs) as stream:
        return torch.cat([stream.feed(part, logits=True).logits for part in fed.split(chunk)])


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())
