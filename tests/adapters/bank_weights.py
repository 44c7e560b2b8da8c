# SPDX-License-Identifier: Apache-2.0
"""Adapters for the small decoder of the stream tests, what they make of its weights, and banks."""

from __future__ import annotations

import copy

import torch

from headrace import AdapterBank
from headrace.adapters import AdapterConfig, Base, Module
from headrace.adapters.blob import Adapter
from headrace.adapters.packing import pack

from ..streams.tiny import TinyDecoder

CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def shapes(model):
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.dim() == 2}


def adapter(
    seed,
    rank=4,
    model=None,
    parts=("q", "v", "o", "up", "down"),
    dtype=torch.float32,
    bias=False,
    dora=False,
    alpha=8.0,
    layers=None,
    loud=0.3,
):
    """(config, tensors) for TinyDecoder; rank: one, or one for every module in turns."""
    model = model or TinyDecoder()
    g = torch.Generator().manual_seed(seed)
    modules, tensors = [], {}
    ranks = (rank,) if isinstance(rank, int) else rank
    for layer in range(model.config.layers) if layers is None else layers:
        for part in parts:
            name = f"{part}.{layer}"
            n, k = shapes(model)[name]
            r = ranks[len(modules) % len(ranks)]
            code = CODES[dtype]
            modules.append(
                Module(name, r, k, n, alpha, code, "F32" if bias else None, code if dora else None)
            )
            tensors[f"{name}.a"] = (torch.randn(r, k, generator=g) * k**-0.5).to(dtype)
            tensors[f"{name}.b"] = (torch.randn(n, r, generator=g) * loud).to(dtype)
            if bias:
                tensors[f"{name}.bias"] = torch.randn(n, generator=g) * 0.3
            if dora:
                tensors[f"{name}.magnitude"] = (0.5 + torch.rand(n, generator=g)).to(dtype)
    return AdapterConfig("tiny", tuple(modules)), tensors


def merged(model, config, tensors):
    """A model whose weights have the adapter in them (no bias: the decoder has none)."""
    made = copy.deepcopy(model)
    weights = dict(made.named_parameters())
    with torch.no_grad():
        for m in config.modules:
            w = weights[m.name]
            b, a = (tensors[f"{m.name}.{part}"].double() for part in "ba")
            new = w.double() + config.scale(m.name) * b @ a
            if f"{m.name}.magnitude" in tensors:
                new *= (tensors[f"{m.name}.magnitude"].double() / new.norm(dim=1))[:, None]
            w.copy_(new)
    return made


def base(model=None):
    return Base("tiny", shapes(model or TinyDecoder()), ("org/tiny",))


X = torch.randn(5, 32, generator=torch.Generator().manual_seed(9))


def bank_of(**options):
    options = {"slots": 4, "rank_rows": 24, "max_rank": 12, **options}
    return AdapterBank(base(), **options)


def state(bank):
    """What must be the same after an error: who is where, and every number that a kernel reads."""
    seats = bank._seats
    tables = seats.tables
    return (
        [(r.revision, r.slot, r.extents, r.holds, r.pinned, r.worth) for r in bank.residents()],
        sorted(seats.free_slots), seats.rows.runs(), dict(bank._names), vars(bank.stats).copy(),
        tables.rows.tolist(), tables._ranks.tolist(),
    )  # fmt: skip


def update(bank, site, name, x, outputs):
    """What the slot of `name` adds at a site to 0 for each row of x."""
    y = torch.zeros(len(x), outputs)
    with bank.route([bank.find(name)], [len(x)]) as route:
        route.add_to(site, x, y)
    return y


def dense(config, tensors, module, x):
    a, b = (tensors[f"{module}.{part}"].double() for part in "ab")
    return config.scale(module) * (x.double() @ a.T) @ b.T


def packed(config, tensors):
    """An Adapter of its own, which no bank has."""
    digest, blob = pack("test", config, tensors)
    return Adapter("test", blob, digest.hex())
