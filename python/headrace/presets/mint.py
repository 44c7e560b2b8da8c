# SPDX-License-Identifier: Apache-2.0
"""MinT (PEFT scaling): adapters as versioned state of a session, many of them in one tick.

A position paper, of which the abstract is known: a fine-tuned model is an adapter with a version,
attached to a session; it is loaded when the session opens, stays the same until it closes, and is
evicted by how it is used. Here a stream is the session. It keeps the revision that its adapter's
name meant when it opened; streams of different adapters share one step, in waves where they have
more than the bank has room for.

Oracle: the run of each stream alone; and the dense forward of a model with the adapter merged into
its weights, by plain torch.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..adapters import AdapterBank, AdapterConfig
from ..adapters.config import Module
from ..memory import Region, Sink, Window
from ..streams import Engine, InCache, Stream, oracle, wrap
from ..streams.engine import Model
from .proof import BOUND, Check, Preset, random_tokens

__all__ = ["mint"]

ROUNDING = 1e-5
STREAMS, RANK = 64, 2
MEMORY = Sink(4) + Window(60)


def mint(
    model: Model,
    *,
    bank: AdapterBank | None = None,
    slots: int = 64,
    memory: Region | None = None,
    **options: Any,
) -> Engine:
    """An engine whose streams may each have an adapter of `bank`; `Engine.open(adapter=name)`.

    bank: None makes an empty one with `slots` slots. memory: what a stream keeps, `Sink(4) +
    Window(60)` unless said. Options as in `headrace.wrap`, whose errors it raises.
    """
    bank = AdapterBank.of(model, "base", slots=slots) if bank is None else bank
    return wrap(
        model, memory=MEMORY if memory is None else memory, positions=InCache(), adapters=bank,
        **options,
    )  # fmt: skip


def random_adapter(bank: AdapterBank, seed: int) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """An adapter of rank 2 for every linear module of a bank's base, and its tensors."""
    made = torch.Generator().manual_seed(seed)
    modules, tensors = [], {}
    for name, (outputs, inputs) in bank.base.modules.items():
        if outputs == 1 or inputs == 1 or "embed" in name:
            continue
        modules.append(Module(name, RANK, inputs, outputs, float(RANK)))
        tensors[f"{name}.a"] = torch.randn(RANK, inputs, generator=made) * inputs**-0.5
        tensors[f"{name}.b"] = torch.randn(outputs, RANK, generator=made) * 0.1
    return AdapterConfig(bank.base.name, tuple(modules)), tensors


def merged(model: Any, config: AdapterConfig, tensors: dict[str, Tensor]) -> Any:
    """A copy of the model with an adapter in its weights: W + scale B A."""
    made = copy.deepcopy(model)
    weights = {k.removesuffix(".weight"): p for k, p in made.named_parameters()}
    with torch.no_grad():
        for module in config.modules:
            a, b = (tensors[f"{module.name}.{part}"].double() for part in "ab")
            weights[module.name] += (config.scale(module.name) * b @ a).float()
    return made


def check(model: Model, *, count: int = 24) -> list[Check]:
    """64 streams on 64 adapters beside runs alone; some beside merged weights; a pinned version."""
    fed = [random_tokens(model, count, seed) for seed in range(STREAMS)]
    with mint(model, exact=False) as engine:
        bank = engine.adapters
        assert bank is not None
        made = [random_adapter(bank, seed) for seed in range(STREAMS)]
        for seed, one in enumerate(made):
            bank.load_tensors(*one, name=f"user {seed}")
        names = [f"user {seed}" for seed in range(STREAMS)]
        gap, changed = _together(engine, names, fed)
        checks = [
            Check("64 streams of 64 adapters in one step: |logit - alone|, of the largest logit",
                  gap, ROUNDING),
            Check("adapters that change nothing", changed, 0),
        ]  # fmt: skip
        some = (0, 21, 63)
        streams = [engine.open(adapter=names[i]) for i in some]
        reports = engine.step(dict(zip(streams, (fed[i] for i in some), strict=True)), logits=True)
        want = [oracle(merged(model, *made[i]), fed[i], MEMORY, InCache()) for i in some]
        gap = max(_gap(reports[s].logits, w) for s, w in zip(streams, want, strict=True))
        checks.append(Check("max |logit - dense forward with merged weights|", gap, BOUND))
    with mint(model, slots=5, exact=True) as engine:  # 64 do not fit, nor would half of them
        bank = engine.adapters
        assert bank is not None
        for seed, one in enumerate(made[:16]):
            bank.load_tensors(*one, name=f"user {seed}")
        gap, _ = _together(engine, names[:16], fed[:16])
        checks.append(Check("16 adapters, 5 slots, exact mode: the same", gap, 0))
        checks += _pinned(engine, bank, made[16], fed)
    return checks


def _together(engine: Engine, names: list[str], fed: list[Tensor]) -> tuple[float, int]:
    """How far streams in the same steps are from each alone, as a share of the largest logit, and
    how many adapters do nothing.
    """
    half = len(fed[0]) // 2

    def run(chosen: list[int], adapter: bool = True) -> list[Tensor]:
        streams = [engine.open(adapter=names[i] if adapter else None) for i in chosen]
        out = []
        for part in (slice(half), slice(half, half + 1), slice(half + 1, None)):
            batch = {s: fed[i][part] for s, i in zip(streams, chosen, strict=True)}
            reports = engine.step(batch, logits=True)
            out.append([_rows(reports[s].logits) for s in streams])
        for stream in streams:
            stream.close()
        return [torch.cat(x) for x in zip(*out, strict=True)]

    everyone = list(range(len(names)))
    beside, plain = run(everyone), run(everyone, adapter=False)
    gap = max(_gap(run([i])[0], beside[i]) / float(beside[i].abs().max()) for i in everyone)
    same = sum(_gap(a, b) < 100 * ROUNDING for a, b in zip(beside, plain, strict=True))
    return gap, same


def _pinned(
    engine: Engine, bank: AdapterBank, newer: tuple[AdapterConfig, dict], fed: list[Tensor]
) -> list[Check]:
    """A name is given another revision while a stream has the old one."""
    half = len(fed[0]) // 2

    def read(stream: Stream, part: slice) -> Tensor:
        return _rows(stream.feed(fed[0][part], logits=True).logits)

    with engine.open(adapter="user 0") as stream:
        want = [read(stream, slice(half)), read(stream, slice(half, None))]
        before = stream.adapter
    stream, got = engine.open(adapter="user 0"), []
    got.append(read(stream, slice(half)))
    bank.load_tensors(*newer, name="user 0")
    for i in range(1, 9):  # others take the slots meanwhile
        with engine.open(adapter=f"user {i}") as other:
            read(other, slice(3))
    got.append(read(stream, slice(half, None)))
    moved = stream.adapter != before
    stream.close()
    with engine.open(adapter="user 0") as later:
        renewed = later.adapter != before and _gap(read(later, slice(half)), want[0]) > ROUNDING
    differ = sum(int((a != b).sum()) for a, b in zip(got, want, strict=True))
    return [
        Check("after its name moved on: logits of an open stream that differ", differ, 0),
        Check("after its name moved on: an open stream has another revision", moved, 0),
        Check("a stream opened then has the old one", not renewed, 0),
    ]


def _rows(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return logits


def _gap(got: Tensor | None, want: Tensor) -> float:
    return float((_rows(got) - want).abs().max())


PRESET = Preset("mint", "MinT and PEFT scaling, a position paper", mint, check, kind="scheduler")
