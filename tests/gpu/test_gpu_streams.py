# SPDX-License-Identifier: Apache-2.0
"""Engines whose model and pages are on a GPU: streams equal the dense oracle, and blocks that were
archived come back."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

from headrace import PagePool, Sink, Window, models, wrap
from headrace.memory.layout import Layout
from headrace.memory.segment import Record
from headrace.memory.tiers import Tiers
from headrace.streams.oracle import oracle

DEVICE = "cuda"
MEMORY = Sink(4) + Window(60)


def test_streams_equal_the_oracle():
    """Two streams in one call, in chunks of several sizes, well past the window."""
    model = models.load("bytes-stream").to(DEVICE)
    engine = wrap(model, memory=MEMORY, page_size=16)
    gen = torch.Generator().manual_seed(0)
    told = [torch.randint(256, (150,), generator=gen) for _ in "ab"]
    streams = [engine.open() for _ in told]
    logits: list[list[torch.Tensor]] = [[], []]
    for first, last in ((0, 1), (1, 70), (70, 71), (71, 150)):
        fed = {s: x[first:last].to(DEVICE) for s, x in zip(streams, told, strict=True)}
        reports = engine.step(fed, logits=True)
        for seen, stream in zip(logits, streams, strict=True):
            seen.append(reports[stream].logits)
    for x, seen in zip(told, logits, strict=True):
        want = oracle(model, x.to(DEVICE), engine.memory, engine.positions)
        got = torch.cat(seen).double()
        assert (got - want).square().mean().sqrt() <= 1e-4 * want.square().mean().sqrt()


@pytest.mark.parametrize("codec", ["same", "int8"])
def test_archived_blocks_come_back_to_the_device(codec):
    pool = PagePool(2, 9, 2, 64, 16, torch.bfloat16, DEVICE)
    for x in (pool.k, pool.v):
        x.copy_(torch.randn(x.shape))
    layout = Layout.of(pool, codec)
    tiers, want = Tiers(layout, host_blocks=4), []
    for page in pool.take(4):
        block = layout.empty()
        layout.pack(pool, page, block)
        tiers.put([block], [Record(b"", 0, 0, 16, 0, (), b"")])
        want.append((pool.k[:, page].clone(), pool.v[:, page].clone()))
    tiers.attach(pool, 4)
    for layer in range(2):
        pages, faults = tiers.fetch([2, 0, 3], layer)
        assert not faults
        for block, page in zip((2, 0, 3), pages, strict=True):
            for held, there in zip((pool.k, pool.v), want[block], strict=True):
                error = (held[layer, page].float() - there[layer].float()).abs().max()
                assert error <= (0 if codec == "same" else there[layer].abs().max() / 100)
