# SPDX-License-Identifier: Apache-2.0
"""What the presets of schedulers share: a server with a policy, and runs of traces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory import Region, Window
from ..streams import Clock, Event, Linear, Run, Server, Virtual, serve, wrap
from ..streams.engine import Model
from ..streams.policies import Policy

COST = Linear(step=5e-3, token=5e-4, copied=2e-3)
"""Seconds of a step on the clock of the proofs."""


class Costless:
    """Stands in for a model where the claim is of order and time alone."""

    config = SimpleNamespace(vocab=256, layers=1, kv_heads=1, head_dim=16)
    inv_freq = torch.ones(8, dtype=torch.float64)

    def __call__(self, tokens: Tensor, attend: Any, linear: Any = None) -> Tensor:
        return F.one_hot((tokens * 7 + 3) % 256, 256).float()

    def sink_logits(self, layer: int) -> None:
        return None


def server(
    model: Model,
    policy: Policy,
    *,
    clock: Clock | None = None,
    budget: int = 256,
    degrade: str = "late",
    memory: Region | None = None,
    **options: Any,
) -> Server:
    """A server of an engine of its own; everything stays by default. Options as in `wrap`."""
    engine = wrap(model, memory=Window(None) if memory is None else memory, **options)
    return Server(engine, policy, clock, budget=budget, degrade=degrade)


def ran(
    model: Any, trace: Sequence[Event], policy: Policy, *, pages: int = 1000, budget: int = 16
) -> Run:
    """A trace on the virtual clock."""
    options: dict[str, Any] = {"page_size": 16, "pool_pages": pages}
    with wrap(model, memory=Window(None), exact=True, **options) as engine:
        return serve(engine, trace, policy, Virtual(COST), budget=budget)


def differing(one: Run, two: Run) -> int:
    """Answers that are not the same, token for token."""
    return sum(one.outputs[i] != said for i, said in two.outputs.items())


def in_time(run: Run) -> float:
    """Share of the streams all of whose events kept their deadlines."""
    kept: dict[str, bool] = {}
    for out in run.outcomes:
        if out.due < math.inf:
            kept[out.stream] = kept.get(out.stream, True) and not out.missed
    return sum(kept.values()) / len(kept)


def parkings(run: Run) -> list[tuple[float, str, str]]:
    """When a stream gave its pages up, which, and how."""
    return [(turn["at"], name, how) for turn in run.log for name, how in turn.get("parked", ())]
