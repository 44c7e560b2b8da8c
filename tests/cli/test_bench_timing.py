# SPDX-License-Identifier: Apache-2.0
"""How often what is timed is called, in which order, and with which cache."""

import json
import re
import time
from pathlib import Path

import pytest
import torch

from headrace import bench
from headrace.bench import timing
from headrace.cli import main
from tests.cli.toy import line, shown, toy


def test_warm_and_cold_are_told_apart():
    """Warm: the three calls before are the same. Cold: something else was written in between."""
    called = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    taken = timing.by_cache(runs, 1.0, most=3)
    assert {kind: len(times["a"]) for kind, times in taken.items()} == {"warm": 3, "cold": 3}
    once = ["a", "b"]
    assert called == 2 * once + [*"aaaabbbb"] * 3 + once + once * 3
    assert taken["warm"]["a"] is not taken["cold"]["a"]
    assert timing.last_cache() >= 1 << 18


def test_calls_in_a_row_are_warmed_once(clock):
    called = []

    def taking(name, seconds):
        return lambda: (called.append(name), clock(seconds))

    runs = {"a": taking("a", 0.009), "b": taking("b", 0.004)}
    told = timing.samples(runs, 0.068, before=lambda run: run(), warm=True, row=3)
    # Each turn of three takes a fourth, which is spent and not timed; the last ends when all is.
    assert "".join(called) == "aaaabbbbaaabbbbbbbbbb"
    assert {name: len(each) for name, each in told.items()} == {"a": 5, "b": 10}


def test_calls_that_were_timed_before_count(clock):
    runs = {"a": lambda: clock(0.09)}
    assert len(timing.samples(runs, 0.1, warm=True)["a"]) == 3
    assert len(timing.samples(runs, 0.1, warm=True, had=1)["a"]) == 2


def test_what_is_longer_than_the_cache_takes_is_timed_as_it_comes(clock, monkeypatch):
    """Of warm caches alone a third of that suffices, and three calls are warmed by none."""
    monkeypatch.setattr(timing, "_writing_seconds", lambda size: 0.01)
    called = []
    runs = {"long": lambda: (called.append(0), clock(0.06))}
    taken = timing.by_cache(runs, 0.07, cold=False)
    assert len(taken["warm"]["long"]) == len(called) == 3
    called.clear()
    taken = timing.by_cache(runs, 0.07)
    assert taken["warm"]["long"] is not taken["cold"]["long"]
    assert len(called) > len(taken["warm"]["long"]) + len(taken["cold"]["long"])


def test_what_takes_long_is_called_less(clock):
    called = []

    def taking(name, seconds):
        return lambda: (called.append(name), clock(seconds))

    runs = {"fast": taking("fast", 0.009), "middling": taking("middling", 0.4)}
    runs["slow"] = taking("slow", 8.0)
    taken = timing.samples(runs, 1.0)
    assert {name: len(each) for name, each in taken.items()} == {"fast": 100, "middling": 3,
                                                                 "slow": 1}  # fmt: skip
    assert taken["slow"] == [pytest.approx(8.001)]
    assert called[:6] == ["fast", "middling", "slow"] * 2  # the first time to warm up
    assert len(timing.samples(runs, 5.0, warm=True)["slow"]) == 2
    assert len(timing.samples(runs, 1.0, most=7)["fast"]) == 7


def test_so_many_calls_are_made_where_they_are_asked_for(clock):
    """However long they take; and no more than otherwise of what is quick."""
    runs = {"fast": lambda: clock(0.009), "slow": lambda: clock(8.0)}
    quick = len(timing.samples(runs, 0.5)["fast"])
    with timing.at_least(4):
        taken = timing.samples(runs, 0.5)
        assert len(taken["slow"]) == 4
        assert len(taken["fast"]) == pytest.approx(quick, abs=1)
        taken = timing.by_cache(runs, 0.5)
        assert len(timing.samples(runs, 0.5, most=2)["slow"]) == 2
    assert len(taken["warm"]["slow"]) == 4  # one of them before it was known to take long
    assert 4 < len(taken["warm"]["fast"]) < quick
    with timing.at_least(None):
        assert len(timing.samples(runs, 0.5)["slow"]) == 1
    with timing.at_least(5):
        pairs = []
        timing.over(lambda: clock(8.0), lambda: pairs.append(clock(4.0)), 0.5)
        assert len(pairs) == 1 + 5  # the first to warm up
    assert len(timing.samples({"slow": lambda: clock(8.0)}, 0.5)["slow"]) == 1


def test_the_command_passes_on_how_many_calls(monkeypatch, capsys):
    asked = []

    def each(*_):
        asked.append(timing._calls.get())
        yield from ()

    monkeypatch.setattr(bench, "each", each)
    assert main(["bench", "linear", "--calls", "3"]) == 0
    assert main(["bench", "linear"]) == 0
    assert asked == [3, 0]
    with pytest.raises(SystemExit):
        main(["bench", "linear", "--calls", "0"])
    assert "expected 1 or more, got 0" in capsys.readouterr().err
    assert main(["bench", "--loops", "rings", "--calls", "3"]) == 2


def test_a_variant_takes_turns_in_going_first(clock):
    """A machine that is slower and slower makes neither look slow."""
    called, slower = [], [1.0]

    def taking(name, seconds):
        def run():
            called.append(name)
            slower[0] *= 1.1
            clock(seconds * slower[0] - 0.001)

        return run

    ratio = timing.over(taking("ours", 0.03), taking("other", 0.02), 100.0, most=8)
    assert ratio == pytest.approx(1.5, rel=0.01)
    assert called == ["ours", "other"] + ["other", "ours", "ours", "other"] * 4
    called.clear()
    timing.over(taking("ours", 30.0), taking("other", 20.0), 1.0)
    assert len(called) == 2 + 2


def test_one_series_stands_for_both_caches_where_they_cannot_differ(clock):
    """12 times what it takes to write the buffer, which here is 1 ms."""
    runs = {name: lambda s=s: clock(s) for name, s in (("at", 0.01), ("beyond", 0.05))}
    taken = timing.by_cache(runs, 0.2)
    warm, cold = taken["warm"], taken["cold"]
    assert warm["beyond"] is cold["beyond"]
    assert warm["at"] is not cold["at"]
    assert len(warm["at"]) == 5  # each after three that are not timed
    assert len(cold["at"]) == 17
    assert len(warm["beyond"]) == 5
    assert list(timing.by_cache(runs, 0.2, cold=False)) == ["warm"]


def test_the_table_says_how_many_calls(monkeypatch, capsys):
    def sleep():
        time.sleep(0.35)
        return torch.zeros(3)

    monkeypatch.setattr(timing, "last_cache", lambda: 8)
    _, out = shown(toy(rivals={"slow": sleep}), monkeypatch, capsys)
    assert line(out, "slow").endswith("  1")
    assert "\N{PLUS-MINUS SIGN}" not in line(out, "slow")
    assert re.search("[0-9]+ [+] [0-9]+$", line(out, "right"))
    assert "\N{PLUS-MINUS SIGN}" in line(out, "right")
    (row,) = json.loads(Path("p.json").read_text())["rows"]
    assert [len(b["calls"]) for b in row["beside"]] == [2, 2, 2, 1]


def test_ours_and_the_floor_come_first_however_long_they_take(monkeypatch):
    def sleep():
        time.sleep(0.02)
        return torch.zeros(3)

    monkeypatch.setattr(timing, "last_cache", lambda: 8)
    monkeypatch.setattr(bench, "cases", lambda *_: [toy(ours=sleep)])
    (row,) = bench.run("linear", True, peers=True, budget=1e-3)
    assert [one.name for one in row.beside] == ["ours", "floor", "right", "wrong", "cut short"]


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_is_time(budget, capsys):
    assert main(["bench", "linear", "--quick", f"--budget={budget}"]) == 1
    assert "bench(budget): expected seconds, above 0" in capsys.readouterr().err
