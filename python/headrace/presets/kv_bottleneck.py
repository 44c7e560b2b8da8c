# SPDX-License-Identifier: Apache-2.0
"""Discrete Key-Value Bottleneck: a memory that learns from a stream without forgetting the rest.

Träuble et al., Discrete Key-Value Bottleneck (ICML 2023), arXiv 2207.11240; a summary of its method
was read. What an encoder gives is projected by fixed matrices, one per head; each head takes the
nearest of its keys, which were placed by moving averages over some data and then frozen, and gives
the value that belongs to it; a head of the model reads the values. Learning changes values alone,
and of those only the ones that an input chose, so that what others chose stays as it was.

Chosen here: projections drawn from a normal distribution, the mean of the values as logits, one
step of gradient descent on cross-entropy for each batch; the nearest by squared distance, the first
of equals.

Oracle: every distance in fp64, and the gather of the values. There is no cache to encode anew.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import bad_value
from .encoding import BOUND, gap
from .given import numbers
from .proof import Check, Preset

__all__ = ["Bottleneck", "KvBottleneck", "kv_bottleneck"]


class Bottleneck(nn.Module):
    """Projections [heads, key, inputs], keys [heads, codes, key], values [heads, codes, outputs];
    random from `seed`, values 0."""

    projections: Tensor
    keys: Tensor
    values: Tensor

    def __init__(
        self,
        inputs: int = 24,
        outputs: int = 6,
        *,
        heads: int = 8,
        codes: int = 40,
        key: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if key % 16:
            raise bad_value("Bottleneck", "key", "a multiple of 16", key)
        made = torch.Generator().manual_seed(seed)
        drawn = torch.randn(heads, key, inputs, generator=made) * inputs**-0.5
        self.register_buffer("projections", drawn)
        self.register_buffer("keys", torch.randn(heads, codes, key, generator=made))
        self.register_buffer("values", torch.zeros(heads, codes, outputs))


class KvBottleneck:
    """`read(x)` gives logits, `place(x)` moves keys until `freeze`, `learn(x, y)` moves values."""

    def __init__(self, model: Bottleneck, decay: float, rate: float) -> None:
        self.model, self.decay, self.rate, self.frozen = model, decay, rate, False

    @torch.inference_mode()
    def codes(self, x: Tensor) -> Tensor:
        """int64 [heads, n]: the key that every head takes for x fp32 [n, inputs]."""
        chosen, _ = ops.assign(self._projected(x), self.model.keys, metric="l2")
        return chosen.long()

    @torch.inference_mode()
    def read(self, x: Tensor) -> Tensor:
        """Logits [n, outputs]."""
        return self._gathered(self.codes(x))

    @torch.inference_mode()
    def place(self, x: Tensor) -> None:
        """Moves each key towards the mean of what chose it. ValueError once they are frozen."""
        if self.frozen:
            raise bad_value("kv_bottleneck", "place", "keys that move", "frozen ones")
        rows, chosen = self._projected(x), self.codes(x)
        keys = self.model.keys
        for head, (row, code) in enumerate(zip(rows, chosen, strict=True)):
            count = torch.bincount(code, minlength=keys.shape[1])[:, None]
            mean = torch.zeros_like(keys[head]).index_add_(0, code, row) / count.clamp(min=1)
            moved = self.decay * keys[head] + (1 - self.decay) * mean
            keys[head] = torch.where(count > 0, moved, keys[head])

    def freeze(self) -> None:
        """Keys stay from now on."""
        self.frozen = True

    @torch.inference_mode()
    def learn(self, x: Tensor, y: Tensor) -> float:
        """One step on the cross-entropy of answers y int64 [n]; gives it, from before the step.
        ValueError before keys are frozen: values would come to belong to others."""
        if not self.frozen:
            raise bad_value("kv_bottleneck", "learn", "frozen keys", "keys that move", "freeze()")
        chosen = self.codes(x)
        logits = self._gathered(chosen)
        off = logits.softmax(1)
        off[torch.arange(len(y)), y] -= 1
        heads = len(chosen)
        for values, code in zip(self.model.values, chosen, strict=True):
            values.index_add_(0, code, off, alpha=-self.rate / heads)
        return float(F.cross_entropy(logits, y))

    def _projected(self, x: Tensor) -> Tensor:
        heads, key, inputs = self.model.projections.shape
        rows = ops.linear(x, self.model.projections.reshape(heads * key, inputs))
        return rows.view(len(x), heads, key).transpose(0, 1).contiguous()

    def _gathered(self, chosen: Tensor) -> Tensor:
        """The mean of values [n, outputs], head after head, so that it rounds the same way for
        any n."""
        total = self.model.values[0][chosen[0]]
        for values, code in zip(self.model.values[1:], chosen[1:], strict=True):
            total = total + values[code]
        return total / len(chosen)


def kv_bottleneck(model: Bottleneck, *, decay: float = 0.9, rate: float = 3.0) -> KvBottleneck:
    """The system: `place` keys, `freeze` them, `learn` values, `read`.

    decay: of the keys' moving averages. rate: of learning. ValueError where decay is not from 0 to
    below 1.
    """
    numbers("kv_bottleneck", decay=decay, rate=rate)
    if not 0 <= decay < 1:
        raise bad_value("kv_bottleneck", "decay", "0 or more, below 1", decay)
    return KvBottleneck(model, decay, rate)


def oracle(model: Bottleneck, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int64 [heads, n] and logits fp64 [n, outputs], by every distance."""
    rows = torch.einsum("hki,ni->hnk", model.projections.double(), x.double())
    chosen = (rows[:, :, None] - model.keys.double()[:, None]).square().sum(-1).argmin(-1)
    values = model.values.double()
    return chosen, torch.stack([v[c] for v, c in zip(values, chosen, strict=True)]).mean(0)


def check(model: Bottleneck) -> list[Check]:
    """Codes and logits of the oracle; learning that touches what was chosen and nothing else."""
    made = torch.Generator().manual_seed(22)
    classes = model.values.shape[2]
    centres = 4 * torch.randn(classes, model.projections.shape[2], generator=made)
    y = torch.arange(40 * classes) // 40
    x = centres[y] + 0.3 * torch.randn(len(y), centres.shape[1], generator=made)
    system, checks = kv_bottleneck(model), []
    mixed = torch.randperm(len(x), generator=made)
    for part in x[mixed].split(30) * 4:
        system.place(part)
    system.freeze()
    keys, old, latest = model.keys.clone(), 0, model.values.clone()
    for answer in range(classes):  # one class after the other, none seen again
        own = y == answer
        first = y < answer
        before, codes = system.read(x[first]), system.codes(x)
        used = torch.zeros(model.values.shape[:2], dtype=torch.bool)
        used.scatter_(1, codes[:, own], True)
        for _ in range(8):
            system.learn(x[own], y[own])
        changed = (model.values != latest).any(-1)
        old += int((changed & ~used).sum())
        latest = model.values.clone()
        apart = ~used.gather(1, codes[:, first]).any(0)
        old += int((system.read(x[first]) != before)[apart].sum())
    checks.append(Check("values, and answers, of what learning did not choose: changed", old, 0))
    checks.append(Check("keys moved by learning", int((keys != model.keys).sum()), 0))
    chosen, want = oracle(model, x)
    differ = int((system.codes(x) != chosen).sum())
    checks.append(Check("codes that differ from the oracle's", differ, 0))
    got = system.read(x)
    off = gap(got, want)
    checks.append(Check("max |logit - oracle| over max |oracle|", off, BOUND))
    parts = torch.cat([system.read(part) for part in x.split(7)])
    checks.append(Check("7 at a time: logits that differ", int((parts != got).sum()), 0))
    wrong = float((got.argmax(1) != y).double().mean())
    checks.append(Check("wrong answers after all classes, one after the other", wrong, 0.05))
    return checks


PRESET = Preset(
    "kv_bottleneck",
    "Träuble et al., ICML 2023; arXiv 2207.11240",
    kv_bottleneck,
    check,
    Bottleneck,
    oracle,
    oracle,
    kind="net",
)
