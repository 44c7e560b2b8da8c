# SPDX-License-Identifier: Apache-2.0
"""In debug mode a step refuses pages that are not its stream's own; without, nobody looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import headrace
from headrace import Archive, Lane, Sink, Window, wrap
from headrace.memory import Edit

from .archived import engine as archived
from .tiny import TinyDecoder, tokens

MEMORY = Sink(4) + Window(24)


def pair(**options):
    """An engine with two streams, a and b, that have read."""
    engine = wrap(TinyDecoder(layers=1), memory=MEMORY, page_size=16, **options)
    made = [engine.open() for _ in "ab"]
    engine.step({stream: tokens(50, seed) for seed, stream in enumerate(made)})
    return engine, *made


def state_of(engine, *streams):
    pool = engine.pool
    held = [pool.holders(page) for page in range(pool.pages)]
    return held, list(pool.filled), [(x.tokens, x.pages) for x in streams]


def refused(engine, step, told, *streams):
    before = state_of(engine, *streams)
    with headrace.debug(), pytest.raises(ValueError, match=told):
        step()
    assert state_of(engine, *streams) == before


def feeds(engine, a, b):
    """A step of the most frequent kind, and one that goes the long way."""
    yield lambda: engine.step({a: tokens(1), b: tokens(1)})
    yield lambda: engine.step({a: tokens(1), b: tokens(1)}, logits=True)


@pytest.mark.parametrize("way", [0, 1], ids=["abreast", "the long way"])
def test_entries_of_another_stream(way):
    engine, a, b = pair()
    a.feed(tokens(1))  # now the cell of its table says what its entries are
    b.feed(tokens(1))
    mine, other = a._lease.table.cell, b._lease.table.cell
    own = mine[2]
    mine[2] = other[2]
    step = list(feeds(engine, a, b))[way]
    told = rf"^step\(entries\): expected pages that stream 0 of the batch holds, got {b.pages[0]}$"
    refused(engine, step, told, a, b)
    mine[2] = own
    with headrace.debug():
        step()
    a._lease.table.cell[:] = [a._lease.table.pinned, a._lease.table.window, other[2], 0]
    engine.step({a: tokens(1), b: tokens(1)})  # nobody looks


@pytest.mark.parametrize("way", [0, 1], ids=["abreast", "the long way"])
def test_slots_of_another_stream(way, monkeypatch):
    engine, a, b = pair()
    grow, foreign = Edit.grow, b.pages[-1]

    def astray(self, tables, counts, where):
        made = grow(self, tables, counts, where)
        np.frombuffer(where, np.int64).reshape(-1, 3)[0] = foreign, 15, 0
        return made

    monkeypatch.setattr(Edit, "grow", astray)
    told = rf"^step\(where\): expected pages that stream 0 of the batch holds, got {foreign}$"
    refused(engine, list(feeds(engine, a, b))[way], told, a, b)


@pytest.mark.parametrize("together", [True, False])
def test_a_table_that_nobody_holds(together):
    """Pages of b in the table of a, which a never got."""
    engine, a, b = pair()
    own, page = a._lease.table, b._lease.table.window[0].id
    a._lease.table = replace(own, window=b._lease.table.window, cell=[])
    told = rf"^step\(batch\): expected streams .*, got page {page}, held 1 times, with 2$"
    batch = {a: tokens(1), b: tokens(1)} if together else {a: tokens(1)}
    refused(engine, lambda: engine.step(batch), told, b)
    a._lease.table = own
    with headrace.debug():
        engine.step(batch)


def test_what_is_shared_may_be_read():
    """Forks, marks, lanes that read one another, and pages that were recalled."""
    with headrace.debug():
        engine, a, b = pair()
        fork, mark = a.fork(), a.mark()
        engine.step({a: tokens(40), b: tokens(3), fork: tokens(9)})
        a.rollback(mark)
        fork.close()
        engine.step({a: tokens(40), b: tokens(3)})

        lanes = Lane("source"), Lane("target", reads=("source",))
        with wrap(TinyDecoder(layers=1), memory=MEMORY, lanes=lanes, page_size=16) as engine:
            stream = engine.open_lanes()
            for seed in range(4):
                stream.feed({"source": tokens(20, seed), "target": tokens(7, seed)})

        with archived(Archive("mean")) as engine:
            stream = engine.open()
            stream.feed(tokens(400))
            assert sum(stream.recall(tokens(5), top=3).tokens) > 0
            stream.feed(tokens(9))
