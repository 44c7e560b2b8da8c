# SPDX-License-Identifier: Apache-2.0
"""A stream equals its oracle, however it is fed."""

import pytest
import torch
from headrace import Absolute, InCache, Sink, Window, oracle, wrap

from .tiny import TinyDecoder

BOUND = 1e-4


def tokens(count, seed=0):
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed))


def streamed(engine, fed, chunk, **kwargs):
    with engine.open(**kwargs) as stream:
        return torch.cat([stream.feed(part, logits=True).logits for part in fed.split(chunk)])


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
@pytest.mark.parametrize("sink_logits", [False, True])
def test_chunks_equal_the_oracle(positions, sink_logits):
    model, fed = TinyDecoder(sink_logits=sink_logits), tokens(270)
    memory = Sink(4) + Window(24)
    want = oracle(model, fed, memory, positions)
    for chunk in (1, 7, 64, 257):
        engine = wrap(model, memory=memory, positions=positions, page_size=16)
        got = streamed(engine, fed, chunk)
        assert (got - want).abs().max() < BOUND, chunk
