# SPDX-License-Identifier: Apache-2.0
"""Slopes are those of the logarithms, wrong results have none, and chance is told from change."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace import bench
from headrace.bench import compare, pictures, scaling, timing
from headrace.bench.loops import facts, recall
from headrace.bench.scaling import stored
from headrace.cli import main


def test_a_slope_is_that_of_the_logarithms():
    x = np.array([1, 4, 16, 64, 256])
    for slope in (-1.0, 0.0, 0.7, 2.0):
        found = scaling.fit(x, 3e-6 * x**slope)
        assert found.slope == pytest.approx(slope, abs=1e-9)
        assert found.error < 1e-6
    noisy = scaling.fit(x, x * np.array([1.2, 0.8, 1.2, 0.8, 1.2]))
    assert abs(noisy.slope - 1) < 3 * noisy.error
    assert 0.02 < noisy.error < 0.2
    with pytest.raises(ValueError, match="two amounts"):
        scaling.fit([4, 4], [1.0, 2.0])


def test_the_last_part_has_a_slope_of_its_own():
    """A constant and then a line: over all of it neither shows."""
    at = [4**k for k in range(8)]
    points = lambda quick, told: (("ours", a, [1.0 + 1e-3 * a] * 3) for a in at)  # noqa: E731
    work = scaling.Work("toy", "a toy", "sizes", "a call", points)
    (series,) = scaling.measure(work)["series"]
    assert series["at"] == at
    assert series["seconds"] == [1.0 + 1e-3 * a for a in at]
    assert series["slope"] < 0.5
    assert series["last_slope"] > 0.75
    (told,) = map(str, scaling.tables([scaling.measure(work)]))
    assert f"{series['slope']:+.2f} \N{PLUS-MINUS SIGN} " in told
    assert scaling.slope(series | {"at": at[:2]}) == f"{series['slope']:+.2f}"  # no error of two


@pytest.mark.parametrize("name", ["streams", "adapters", "cached"])
def test_work_that_grows_is_measured(name):
    found = list(scaling.each([name], quick=True))
    for series in found[0]["series"]:
        assert len(series["at"]) >= 2
        assert series["at"] == sorted(series["at"])
        assert all(low <= s <= high for s, (low, high) in
                   zip(series["seconds"], series["half"], strict=True))  # fmt: skip
        assert math.isfinite(series["slope"])
    pictures.scaling(found, Path("s.png"), "a comment")
    from PIL import Image

    assert Image.open("s.png").text["Comment"] == "a comment"


def test_every_question_counts(monkeypatch):
    """So that a point has a spread. The streams take turns, and each is closed once."""
    made = [recall._size(tokens) for tokens in (4096, 8192)]
    closed = []
    sizes = [replace(size, close=lambda size=size: closed.append(size.at) or size.close())
             for size in made]  # fmt: skip
    monkeypatch.setattr(stored.asked, "LOOP", replace(recall.LOOP, sizes=lambda quick: sizes))
    found = list(stored.recall(True, lambda _: None))
    names = ["16 pages recalled", "torch SDPA over all"]
    assert [(name, at) for name, at, _ in found] == [
        (name, size.at) for _ in range(3) for size in made for name in names
    ]
    assert {len(lags) for *_, lags in found} == {recall.QUESTIONS}
    assert all(0 < min(lags) < max(lags) for *_, lags in found)
    assert sorted(closed) == [4096, 8192]


def test_no_question_is_timed_after_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(
        facts.Facts, "attend", lambda self, logits, rows: torch.full((1, 4, 64), torch.nan)
    )
    with pytest.raises(ValueError, match="recall: 8,192 tokens: off by inf"):
        list(stored.recall(True, lambda _: None))


def test_no_slope_of_a_wrong_result(monkeypatch, capsys):
    whole = stored.retrieve

    def wrong(*args):
        case = whole(*args)
        case.check = lambda: (1.0, 1e-6)
        return case

    monkeypatch.setattr(stored, "retrieve", wrong)
    assert main(["bench", "--scaling", "cached", "--quick"]) == 1
    assert "cached: bounds bf16 8192 tokens" in capsys.readouterr().err


def test_threads_are_as_they_were():
    from headrace.bench.scaling import threads

    before = torch.get_num_threads()
    points = threads.threads(True, lambda _: None)
    next(points)
    points.close()
    assert torch.get_num_threads() == before
    assert threads.counts()[0] == 1


def test_what_varies_by_chance_is_seldom_called_a_change():
    """Runs of 100 calls whose times, and those of the floor, are spread by a tenth."""
    chance = np.random.default_rng(0)

    def row(scale):
        ours, floor = (np.exp(0.1 * chance.standard_normal(100)) for _ in range(2))
        ours *= 1e-3 * scale
        half = timing.quartiles(ours.tolist())
        return {"op": "linear", "shape": "a", "ok": True, "ours_s": float(np.median(ours)),
                "floor_s": 5e-4 * float(np.median(floor)), "half": half,
                "peer_name": "", "peer_s": None}  # fmt: skip

    def verdicts(scale):
        found = [compare.changes([row(scale)], [row(1.0)])[0].verdict for _ in range(300)]
        return {name: found.count(name) / 300 for name in ("slower", "faster", "noise")}

    assert verdicts(1.0)["noise"] > 0.99
    assert verdicts(1.4)["slower"] > 0.95
    assert verdicts(0.7)["faster"] > 0.95


def test_a_wide_spread_is_noise(monkeypatch, capsys):
    """The same change, once beyond the spread of both runs and once within it."""

    def run(seconds, within):
        half = (seconds / within, seconds * within)
        row = bench.Row("linear", "a shape", seconds, "torch", 5e-3, 5e-4, 0.0, 1e-6, True, {}, 1e6,
                        1e6, half)  # fmt: skip
        monkeypatch.setattr(bench, "each", lambda *_: [row])

    for within, verdict in ((1.02, "slower"), (1.4, "noise")):
        run(1e-3, within)
        assert main(["bench", "--json", "then.json"]) == 0
        run(1.5e-3, within)
        capsys.readouterr()
        assert main(["bench", "--compare", "then.json"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(verdict)


@pytest.mark.parametrize("of", ["now", "then"])
def test_a_single_call_does_not_pass_for_exact(of):
    def row(seconds, half):
        return {"op": "linear", "shape": "a", "ok": True, "ours_s": seconds, "floor_s": 1.0,
                "half": half, "peer_name": "", "peer_s": None}  # fmt: skip

    def told(times, half):
        rows = {"now": row(times, (times, 1.01 * times)), "then": row(1.0, (1.0, 1.01))}
        rows[of]["half"] = half
        (found,) = compare.changes([rows["now"]], [rows["then"]])
        return compare.table([found]).lines[0].cells[-2:], compare.table([found]).below

    assert told(1.4, (1.0, 1.0)) == (("1.50", "noise, of one call"), ("of 1 shapes: 1 noise",))
    assert told(1.4, (1.0, 1.01)) == (("1.05", "slower"), ("of 1 shapes: 1 slower",))
    assert told(0.5, (1.0, 1.0)) == (("1.50", "faster, of one call"), ("of 1 shapes: 1 faster",))


def change(time, peer=None, noise=1.05):
    return compare.Change("linear", "a", time, time, noise, peer)


@pytest.mark.parametrize(
    ("first", "then", "verdict"),
    [
        (1.10, (1.10, 1.11), "slower"),
        (0.90, (0.91, 0.90), "faster"),
        (1.80, (1.01,), "noise"),  # a slow spell that has passed
        (1.80, (1.20, 1.10), "noise"),  # three times something else: no change of the code
        (1.14, (0.83, 1.14), "noise"),
    ],
)
def test_what_seems_a_change_is_measured_again(first, then, verdict):
    row = {"op": "linear", "shape": "a", "ok": True, "ours_s": 1.0, "floor_s": 0.5,
           "half": (1.0, 1.001), "peer_name": "", "peer_s": None}  # fmt: skip
    found, asked = iter(then), []

    def again(op, shapes):
        asked.append((op, shapes))
        return [row | {"ours_s": next(found)}]

    (made,) = compare.confirmed([change(first)], [row], again)
    assert made.verdict == verdict
    assert asked == [("linear", {"a"})] * len(asked)
    assert asked
    (same,) = compare.confirmed([change(1.04)], [row], again=None)  # nothing to doubt
    assert same.verdict == "noise"


def test_a_peer_that_is_as_much_slower_drops_out():
    assert change(1.5, peer=1.5).verdict == "slower"
    assert change(1.5, peer=1.02).verdict == "noise"
    assert change(0.5, peer=0.99).verdict == "noise"
    assert change(0.5, peer=0.5).verdict == "faster"
