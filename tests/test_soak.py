# SPDX-License-Identifier: Apache-2.0
"""A short soak holds, and each kind of damage that it looks for is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from headrace.cli.proofs import random_model
from headrace.memory import Lease, PagePool, edit, view

from .streams.conftest import one_thread  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import soak


@pytest.fixture
def played():
    made = []

    def play(operations, **options):
        one = soak.Soak(random_model(), **{"streams": 12, "seed": 1, **options})
        made.append(one)
        one.play(operations)
        one.sample(12)
        return one

    yield play
    for one in made:
        one.close()


def test_a_short_soak_holds(played):
    one = played(2000)
    assert not one.problems
    assert sum(one.operations.values()) == 2000
    assert set(one.operations) == set(soak.WEIGHTS)
    assert one.checks > 20
    assert one.samples > 5
    assert one.parked > 10
    assert 0 < one.drift < soak.BOUND
    assert not one.server.run.events  # nothing of what is over stays
    one.close()
    assert not one.problems


def test_it_does_the_same_again(played):
    first, second = played(400), played(400)
    assert first.operations == second.operations
    assert (first.drift, first.server.now) == (second.drift, second.server.now)
    assert played(400, seed=2).operations != first.operations


def test_a_leak_is_found(played, monkeypatch):
    plain, leaked = PagePool.drop, []

    def leaking(pool, pages):
        pages = list(pages)
        last = [page for page in pages if pool.holders(page) == 1][: not leaked]
        leaked.extend(last)
        plain(pool, [page for page in pages if page not in last])

    monkeypatch.setattr(PagePool, "drop", leaking)
    assert any("pages in use" in problem for problem in played(600).problems)


def test_a_page_given_up_too_early_is_found(played, monkeypatch):
    plain = edit.Edit.trim

    def greedy(self, table, stage=None):
        table = plain(self, table, stage)
        return table if len(table.window) < 4 else edit.replace(table, window=table.window[1:])

    monkeypatch.setattr(edit.Edit, "trim", greedy)
    assert any("of other tokens" in problem for problem in played(300).problems)


def test_a_wrong_holder_is_found(played, monkeypatch):
    plain = Lease.share

    def twice(self):
        self._pool.hold(self.table.page_ids[:1])
        return plain(self)

    monkeypatch.setattr(Lease, "share", twice)
    assert any("number of holders" in problem for problem in played(300).problems)


def test_pages_that_nobody_needs_are_found(played, monkeypatch):
    monkeypatch.setattr(edit.Edit, "trim", lambda self, table, stage=None: table)
    one = played(300, pool_pages=600)
    assert any("without a token alive" in problem for problem in one.problems)


def test_drift_is_found(played, monkeypatch):
    plain = view.entries

    def no_cap(table, oldest, *more):
        return [(*row[:4], view.UNLIMITED, *row[5:]) for row in plain(table, oldest, *more)]

    monkeypatch.setattr(view, "entries", no_cap)
    assert any("from its oracle" in problem for problem in played(400).problems)


def test_the_figures_of_a_record():
    found = soak.soak(600, 8, 0.02, random_model(), 0, 10)
    assert not found["problems"]
    assert found["operations"] == found["asked"] == sum(found["by_kind"].values()) == 600
    assert 0.01 < found["virtual_hours"] < 0.1
    assert len(found["resident_mib"]) == 4
    assert all(m > 50 for m in found["resident_mib"])
    assert torch.isfinite(torch.tensor(found["resident_growth_mib"]))
    assert soak.soak(600, 8, 0.02, random_model(), 0, 0)["operations"] == 0
