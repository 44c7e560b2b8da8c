# SPDX-License-Identifier: Apache-2.0
"""For each thing that a view can get wrong, the comparison with the oracle notices."""

from dataclasses import replace

import numpy as np
import pytest

from headrace import Absolute, InCache, Sink, Window, ops, oracle, wrap
from headrace.memory import UNLIMITED, Edit, view

from .tiny import TinyDecoder, gap, streamed, tokens

MEMORY = Sink(4) + Window(24)
PLAIN = view.entries


def pinned(row):
    return row[view.REACH] == UNLIMITED


def change(column, by, rows):
    for row in rows:
        row[column] += by


def no_cap(rows):
    for row in rows:
        row[view.CAP] = UNLIMITED


def no_sinks(rows):
    rows[:] = [row for row in rows if not pinned(row)]


def no_oldest_page(rows):
    del rows[1 if pinned(rows[0]) else 0]


VIEWS = {
    "no cap": no_cap,
    "cap too large by one": lambda rows: change(view.CAP, 1, filter(pinned, rows)),
    "cap too small by one": lambda rows: change(view.CAP, -1, filter(pinned, rows)),
    "reach too large by one": lambda rows: change(
        view.REACH, 1, (row for row in rows if not pinned(row))
    ),
    "reach too small by one": lambda rows: change(
        view.REACH, -1, (row for row in rows if not pinned(row))
    ),
    "no sinks": no_sinks,
    "a sink too few": lambda rows: change(view.COUNT, -1, filter(pinned, rows)),
    "no oldest page": no_oldest_page,
    "no newest page": lambda rows: rows.pop(),
    "first slot off by one": lambda rows: change(
        view.FIRST, -1, (row for row in rows if row[view.FIRST])
    ),
    "origin off by one": lambda rows: change(view.ORIGIN, 1, rows[-1:]),
    "order off by one": lambda rows: change(view.ORDER, 1, rows[-1:]),
}


def error(positions=None, sink_logits=False):
    model, fed = TinyDecoder(sink_logits=sink_logits), tokens(120)
    positions = positions or InCache()
    want = oracle(model, fed, MEMORY, positions)
    engine = wrap(model, memory=MEMORY, positions=positions, page_size=16)
    return gap(streamed(engine, fed, 7), want)


@pytest.mark.parametrize("name", VIEWS)
def test_a_wrong_view_is_noticed(monkeypatch, name):
    def wrong(table, oldest, *more):
        rows = [list(row) for row in PLAIN(table, oldest, *more)]
        if table.tokens > 60:
            VIEWS[name](rows)
        return rows

    assert error() < 1e-4
    monkeypatch.setattr(view, "entries", wrong)
    assert not error() < 1e-3


def test_absolute_positions_do_without_the_cap(monkeypatch):
    def uncapped(table, oldest, *more):
        rows = [list(row) for row in PLAIN(table, oldest, *more)]
        no_cap(rows)
        return rows

    monkeypatch.setattr(view, "entries", uncapped)
    assert error(Absolute()) < 1e-4


def test_a_wrong_offset_is_noticed(monkeypatch):
    plain = Edit.grow

    def shifted(self, tables, counts, where):
        grown = plain(self, tables, counts, where)
        slots = np.frombuffer(where, np.int64).reshape(-1, 3)
        slots[:, 2] += slots[:, 1] == 3
        return grown

    monkeypatch.setattr(Edit, "grow", shifted)
    assert error() > 1e-3


def test_a_forgotten_learned_sink_is_noticed(monkeypatch):
    plain = ops.paged_attention
    assert error(sink_logits=True) < 1e-4
    monkeypatch.setattr(
        ops, "paged_attention", lambda *a, **k: plain(*a, **(k | {"sink_logits": None}))
    )
    assert error(sink_logits=True) > 1e-3


def test_the_wrong_scheme_is_noticed():
    model, fed = TinyDecoder(), tokens(120)
    got = streamed(wrap(model, memory=MEMORY, positions=InCache()), fed, 7)
    assert gap(got, oracle(model, fed, MEMORY, Absolute())) > 1e-3


def test_pages_let_go_too_early_are_noticed(monkeypatch):
    plain = Edit.trim

    def eager(self, table, *more):
        trimmed = plain(self, table, *more)
        if len(trimmed.window) > 1 and table.tokens > 60:
            self._retired.append(trimmed.window[0].id)
            return replace(table, window=trimmed.window[1:])
        return trimmed

    monkeypatch.setattr(Edit, "trim", eager)
    assert error() > 1e-3
