# SPDX-License-Identifier: Apache-2.0
"""A small byte-level decoder whose attention is handed in by the caller.

The model owns the weights and everything that happens to one token alone; how a token sees the
others (mask, cache, rotary positions) is the business of the `attend` callback, which receives q
and k before any rotation. The same weights therefore run under a training mask, a dense cache or a
streaming engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D]) -> [T, Hq, D]; q and k come un-rotated."""

_EPS = 1e-6
_LIMIT = 1 << 20  # beyond any model of this family; a damaged file must not ask for the moon


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder, and the memory it was trained with.

    window: keys a query sees, counting itself (None: all of them). sinks: first positions that are
    never evicted. sink_logits: whether every head has a learned extra term in the softmax
    denominator. ValueError or TypeError when a field is out of range or of the wrong type.
    """

    vocab: int = 256
    layers: int = 4
    width: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 1024
    rope_theta: float = 10000.0
    sink_logits: bool = False
    window: int | None = None
    sinks: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab", "layers", "width", "heads", "kv_heads", "head_dim", "hidden"):
            _check_int(name, getattr(self, name), 1)
        _check_int("sinks", self.sinks, 0)
        if self.window is not None:
            _check_int("window", self.window, 1)
        if not isinstance(self.sink_logits, bool):
            raise TypeError(
                f"DecoderConfig(sink_logits): expected a bool, got {self.sink_logits!r}"
            )
        if isinstance(self.rope_theta, bool) or not isinstance(self.rope_theta, (int, float)):
            raise TypeError(
                f"DecoderConfig(rope_theta): expected a number, got {self.rope_theta!r}"
            )
        if not 1.0 < self.rope_theta < float("inf"):
            raise ValueError(
                f"DecoderConfig(rope_theta): expected more than 1, got {self.rope_theta}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"DecoderConfig(heads): expected a multiple of kv_heads={self.kv_heads}, "
                f"got {self.heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"DecoderConfig(head_dim): expected an even number, got {self.head_dim}; "
                "rotary pairs need two halves"
            )


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"DecoderConfig({name}): expected an int, got {value!r}")
    if not least <= value <= _LIMIT:
        raise ValueError(f"DecoderConfig({name}): expected {least}..{_LIMIT}, got {value}")


def _inverse_frequencies(config: DecoderConfig, device: torch.device | None = None) -> Tensor:
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device)
    return float(config.rope_theta) ** (-exponent / config.head_dim)


class _Block(nn.Module):
    """Weights of one layer: attention and squared-ReLU MLP, each behind its own RMSNorm; no
    biases.
    """

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.Parameter(torch.ones(c.width))
        self.query = nn.Parameter(torch.empty(c.heads * c.head_dim, c.width))
        self.key = nn.Parameter(torch.empty(c.kv_heads * c.head_dim, c.width))
        self.value = nn.Parameter(torch.empty(c.kv_heads * c.head_dim, c.width))
        self.output = nn.Parameter(torch.empty(c.width, c.heads * c.head_dim))
        self.mlp_norm = nn.Parameter(torch.ones(c.width))
        self.up = nn.Parameter(torch.empty(c.hidden, c.width))
        self.down = nn.Parameter(torch.empty(c.width, c.hidden))


class Decoder(nn.Module):
    """Pre-norm decoder over bytes: RMSNorm, grouped-query attention, squared ReLU, tied embedding,
    no biases.

    inv_freq: float64 [head_dim / 2], rotary frequencies; dimension i pairs with i + head_dim / 2
    (half-split). It stays float64 whatever the module is cast to, and is not saved. Weights are
    initialised from torch's global generator.
    """

    inv_freq: Tensor
    mean: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        self.learned_sinks = (
            nn.Parameter(torch.zeros(config.layers, config.heads)) if config.sink_logits else None
        )
        self.register_buffer("inv_freq", _inverse_frequencies(config), persistent=False)
        self.register_buffer(
            "mean", torch.full((1, config.width), 1.0 / config.width), persistent=False
        )
        with torch.no_grad():
            self.embedding.normal_(std=0.02)
            for block in cast(Iterable[_Block], self.blocks):
                for weight in (block.query, block.key, block.value, block.up):
                    weight.normal_(std=config.width**-0.5)
                # Every residual branch starts silent, so depth costs nothing at the first steps.
                block.output.zero_()
                block.down.zero_()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # A cast of the weights must not touch the angles.
        self.inv_freq = _inverse_frequencies(self.config, self.embedding.device)
        return self

    def sink_logits(self, layer: int) -> Tensor | None:
        """Learned sink logits of a layer, [Hq], or None when the model has none."""
        return None if self.learned_sinks is None else self.learned_sinks[layer]

    def forward(
        self, tokens: Tensor, attend: Attend, linear: Callable[..., Tensor] = F.linear
    ) -> Tensor:
        """Logits [T, vocab] fp32 of the next token after each of `tokens` [T] int64.

        linear(x [T, K], weight [N, K], bias=None) -> [T, N] does every sum over features. With one
        whose row bits do not depend on T, and an `attend` of the same kind, neither do the bits of
        a row of the result. The rest is elementwise and correctly rounded. With torch's own linear,
        or one that says it is `fused`, the norm takes torch's fused path.
        """
        c = self.config
        fused = getattr(linear, "fused", linear is F.linear)
        x = self.embedding[tokens]
        rows = x.shape[0]
        for layer, block in enumerate(cast(Iterable[_Block], self.blocks)):
            h = self._normalise(x, block.attention_norm, linear, fused)
            q = linear(h, block.query).view(rows, c.heads, c.head_dim)
            k = linear(h, block.key).view(rows, c.kv_heads, c.head_dim)
            v = linear(h, block.value).view(rows, c.kv_heads, c.head_dim)
            seen = attend(layer, q, k, v).reshape(rows, c.heads * c.head_dim)
            x = x + linear(seen, block.output)
            h = self._normalise(x, block.mlp_norm, linear, fused)
            x = x + linear(torch.relu(linear(h, block.up)).square(), block.down)
        return linear(self._normalise(x, self.norm, linear, fused), self.embedding).float()

    def _normalise(
        self, x: Tensor, weight: Tensor, linear: Callable[..., Tensor], fused: bool
    ) -> Tensor:
        if fused:
            return F.rms_norm(x, (x.shape[-1],), weight, _EPS)
        # sqrt and division are correctly rounded everywhere; rsqrt is not.
        return x / torch.sqrt(linear(x * x, self.mean) + _EPS) * weight
