# SPDX-License-Identifier: Apache-2.0
"""A small denoiser whose attention is handed in by the caller, as the decoder's is.

A transformer over the tokens of frames (patches of a latent, actions, joints): the level of noise
of every token and what it is conditioned on set scale, shift and gate of every norm (adaptive
layer norm, Peebles and Xie, 2023). Which tokens see which, and at what distance in time, is the
business of `attend`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6
_SIZES = ("channels", "tokens", "layers", "width", "heads", "kv_heads", "head_dim", "hidden")


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser of frames [tokens, channels].

    condition: numbers in what a token is conditioned on, 0 for none. knots: levels of noise from 0
    to 1 that have an embedding of their own; others lie between two of them. gates: numbers that
    attention is given for every token beside its query, key and value. fold: a matrix [head_dim,
    head_dim] per layer for what attention reads from a folded state. ValueError or TypeError when a
    field is out of range or of the wrong type.
    """

    channels: int = 4
    tokens: int = 16
    layers: int = 2
    width: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    hidden: int = 64
    condition: int = 8
    knots: int = 17
    rope_theta: float = 100.0
    gates: int = 0
    fold: bool = False

    def __post_init__(self) -> None:
        least = {**dict.fromkeys(_SIZES, 1), "condition": 0, "knots": 2, "gates": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"DenoiserConfig({name}): expected an int, got {value!r}")
            if value < low:
                raise ValueError(f"DenoiserConfig({name}): expected {low} or more, got {value}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"DenoiserConfig(heads): expected a multiple of kv_heads={self.kv_heads}, "
                f"got {self.heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"DenoiserConfig(head_dim): expected an even number, got {self.head_dim}"
            )


class _Block(nn.Module):
    """Weights of one layer; `adapt` makes scale, shift and gate of both halves from the level."""

    def __init__(self, c: DenoiserConfig) -> None:
        super().__init__()
        self.adapt = nn.Parameter(torch.empty(6 * c.width, c.width))
        self.query = nn.Parameter(torch.empty(c.heads * c.head_dim, c.width))
        self.key = nn.Parameter(torch.empty(c.kv_heads * c.head_dim, c.width))
        self.value = nn.Parameter(torch.empty(c.kv_heads * c.head_dim, c.width))
        self.output = nn.Parameter(torch.empty(c.width, c.heads * c.head_dim))
        self.up = nn.Parameter(torch.empty(c.hidden, c.width))
        self.down = nn.Parameter(torch.empty(c.width, c.hidden))
        self.gate = nn.Parameter(torch.empty(c.gates, c.width)) if c.gates else None
        self.fold = nn.Parameter(torch.empty(c.head_dim, c.head_dim)) if c.fold else None


class Denoiser(nn.Module):
    """Predicts, for every token, what a solver (`headrace.streams.Flow`, `Diffusion`) asks of it.

    Random weights from `seed`, loud enough that every term matters. inv_freq: float64
    [head_dim / 2], rotary frequencies over time (half-split); the place of a token in its frame has
    a learned embedding.
    """

    inv_freq: Tensor
    mean: Tensor
    level_knots: Tensor

    def __init__(self, config: DenoiserConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config or DenoiserConfig()
        self.input = nn.Parameter(torch.empty(c.width, c.channels))
        self.places = nn.Parameter(torch.empty(c.tokens, c.width))
        self.level = nn.Parameter(torch.empty(c.width, c.knots))
        self.condition = nn.Parameter(torch.empty(c.width, c.condition)) if c.condition else None
        self.blocks = nn.ModuleList(_Block(c) for _ in range(c.layers))
        self.adapt = nn.Parameter(torch.empty(2 * c.width, c.width))
        self.output = nn.Parameter(torch.empty(c.channels, c.width))
        exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
        for name, buffer in (
            ("inv_freq", float(c.rope_theta) ** -exponent),
            ("mean", torch.full((1, c.width), 1.0 / c.width)),
            ("level_knots", torch.arange(c.knots, dtype=torch.float32)),
        ):
            self.register_buffer(name, buffer, persistent=False)
        made = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                loud = {"query": 2.0, "key": 2.0, "adapt": 0.3, "level": c.knots**0.5}
                gain = loud.get(name.rsplit(".", 1)[-1], 1.0)
                if name == "places":
                    gain = c.width**0.5
                weight.copy_(torch.randn(weight.shape, generator=made))
                weight.mul_(gain * weight.shape[1] ** -0.5)

    def _apply(self, fn, recurse=True):
        angles = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = angles.to(self.input.device)  # a cast of the weights must not touch these
        return self

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        place: Tensor,
        condition: Tensor | None,
        attend: Callable[..., Tensor],
        linear: Callable[..., Tensor] = F.linear,
    ) -> Tensor:
        """[T, channels] for tokens x [T, channels] of many frames.

        level [T]: 0 for clean, 1 for noise alone. place int64 [T]: of each token in its frame.
        condition [T, condition], None where the model has none. attend(layer, q [T, heads, D],
        k and v [T, kv_heads, D], and gates [T, gates] where there are) gives [T, heads, D]. linear
        does every sum over
        features; with one whose row bits do not depend on T, and an `attend` of the same kind,
        neither do those of a row of the result: the rest is correctly rounded arithmetic.
        """
        c, rows = self.config, len(x)
        # Hats over the knots: no function in it that rounds one way here and another there.
        hats = torch.relu(1 - (level[:, None] * (c.knots - 1) - self.level_knots).abs())
        about = linear(hats, self.level)
        if condition is not None and self.condition is not None:
            about = about + linear(condition, self.condition)
        about = torch.relu(about)
        h = linear(x, self.input) + self.places[place]
        for layer, block in enumerate(cast(Iterable[_Block], self.blocks)):
            scale, shift, gate, scale_2, shift_2, gate_2 = linear(about, block.adapt).chunk(6, -1)
            n = self._norm(h, linear) * (1 + scale) + shift
            q = linear(n, block.query).view(rows, c.heads, c.head_dim)
            k = linear(n, block.key).view(rows, c.kv_heads, c.head_dim)
            v = linear(n, block.value).view(rows, c.kv_heads, c.head_dim)
            gates = () if block.gate is None else (linear(n, block.gate),)
            seen = attend(layer, q, k, v, *gates).reshape(rows, c.heads * c.head_dim)
            h = h + (1 + gate) * linear(seen, block.output)
            n = self._norm(h, linear) * (1 + scale_2) + shift_2
            h = h + (1 + gate_2) * linear(torch.relu(linear(n, block.up)).square(), block.down)
        scale, shift = linear(about, self.adapt).chunk(2, -1)
        return linear(self._norm(h, linear) * (1 + scale) + shift, self.output)

    def _norm(self, x: Tensor, linear: Callable[..., Tensor]) -> Tensor:
        # sqrt and division are correctly rounded everywhere; rsqrt is not.
        return x / torch.sqrt(linear(x * x, self.mean) + _EPS)
