# SPDX-License-Identifier: Apache-2.0
"""An audio encoder whose memory is handed in by the caller, as the decoder's attention is.

A Conformer (Gulati et al., 2020) or, without its convolutions, a transformer: what a frame sees of
others, in the convolutions as in the attention, is the business of the functions it is called with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-5
_LEAST = {
    **dict.fromkeys(("inputs", "width", "layers", "heads", "head_dim", "hidden"), 1),
    **{"taps": 0, "stages": 0},
}


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
    """Shape of an encoder of frames [T, inputs] to [T // 2**stages, width].

    stages: convolutions in front, of 3 taps and stride 2. taps: of the depthwise convolution in
    every block; 0: blocks without one. halves: half a feed-forward step before attention and half
    after the convolution, as in a Conformer, or one whole step at the end. gated: what attention
    gives is normalised per head and gated by the frame, as in RetNet. ValueError or TypeError when
    a field is out of range or of the wrong type.
    """

    inputs: int = 16
    width: int = 32
    layers: int = 2
    heads: int = 2
    head_dim: int = 16
    hidden: int = 64
    taps: int = 9
    stages: int = 3
    halves: bool = True
    gated: bool = False
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"ConformerConfig({name}): expected an int, got {value!r}")
            if value < low:
                raise ValueError(f"ConformerConfig({name}): expected {low} or more, got {value}")
        if self.head_dim % 2:
            raise ValueError(
                f"ConformerConfig(head_dim): expected an even number, got {self.head_dim}"
            )
        if self.taps > 16:
            raise ValueError(f"ConformerConfig(taps): expected 0 to 16, got {self.taps}")

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads


class _Block(nn.Module):
    """Weights of one layer."""

    def __init__(self, c: ConformerConfig) -> None:
        super().__init__()
        inner, halves = c.heads * c.head_dim, 2 if c.halves else 1
        used = {"attention": True, "step": True, "convolution": c.taps > 0}
        used |= dict.fromkeys(("first", "last"), c.halves)
        norms = {name: nn.Parameter(torch.empty(c.width)) for name, here in used.items() if here}
        self.norms = nn.ParameterDict(norms)
        self.up = nn.ParameterList(torch.empty(c.hidden, c.width) for _ in range(halves))
        self.down = nn.ParameterList(torch.empty(c.width, c.hidden) for _ in range(halves))
        self.query = nn.Parameter(torch.empty(inner, c.width))
        self.key = nn.Parameter(torch.empty(inner, c.width))
        self.value = nn.Parameter(torch.empty(inner, c.width))
        self.output = nn.Parameter(torch.empty(c.width, inner))
        self.gate = nn.Parameter(torch.empty(inner, c.width)) if c.gated else None
        self.expand = nn.Parameter(torch.empty(2 * c.width, c.width)) if c.taps else None
        self.kernel = nn.Parameter(torch.empty(c.width, c.taps)) if c.taps else None
        self.shrink = nn.Parameter(torch.empty(c.width, c.width)) if c.taps else None


class Conformer(nn.Module):
    """Encoder of audio frames; random weights from `seed`, loud enough that every term matters.

    inv_freq: float64 [head_dim / 2], rotary frequencies (half-split).
    """

    inv_freq: Tensor
    mean: Tensor
    head_mean: Tensor

    def __init__(self, config: ConformerConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config or ConformerConfig()
        widths = [c.inputs, *[c.width] * c.stages]
        self.stages = nn.ParameterList(torch.empty(c.width, 3 * w) for w in widths[:-1])
        self.input = nn.Parameter(torch.empty(c.width, widths[-1]))
        self.blocks = nn.ModuleList(_Block(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.empty(c.width))
        exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
        for name, buffer in (
            ("inv_freq", float(c.rope_theta) ** -exponent),
            ("mean", torch.full((1, c.width), 1.0 / c.width)),
            ("head_mean", torch.full((1, c.head_dim), 1.0 / c.head_dim)),
        ):
            self.register_buffer(name, buffer, persistent=False)
        made = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                drawn = torch.randn(weight.shape, generator=made)
                if weight.dim() == 1:
                    weight.copy_(1 + 0.1 * drawn)
                else:
                    loud = 2.0 if name.endswith(("query", "key")) else 1.0
                    weight.copy_(drawn * loud * weight.shape[1] ** -0.5)

    def _apply(self, fn, recurse=True):
        angles = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = angles.to(self.input.device)  # a cast of the weights must not touch these
        return self

    def forward(
        self,
        x: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        convolve: Callable[[int, Tensor, Tensor], Tensor],
        strided: Callable[[int, Tensor], Tensor],
        linear: Callable[..., Tensor] = F.linear,
    ) -> Tensor:
        """[N, width] for frames x [T, inputs] of one or many streams.

        attend(layer, q, k, v), all [N, heads, head_dim], gives the same shape. convolve(layer, x
        [N, width], kernel [width, taps]) gives [N, width]. strided(stage, x [T, C]) gives what each
        output of that stage sees, [T / 2, 3 C]: its own two frames behind the one before. linear
        does every sum over features.
        """
        c, h = self.config, x
        for stage, weight in enumerate(self.stages):
            h = torch.relu(linear(strided(stage, h), weight))
        h = linear(h, self.input)
        for layer, block in enumerate(cast(Iterable[_Block], self.blocks)):

            def norm(name: str, y: Tensor, gains: nn.ParameterDict = block.norms) -> Tensor:
                return normed(y, self.mean, linear) * gains[name]

            up, down = list(block.up), list(block.down)
            if c.halves:
                h = h + 0.5 * linear(F.silu(linear(norm("first", h), up[0])), down[0])
            n = norm("attention", h)
            q, k, v = (
                linear(n, weight).view(len(n), c.heads, c.head_dim)
                for weight in (block.query, block.key, block.value)
            )
            seen = attend(layer, q, k, v)
            if block.gate is not None:
                seen = normed(seen.reshape(-1, c.head_dim), self.head_mean, linear)
                seen = seen.view(len(n), -1) * F.silu(linear(n, block.gate))
            h = h + linear(seen.reshape(len(n), -1), block.output)
            if block.kernel is not None:
                value, gate = linear(norm("convolution", h), block.expand).chunk(2, -1)
                taken = convolve(layer, value * torch.sigmoid(gate), block.kernel)
                taken = normed(taken, self.mean, linear)
                h = h + linear(F.silu(taken), block.shrink)
            step = linear(F.silu(linear(norm("step", h), up[-1])), down[-1])
            h = norm("last", h + 0.5 * step) if c.halves else h + step
        return normed(h, self.mean, linear) * self.norm


def normed(x: Tensor, mean: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    """Rows of x [..., D] at mean 0 and variance 1; mean: [1, D] of 1 / D."""
    # sqrt and division are correctly rounded everywhere; rsqrt is not.
    x = x - linear(x, mean)
    return x / torch.sqrt(linear(x * x, mean) + _EPS)
