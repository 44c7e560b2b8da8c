# SPDX-License-Identifier: Apache-2.0
"""CarelessWhisper: an encoder made causal by adapters, which reads speech 300 ms at a time.

Krichli et al., CarelessWhisper (2025), arXiv 2508.12301, github.com/tomer9080/
CarelessWhisper-Streaming; its released encoder was read. A trained encoder sees all of a recording;
low-rank adapters on the query, key, value and output of its attention make it see, in blocks of
`chunk` frames of 20 ms, its own block and all before; the first block is longer by `extra` blocks.
Keys and values of earlier blocks are kept. The source adds sinusoids that end at 30 s, runs its
convolutions over all of the audio at every chunk, and writes the unstable end of the text anew with
each; that decoder is not part of this preset.

Chosen here: chunks of 15 frames, 300 ms; rotary positions, which do not end, over the 1500 frames
(30 s) before a chunk; one strided convolution in front that sees 20 ms and 10 ms before; adapters
of any ranks from a bank, of which every stream may have its own in the same step.

Oracle: the whole encoder under the mask of blocks, dense, with each adapter's product added to the
weights. Recompute: the same encoder seeing both ways, over the frames of the window anew at every
chunk.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, AdapterBank, AdapterConfig
from ..models import Conformer, ConformerConfig
from ..streams import Encoder
from .encoding import BOUND, chunked, dense, equality, gap, streamed, whole
from .given import counts
from .proof import Check, Preset

__all__ = ["bank", "careless_whisper", "sites"]

CHUNK, WINDOW = 15, 1500
ADAPTED = ("query", "key", "value", "output")


def careless_whisper(
    model: Any, *, chunk: int = CHUNK, extra: int = 0, window: int = WINDOW, **options: Any
) -> Encoder:
    """The system: `open(adapter=name).feed(frames)` of 10 ms each.

    chunk: frames of 20 ms that leave together. extra: chunks more in the first. window: frames
    before a chunk that it sees. Options as in `headrace.streams.Encoder`, whose errors it raises;
    adapters= is the `bank`.
    """
    counts("careless_whisper", least=0, extra=extra)
    return Encoder(model, chunk=chunk, first=chunk * (1 + extra), window=window, **options)


def bank(model: Any, **options: Any) -> AdapterBank:
    """A bank for what the source adapts. Options as of `headrace.AdapterBank`."""
    made: AdapterBank = AdapterBank.of(model, "careless_whisper", modules=sites(model), **options)
    return made


def sites(model: Any) -> list[str]:
    """Modules that the source adapts."""
    return [f"blocks.{i}.{part}" for i in range(model.config.layers) for part in ADAPTED]


def oracle(
    model: Any,
    frames: Tensor,
    *,
    adapter: Adapter | None = None,
    chunk: int = 15,
    extra: int = 0,
    window: int = 1500,
) -> Tensor:
    """Encodings fp64 [T // 2, width] of a whole file [T, inputs]."""
    first = chunk * (1 + extra)
    model = merged(model, adapter)
    return whole(model, frames, lambda m, n: dense(m, chunked(n, chunk, window, first)))


def recompute(
    model: Any,
    frames: Tensor,
    *,
    adapter: Adapter | None = None,
    chunk: int = CHUNK,
    extra: int = 0,
    window: int = WINDOW,
) -> Tensor:
    """The same where every chunk is encoded anew with the `window` frames before it, both ways."""
    stride, model, out = 2**model.config.stages, merged(model, adapter), []
    at, size = 0, chunk * (1 + extra)
    while at < len(frames) // stride:
        before = min(at, window)
        part = frames[stride * (at - before) : stride * (at + size)]
        out.append(whole(model, part, lambda m, n: dense(m, torch.ones(n, n).bool()))[before:])
        at, size = at + size, chunk
    return torch.cat(out)


def merged(model: Any, adapter: Adapter | None) -> Any:
    """A copy of the model in fp64 with an adapter's products added to its weights."""
    model = copy.deepcopy(model).double()
    weights = dict(model.named_parameters())
    if adapter is None:
        return model
    with torch.no_grad():
        for module in adapter.config.modules:
            a, b = adapter.a(module.name).double(), adapter.b(module.name).double()
            weights[module.name].add_(b @ a, alpha=adapter.scale(module.name))
    return model


def check(model: Any) -> list[Check]:
    """Equality with the masked encoder, with adapters and without, all of them in one step."""
    frames = torch.randn(2 * 100 + 1, 16, generator=torch.Generator().manual_seed(14))
    adapters, checks = bank(model, slots=4, max_rank=8, background=False), []
    loaded = load(adapters, (2, 8, 5))
    names = [None, *loaded]

    def make(**options: Any) -> Encoder:
        return careless_whisper(model, extra=1, window=40, adapters=adapters, **options)

    for one in loaded[:2]:
        want = oracle(model, frames, adapter=adapters.find(one), extra=1, window=40)
        checks += equality(make, frames, want, (7, len(frames)), one, adapter=one)
    encoder = make()
    apart = [streamed(encoder, frames, len(frames), adapter=name)[0] for name in names]
    streams = [encoder.open(adapter=name) for name in names]
    out = encoder.step(dict.fromkeys(streams, frames))
    rest = encoder.step({s: frames[:0] for s in streams}, ends=True)
    differ = worst = 0.0
    for stream, alone, name in zip(streams, apart, names, strict=True):
        got = torch.cat([out[stream], rest[stream]])
        differ += int((got != alone).sum())
        adapter = None if name is None else adapters.find(name)
        worst = max(worst, gap(got, oracle(model, frames, adapter=adapter, extra=1, window=40)))
    checks.append(Check("adapters of 3 ranks and none in one step: values that differ", differ, 0))
    claim = "adapters of 3 ranks and none in one step: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, worst, BOUND))
    encoder.close()
    adapters.close()
    return checks


def load(adapters: AdapterBank, ranks: tuple[int, ...]) -> list[str]:
    """Random adapters of these ranks in a bank; their names."""
    made = torch.Generator().manual_seed(15)
    names = []
    for rank in ranks:
        tensors = {}
        for name, (outputs, inputs) in adapters.base.modules.items():
            if name.split(".")[-1] in ADAPTED:
                tensors[f"{name}.a"] = torch.randn(rank, inputs, generator=made) * inputs**-0.5
                tensors[f"{name}.b"] = torch.randn(outputs, rank, generator=made) * 0.3
        config = AdapterConfig.of(adapters.base.name, tensors, alpha=float(rank))
        names.append(f"rank {rank}")
        adapters.load_tensors(config, tensors, name=names[-1])
    return names


def small_encoder() -> Conformer:
    """A random transformer encoder."""
    return Conformer(ConformerConfig(stages=1, taps=0, halves=False), seed=3)


PRESET = Preset(
    "careless_whisper",
    "Krichli et al., 2025; github.com/tomer9080/CarelessWhisper-Streaming",
    careless_whisper,
    check,
    small_encoder,
    oracle,
    recompute,
    kind="net",
)
