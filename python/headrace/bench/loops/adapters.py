# SPDX-License-Identifier: Apache-2.0
"""Many adapters: streams that each have their own, in one step, beside a step for each adapter."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import models
from ...adapters import AdapterBank, AdapterConfig, AdapterStore, Base, Module, NewAdapter
from ...models import Decoder
from ...streams import wrap
from .streams import MEMORY, PAGES, Fleet, apart
from .turns import Loop, Side, Size

PARTS = ("query", "key", "value", "output", "up", "down")
RANK, RUN = 8, 250


def base_of(model: Decoder, name: str) -> Base:
    """What a store has to know."""
    shapes = {n: (p.shape[0], p.shape[1]) for n, p in model.named_parameters() if p.dim() == 2}
    return Base(name, shapes)


def made(
    base: Base, parts: Sequence[str], ranks: Sequence[int], count: int, start: int = 0
) -> Iterator[NewAdapter]:
    """Adapters of different weights, cut from one run of random numbers; bf16. `RUN` of one rank
    follow one another."""
    random = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    names = [n for n in base.modules if n.rpartition(".")[2] in parts]
    chance = np.random.default_rng(start)
    for i in range(start, start + count):
        rank, modules, tensors = ranks[i // RUN % len(ranks)], [], {}
        for name in names:
            n, k = base.modules[name]
            modules.append(Module(name, rank, k, n, 2.0 * rank, "BF16"))
            for part, shape in (("a", (rank, k)), ("b", (n, rank))):
                at = int(chance.integers(len(random) - rank * max(n, k)))
                tensors[f"{name}.{part}"] = random[at : at + rank * shape[part == "a"]].view(shape)
        config = AdapterConfig(base.name, tuple(modules))
        yield NewAdapter(config, tensors, name=f"user-{i}")


def fill(
    store: AdapterStore, base: Base, parts: Sequence[str], ranks: Sequence[int], *, count: int
) -> float:
    """Registers adapters; gives the seconds."""
    began = time.perf_counter()
    store.add_base(base.name, base.modules)
    for start in range(0, count, 2000):
        store.add_many(made(base, parts, ranks, count=min(2000, count - start), start=start))
    return time.perf_counter() - began


def merged(model: Decoder, new: NewAdapter) -> Decoder:
    """The model with an adapter added to its weights."""
    whole = copy.deepcopy(model)
    for module in new.config.modules:
        a, b = (torch.as_tensor(new.tensors[f"{module.name}.{part}"]).float() for part in "ab")
        whole.get_parameter(module.name).data.add_(module.alpha / module.rank * b @ a)
    return whole


def sizes(quick: bool) -> Iterator[Size]:
    """Adapters, a stream on each."""
    model = models.load("bytes-stream")
    for count in (1, 4) if quick else (1, 4, 16, 64):
        yield _size(model, count, max(1, 32 // count))


def _size(model: Decoder, count: int, steps: int) -> Size:
    base = base_of(model, "bytes-stream")
    folder = tempfile.TemporaryDirectory(prefix="bench-adapters-")
    store = AdapterStore(Path(folder.name) / "store")
    fill(store, base, PARTS, (RANK,), count=count)
    modules = [n for n in base.modules if n.rpartition(".")[2] in PARTS]
    fleets, banks = [], []
    for served in (True, True, False):
        bank = None
        if served:
            bank = AdapterBank(base, slots=count, store=store, rank_rows=RANK * count,
                               max_rank=RANK, modules=modules)  # fmt: skip
            banks.append(bank)
        engine = wrap(model, memory=MEMORY, adapters=bank, pool_pages=PAGES * count + 32 * 8)
        names = [f"user-{i}" if served else None for i in range(count)]
        fleets.append(Fleet(engine, [engine.open(adapter=name) for name in names]))
    batch, loop, plain = fleets
    weights = count * store.open("user-0").size

    def error() -> float:
        """From a step for each; and the first from a model with the adapter in its weights."""
        (new,) = made(base, PARTS, (RANK,), count=1)
        with wrap(merged(model, new), memory=MEMORY) as whole:
            alone = Fleet(whole, [whole.open()])
            with batch.engine.open(adapter="user-0") as again:
                mine = Fleet(batch.engine, [again])
                gap = apart(mine.together(logits=True), alone.together(logits=True))
        return max(gap, apart(batch.together(logits=True), loop.in_turn(logits=True)))

    def close() -> None:
        for fleet in fleets:
            fleet.engine.close()
        for bank in banks:
            bank.close()
        store.close()
        folder.cleanup()

    def kept(fleet: Fleet, more: int) -> Any:
        return lambda: fleet.engine.resident_bytes + more

    sides = [
        Side("one step", lambda: batch.round(batch.together, steps), kept(batch, weights)),
        Side("adapter by adapter", loop.round_in_turn, kept(loop, weights)),
        Side("without adapters", lambda: plain.round(plain.together, steps), kept(plain, 0)),
    ]
    return Size(count, sides, error, 1e-3, close=close)


LOOP = Loop(
    "adapters",
    "a token of every stream, each on an adapter of rank 8 at six sites of every layer",
    "adapters",
    "tokens/s",
    "logits of a step for each adapter, and of the model with the adapter in its weights",
    sizes,
)
