# SPDX-License-Identifier: Apache-2.0
"""Forks and marks share pages; every branch equals the oracle of its own history."""

import gc
import random

import pytest
import torch

from headrace import Absolute, Fold, InCache, Relative, Sink, Window, oracle, wrap

from .tiny import TinyDecoder, gap, tokens

MEMORY = Sink(4) + Window(24)


@pytest.mark.parametrize(
    ("memory", "positions"),
    [
        (MEMORY, InCache()),
        (MEMORY, Absolute()),
        (MEMORY, Relative(20, 7)),
        (MEMORY >> Fold(), InCache()),
        (MEMORY >> Fold("elu1", raw=True), Absolute()),
    ],
    ids=repr,
)
def test_any_tree_of_branches_equals_the_oracle(memory, positions):
    model, pick = TinyDecoder(layers=1), random.Random(0)
    engine = wrap(model, memory=memory, positions=positions, page_size=16, pool_pages=200)
    branches = [(engine.open(), [])]
    marks = []
    for step in range(120):
        stream, history = pick.choice(branches)
        move = pick.random()
        if move < 0.15 and len(branches) < 5:
            branches.append((stream.fork(), list(history)))
        elif move < 0.3:
            marks.append((stream.mark(), list(history)))
        elif move < 0.45 and any(mark.stream is stream for mark, _ in marks):
            mark, then = pick.choice([m for m in marks if m[0].stream is stream])
            stream.rollback(mark)
            history[:] = then
        else:
            part = tokens(pick.randint(1, 30), seed=step).tolist()
            history += part
            got = stream.feed(part, logits=True).logits
            want = oracle(model, torch.tensor(history), memory, positions)[-len(part) :]
            assert gap(got, want) < 1e-4, step


def test_fork_copies_nothing():
    engine = wrap(TinyDecoder(), memory=MEMORY)
    stream = engine.open()
    stream.feed(tokens(100))
    before = engine.resident_bytes
    forks = [stream.fork() for _ in range(50)]
    assert engine.resident_bytes == before
    assert all(fork.pages == stream.pages for fork in forks)
    stream.close()
    assert engine.resident_bytes == before
    for fork in forks:
        fork.close()
    assert engine.resident_bytes == 0


def test_rollback_is_repeatable_and_rewrites_in_place():
    model = TinyDecoder()
    engine = wrap(model, memory=MEMORY, exact=True)
    stream = engine.open()
    stream.feed(tokens(50))
    mark, pages = stream.mark(), stream.pages
    first = stream.feed(tokens(9, 1), logits=True)
    for _ in range(3):
        stream.rollback(mark)
        assert stream.tokens == 50
        assert stream.pages == pages
        again = stream.feed(tokens(9, 1), logits=True)
        assert torch.equal(again.logits, first.logits)
        assert torch.equal(again.nll, first.nll)
        assert stream.pages == pages  # the rewound slots were written over


def test_a_rewound_page_that_another_holds_is_not_written():
    model = TinyDecoder()
    engine = wrap(model, memory=MEMORY, exact=True)
    stream = engine.open()
    stream.feed(tokens(50))
    mark = stream.mark()
    stream.feed(tokens(9, 1))
    fork = stream.fork()
    twin = wrap(model, memory=MEMORY, exact=True).open()
    twin.feed(tokens(50))
    twin.feed(tokens(9, 1))
    stream.rollback(mark)
    stream.feed(tokens(9, 2))
    assert stream.pages[-1] != fork.pages[-1]
    part = tokens(30, 3)
    assert torch.equal(fork.feed(part, logits=True).logits, twin.feed(part, logits=True).logits)


def test_a_mark_outlives_eviction_of_all_it_saw():
    model = TinyDecoder()
    engine = wrap(model, memory=MEMORY, page_size=16)
    stream = engine.open()
    stream.feed(tokens(60))
    mark = stream.mark()
    want = stream.feed(tokens(20, 1), logits=True).logits
    stream.feed(tokens(300, 2))
    stream.rollback(mark)
    assert torch.equal(stream.feed(tokens(20, 1), logits=True).logits, want)


def test_pages_come_back_from_release_close_and_garbage():
    engine = wrap(TinyDecoder(), memory=MEMORY, page_size=16)
    stream = engine.open()
    stream.feed(tokens(100))
    steady = engine.pool.live_pages
    mark = stream.mark()
    stream.feed(tokens(100))
    assert engine.pool.live_pages > steady
    mark.release()
    mark.release()
    assert engine.pool.live_pages == steady
    with pytest.raises(ValueError, match=r"^rollback\(mark\): .* got a released one$"):
        stream.rollback(mark)
    lost = stream.mark()
    stream.feed(tokens(100))
    del lost
    gc.collect()
    assert engine.pool.live_pages == steady
    other = engine.open()
    other.feed(tokens(100))
    del other
    gc.collect()
    assert engine.pool.live_pages == steady
    stream.close()
    assert engine.pool.live_pages == 0


def test_closing_the_engine_closes_all():
    with wrap(TinyDecoder(), memory=MEMORY) as engine:
        stream = engine.open()
        stream.feed(tokens(100))
        mark = stream.mark()
    assert stream.closed
    assert engine.resident_bytes == 0
    mark.release()
    engine.close()
    for use in (lambda: stream.feed([1]), engine.open, stream.fork, stream.mark):
        with pytest.raises(ValueError, match="closed one"):
            use()


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
@pytest.mark.parametrize("page_size", [16, 64])
def test_memory_is_constant(chunk, page_size):
    engine = wrap(TinyDecoder(layers=1), memory=MEMORY, page_size=page_size)
    stream = engine.open()
    resident, reports = set(), []
    for at in range(0, 1500, chunk):
        reports.append(stream.feed(tokens(chunk, at)))
        if at > 150:
            resident.add(engine.resident_bytes)
    assert len(resident) == 1
    assert {r.alive for r in reports[-5:]} == {27}
    assert reports[-1].evicted == stream.tokens - 27
