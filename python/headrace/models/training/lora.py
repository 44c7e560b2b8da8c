# SPDX-License-Identifier: Apache-2.0
"""How the packaged adapters were made: LoRA on a packaged decoder, in plain torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..decoder import Decoder
from . import data
from .attention import banded


@dataclass(frozen=True)
class Run:
    """One adapter's training. tokens: bytes in a step."""

    rank: int
    steps: int
    modules: tuple[str, ...] = ("query", "value", "down")
    alpha: float = 16.0
    rate: float = 4e-3
    sequence: int = 1024
    tokens: int = 4096
    seed: int = 0


class Lora(nn.Module):
    """A [r, K] and B [N, r] for weights of a model; `linear` adds them to its products."""

    def __init__(self, model: Decoder, run: Run) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(run.seed)
        self.scale = run.alpha / run.rank
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self._names: dict[int, str] = {}
        for name, weight in model.named_parameters():
            if name.rpartition(".")[2] in run.modules:
                n, k = weight.shape
                key = name.replace(".", "/")
                self.a[key] = nn.Parameter(torch.randn(run.rank, k, generator=made) * k**-0.5)
                self.b[key] = nn.Parameter(torch.zeros(n, run.rank))
                self._names[id(weight)] = key
        self.linear: Callable[..., Tensor] = _Linear(self)

    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """`MODULE.a` and `MODULE.b` for an adapter store."""
        return {
            f"{key.replace('/', '.')}.{part}": w.detach().to(dtype)
            for part, of in (("a", self.a), ("b", self.b))
            for key, w in of.items()
        }


class _Linear:
    fused = True

    def __init__(self, lora: Lora) -> None:
        self._lora = lora

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.linear(x, weight, bias)
        key = self._lora._names.get(id(weight))
        if key is None:
            return y
        return y + F.linear(F.linear(x, self._lora.a[key]), self._lora.b[key]) * self._lora.scale


def loss(
    model: Decoder, text: Tensor, length: int, linear: Callable[..., Tensor] = F.linear
) -> Tensor:
    """Nats per byte of text int64 [B, L + 1] under the model's own streaming memory."""
    c = model.config
    assert c.window is not None
    attend = banded(model, length, c.window, c.sinks)
    logits = model(text[:, :-1].flatten(), attend, linear)
    return F.cross_entropy(logits, text[:, 1:].flatten())


def evaluate(
    model: Decoder, held_out: Tensor, linear: Callable[..., Tensor] = F.linear, count: int = 32
) -> float:
    """Mean nats per byte over `count` pieces of 1024 bytes at even distances."""
    pieces = data.spread(held_out, count, 1024)
    with torch.no_grad():
        return sum(loss(model, p, 1024, linear).item() for p in pieces.split(4)) / (count / 4)


def train(
    model: Decoder, text: Tensor, run: Run, tell: Callable[[str], None] = print
) -> tuple[Lora, float]:
    """An adapter for text uint8 [bytes], and the seconds it took; the same for the same run."""
    for p in model.parameters():
        p.requires_grad_(False)
    lora, began = Lora(model, run), time.perf_counter()
    optimiser = torch.optim.AdamW(lora.parameters(), lr=run.rate, weight_decay=0.01)
    for step in range(run.steps):
        warm = min(1.0, (step + 1) / 10)
        rate = run.rate * warm * 0.5 * (1 + math.cos(math.pi * step / run.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = data.batch(text, run.tokens // run.sequence, run.sequence, run.seed, step)
        now = loss(model, batch, run.sequence, lora.linear)
        optimiser.zero_grad()
        now.backward()
        nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
        optimiser.step()
        if step % 25 == 0 or step == run.steps - 1:
            tell(f"step {step}: {now.item():.4f} nats, {time.perf_counter() - began:.0f} s")
    return lora, time.perf_counter() - began
