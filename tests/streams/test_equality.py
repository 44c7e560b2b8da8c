# SPDX-License-Identifier: Apache-2.0
"""A stream equals its oracle, however it is fed and wherever its pages lie."""

import functools
from dataclasses import replace

import pytest
import torch

from headrace import Absolute, InCache, Sink, Window, ops, oracle, recompute, wrap
from headrace.streams.positions import Positions

from .tiny import TinyDecoder, gap, streamed, tokens

BOUND = 1e-4
CHUNKS = (1, 7, 64, 257)


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
@pytest.mark.parametrize("sink_logits", [False, True])
def test_chunks_equal_one_another_and_the_oracle(positions, sink_logits):
    model, fed = TinyDecoder(sink_logits=sink_logits), tokens(270)
    memory = Sink(4) + Window(24)
    want = oracle(model, fed, memory, positions)
    engine = wrap(model, memory=memory, positions=positions, page_size=16, chunk=257)
    got = [streamed(engine, fed, chunk) for chunk in CHUNKS]
    for a in got:
        assert gap(a, want) < BOUND
        assert all(gap(a, b) < BOUND for b in got)


@pytest.mark.parametrize(
    ("shape", "page_size"),
    [
        ({"head_dim": 80, "heads": 2, "kv_heads": 1}, 64),
        ({"head_dim": 128, "heads": 2, "kv_heads": 2, "sink_logits": True}, 32),
        ({"head_dim": 48, "heads": 6, "kv_heads": 2, "layers": 3}, 16),
    ],
    ids=str,
)
def test_head_dims_and_page_sizes(shape, page_size):
    model, fed, memory = TinyDecoder(seed=1, **shape), tokens(330, seed=1), Sink(5) + Window(70)
    want = oracle(model, fed, memory, InCache())
    engine = wrap(model, memory=memory, page_size=page_size)
    for chunk in (7, 257):
        assert gap(streamed(engine, fed, chunk), want) < BOUND


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
def test_ring_wraps_of_every_window(positions):
    model = TinyDecoder(layers=1)
    for window in range(1, 33):  # pages of 16: windows up to twice a page
        memory, fed = Sink(2) + Window(window), tokens(2 + 4 * window + 20, seed=window)
        engine = wrap(model, memory=memory, positions=positions, page_size=16)
        got = streamed(engine, fed, chunk=window % 5 + 1)
        assert gap(got, oracle(model, fed, memory, positions)) < BOUND, window


@pytest.mark.parametrize(
    "memory",
    [Window(20), Window(None), Sink(3) + Window(None), Sink(40) + Window(8), Sink(0) + Window(9),
     Sink(2) + Window(5) + Sink(17)],
    ids=repr,
)  # fmt: skip
def test_other_memories(memory):
    model, fed = TinyDecoder(), tokens(90)
    for positions in (InCache(), Absolute()):
        engine = wrap(model, memory=memory, positions=positions, page_size=16)
        want = oracle(model, fed, memory, positions)
        for chunk in (1, 7, 64):
            assert gap(streamed(engine, fed, chunk), want) < BOUND


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_narrow_pages(dtype, bound):
    model, fed, memory = TinyDecoder(), tokens(150), Sink(4) + Window(24)
    engine = wrap(model, memory=memory, dtype=dtype)
    error = gap(streamed(engine, fed, 7), oracle(model, fed, memory, InCache()))
    assert 0 < error < bound
    assert engine.pool.k.dtype == dtype


def test_logits_survive_an_epoch_of_origins():
    model, fed, memory = TinyDecoder(layers=1), tokens(1300), Sink(4) + Window(24)
    got = streamed(wrap(model, memory=memory), fed, 64)
    assert gap(got, oracle(model, fed, memory, InCache())) < BOUND


def test_page_permutation_changes_no_bits():
    model, fed, memory = TinyDecoder(), tokens(200), Sink(4) + Window(24)
    plain = wrap(model, memory=memory, page_size=16)
    stream = plain.open()
    want = [stream.feed(part, logits=True).logits for part in fed.split(7)]

    engine = wrap(model, memory=memory, page_size=16)
    crowd = [engine.open() for _ in range(6)]
    for i, other in enumerate(crowd):
        other.feed(tokens(20 * i + 1))
    for other in crowd[::2]:
        other.close()  # leaves holes, which the stream then fills
    mine, ids = engine.open(), set()
    for part, expected in zip(fed.split(7), want, strict=True):
        assert torch.equal(mine.feed(part, logits=True).logits, expected)
        ids.add(tuple(mine.pages))
    assert ids.isdisjoint({tuple(stream.pages)})
    assert any(list(row) != sorted(row) for row in ids)


def test_split_count_changes_rounding_only(monkeypatch):
    model, fed, memory = TinyDecoder(), tokens(400), Sink(4) + Window(200)
    whole = streamed(wrap(model, memory=memory), fed, 64)
    monkeypatch.setattr(ops, "paged_attention", functools.partial(ops.paged_attention, split=16))
    split = streamed(wrap(model, memory=memory), fed, 64)
    assert 0 < gap(split, whole) < 2e-5


@pytest.mark.parametrize("positions", [InCache(), Absolute()], ids=repr)
def test_four_million_is_as_exact_as_four_thousand(positions):
    model, fed, memory = TinyDecoder(), tokens(200), Sink(4) + Window(24)
    want = oracle(model, fed, memory, positions)
    engine = wrap(model, memory=memory, positions=positions)

    def error(position):
        return (streamed(engine, fed, 7, position=position) - want).square().mean().sqrt()

    assert error(4_000_000) < 1.5 * error(4_000)


class Jump(Positions):
    """Absolute positions of a stream that skipped from its sinks to somewhere far."""

    def __init__(self, sinks, to):
        self.sinks, self.to = sinks, to

    def distance(self, query, key, seen):
        def at(number):
            return torch.where(number < self.sinks, number, self.to + number - self.sinks)

        return at(query) - at(key)


def test_sinks_four_million_away_are_as_exact_as_four_thousand():
    model, fed, memory = TinyDecoder(), tokens(160), Sink(4) + Window(24)

    def error(to):
        stream = wrap(model, memory=memory, positions=Absolute()).open()
        rows = [stream.feed(fed[:4], logits=True).logits]
        stream._lease.table = replace(stream._lease.table, end=to)
        rows += [stream.feed(part, logits=True).logits for part in fed[4:].split(7)]
        want = oracle(model, fed, memory, Jump(4, to))
        return (torch.cat(rows) - want).square().mean().sqrt()

    assert error(4_000_000) < 1.5 * error(4_000)


def test_recompute_equals_the_oracle_until_something_is_evicted_and_not_after():
    model, fed, memory = TinyDecoder(sink_logits=True), tokens(80), Sink(4) + Window(24)
    for positions in (InCache(), Absolute()):
        want = oracle(model, fed, memory, positions)[[0, 3, 23, 27, 60]]
        error = (recompute(model, fed, memory, positions, at=[0, 3, 23, 27, 60]) - want).abs()
        assert error[:4].max() < BOUND
        assert error[4].max() > 0.1


def test_recompute_of_one_layer_is_the_oracle():
    # Keys of a first layer know nothing of other tokens: only positions can make a difference.
    model, fed, memory = TinyDecoder(layers=1), tokens(80), Sink(4) + Window(24)
    for positions in (InCache(), Absolute()):
        want = oracle(model, fed, memory, positions)[[40, 79]]
        assert gap(recompute(model, fed, memory, positions, at=[40, 79]), want) < BOUND
