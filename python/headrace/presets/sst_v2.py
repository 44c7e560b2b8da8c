# SPDX-License-Identifier: Apache-2.0
"""SST V2: every layer hands its latent to itself at the next position, for as long as it reads.

Aviss, State Stream Transformer V2 (2026), arXiv 2605.00206; its abstract was read. In every decoder
layer what the feed-forward step gives at one position is blended into what it gets at the next, by
learned shares, so that a latent is streamed across the sequence beside the keys and values. To
train in spite of the recurrence, two parallel passes take the place of it: the second blends in the
latents that the first made, shifted by a position.

Chosen here: z = (1 - a) x + a h, with x what attention left, h the layer's output one position
before (0 at the first) and a a share for every channel; the layer's output is z and its
feed-forward step. Passes are repeated until nothing changes: after p passes the first p positions
are those of the recurrence, others approach them. The source may also think on at a position, in
more iterations over it; that is not part of this preset. The engine holds keys and values, in any
memory; positions are read one by one, and many streams in one step.

Oracle: the parallel passes at convergence, dense. Recompute is the same: nothing is evicted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..memory import Region, Window
from ..models.conformer import normed
from ..streams import Absolute, Stream, wrap
from ..streams.positions import Positions
from .encoding import BOUND, Mix, dense, gap
from .proof import Check, Preset

__all__ = ["SstV2", "StateDecoder", "sst_v2"]


class StateDecoder(nn.Module):
    """A byte decoder with a latent per layer; random weights from `seed`.

    carried: [layers, T, width], what every row gets from the position before; a call leaves
    [layers, T, width] of its own in `left`.
    """

    inv_freq: Tensor
    mean: Tensor

    def __init__(self, *, layers: int = 2, width: int = 32, share: float = 0.15, seed: int = 0):
        super().__init__()
        self.config = SimpleNamespace(vocab=256, layers=layers, kv_heads=2, head_dim=16)
        self.width, self.carried, self.left = width, torch.zeros(0), torch.zeros(0)
        made, inner = torch.Generator().manual_seed(seed), 32

        def weight(rows: int, columns: int, loud: float = 1.0) -> Tensor:
            return loud * torch.randn(rows, columns, generator=made) * columns**-0.5

        self.embedding = nn.Parameter(weight(256, width, width**0.5))
        self.three = nn.ParameterList(weight(3 * inner, width, 1.5) for _ in range(layers))
        self.output = nn.ParameterList(weight(width, inner) for _ in range(layers))
        self.up = nn.ParameterList(weight(2 * width, width) for _ in range(layers))
        self.down = nn.ParameterList(weight(width, 2 * width) for _ in range(layers))
        drawn = torch.rand(layers, width, generator=made)
        self.share = nn.Parameter(2 * share * drawn)  # between 0 and twice `share`
        inv_freq = 10_000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("mean", torch.full((1, width), 1 / width), persistent=False)

    def sink_logits(self, layer: int) -> None:
        """No learned sinks."""

    def forward(self, tokens: Tensor, attend: Mix, linear: Any = F.linear) -> Tensor:
        """Logits [T, 256]; see `headrace.streams.engine.Model`."""
        x, left = self.embedding[tokens], []
        for layer in range(self.config.layers):
            three = linear(normed(x, self.mean, linear), self.three[layer]).chunk(3, -1)
            q, k, v = (y.reshape(len(x), 2, 16) for y in three)
            x = x + linear(attend(layer, q, k, v).reshape(len(x), -1), self.output[layer])
            z = (1 - self.share[layer]) * x + self.share[layer] * self.carried[layer]
            h = torch.relu(linear(normed(z, self.mean, linear), self.up[layer]))
            x = z + linear(h, self.down[layer])
            left.append(x)
        self.left = torch.stack(left)
        return linear(normed(x, self.mean, linear), self.embedding)


class SstV2:
    """Streams through a `StateDecoder`; see `sst_v2`."""

    def __init__(self, model: StateDecoder, memory: Region, positions: Positions, options: Any):
        self.model = model
        self.engine = wrap(model, memory=memory, positions=positions, chunk=1, **options)
        self._latents: dict[Stream, Tensor] = {}

    def open(self) -> Stream:
        """A new stream, for `step`."""
        stream = self.engine.open()
        self._latents[stream] = torch.zeros(self.model.config.layers, self.model.width)
        return stream

    def fork(self, stream: Stream) -> Stream:
        """A stream that goes on from there on its own, with the latents too."""
        forked = stream.fork()
        self._latents[forked] = self._latents[stream]
        return forked

    def step(self, batch: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
        """Logits [n, 256] for tokens int64 [n] of many streams, position by position. After an
        error all streams are as before."""
        out: dict[Stream, list[Tensor]] = {stream: [] for stream in batch}
        latents = dict(self._latents)
        marks = {stream: stream.mark() for stream in batch}
        try:
            for at in range(max(map(len, batch.values()), default=0)):
                now = {s: tokens[at : at + 1] for s, tokens in batch.items() if at < len(tokens)}
                self.model.carried = torch.stack([latents[s] for s in now], 1)
                reports = self.engine.step(now, logits=True)
                for i, stream in enumerate(now):
                    logits = reports[stream].logits
                    assert logits is not None
                    out[stream].append(logits)
                    latents[stream] = self.model.left[:, i].clone()
        except BaseException:
            for stream, mark in marks.items():
                stream.rollback(mark)
            raise
        finally:
            for mark in marks.values():
                mark.release()
        self._latents = latents
        none = torch.zeros(0, self.model.config.vocab)
        return {stream: torch.cat([none, *rows]) for stream, rows in out.items()}

    def close(self) -> None:
        """Ends all streams."""
        self.engine.close()


def sst_v2(
    model: StateDecoder,
    *,
    memory: Region | None = None,
    positions: Positions | None = None,
    **options: Any,
) -> SstV2:
    """The system: streams through a `StateDecoder`.

    memory: what a stream keeps; every token unless it says less. positions: `Absolute()` unless
    said. Options as in `headrace.wrap`, whose errors it raises.
    """
    return SstV2(model, memory or Window(None), positions or Absolute(), options)


@torch.inference_mode()
def passes(model: StateDecoder, tokens: Tensor, most: int) -> list[Tensor]:
    """Logits fp64 [T, 256] of all tokens at once after one pass, two, and so on, until nothing
    changes, but not more than `most`."""
    model, count = copy.deepcopy(model).double(), len(tokens)
    causal = torch.ones(count, count).tril().bool()
    model.carried = torch.zeros(model.config.layers, count, model.width, dtype=torch.float64)
    made: list[Tensor] = []
    while len(made) < most:
        made.append(model(tokens, dense(model, causal)))
        shifted = F.pad(model.left, (0, 0, 1, 0))[:, :-1]
        if torch.equal(shifted, model.carried):
            break
        model.carried = shifted
    return made


def oracle(model: StateDecoder, tokens: Tensor) -> Tensor:
    """Logits fp64 [T, 256] of the passes at convergence, T of them at most."""
    return passes(model, tokens, len(tokens))[-1]


def check(model: StateDecoder) -> list[Check]:
    """Equality with the passes at convergence, alone and in a step of many, and after a fork."""
    made = torch.Generator().manual_seed(20)
    text = torch.randint(256, (96,), generator=made)
    all_passes = passes(model, text, len(text))
    want, checks = all_passes[-1], []
    system, alone = sst_v2(model, page_size=16), sst_v2(model, page_size=16)
    stream, other, single = system.open(), system.open(), alone.open()
    out = [system.step({stream: text[:40], other: text.flip(0)[:31]})[stream]]
    out.append(system.step({other: text[:3], stream: text[40:]})[stream])
    claim = "beside another: max |logit - oracle| over max |oracle|"
    checks.append(Check(claim, gap(torch.cat(out), want), BOUND))
    first = alone.step({single: text[:40]})[single]
    forked = alone.fork(single)
    got = torch.cat([first, alone.step({single: text[40:]})[single]])
    differ = int((got != torch.cat(out)).sum())
    checks.append(Check("alone and beside another: logits that differ", differ, 0))
    got = torch.cat([first, alone.step({forked: text[40:]})[forked]])
    claim = "of a fork: max |logit - oracle| over max |oracle|"
    checks.append(Check(claim, gap(got, want), BOUND))
    off = [float((p - want).abs().max() / want.abs().max()) for p in all_passes]
    checks.append(Check("error of two passes over that of one", off[1] / off[0], 1))
    exact = max(gap(p[:n], want[:n]) for n, p in enumerate(all_passes[:8], 1))
    checks.append(Check("the first p positions after p passes, to 8: largest error", exact, 1e-12))
    near = next(n for n, error in enumerate(off, 1) if error < 1e-6)
    checks.append(Check("passes until within 1e-6, over positions", near / len(text), 0.25))
    system.close()
    alone.close()
    return checks


PRESET = Preset(
    "sst_v2",
    "Aviss, 2026; arXiv 2605.00206, abstract",
    sst_v2,
    check,
    StateDecoder,
    oracle,
    oracle,
    kind="net",
)
