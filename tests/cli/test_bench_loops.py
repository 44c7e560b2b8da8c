# SPDX-License-Identifier: Apache-2.0
"""Loops and work that grows: what they equal is checked, and what they tell follows from times."""

import io
import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.bench import loops, pictures
from headrace.bench.loops import adapters, lanes, recall, rings, stock, streaming, streams, video
from headrace.bench.loops.turns import Loop, Round, Side, Size, measure
from headrace.cli import main
from headrace.memory import Window
from headrace.models import Denoiser, DenoiserConfig


def smallest(name):
    if loops.LOOPS[name].needs:
        pytest.importorskip(loops.LOOPS[name].needs)
    return next(loops.LOOPS[name].sizes(True))


def largest(name):
    if loops.LOOPS[name].needs:
        pytest.importorskip(loops.LOOPS[name].needs)
    for size in loops.LOOPS[name].sizes(True):  # noqa: B007
        pass
    return size


@pytest.mark.parametrize("name", loops.LOOPS)
def test_ours_equals_what_it_is_beside(name):
    size = smallest(name)
    try:
        assert size.error() <= size.tolerance
        for side in size.sides:
            done = side.run()
            assert done.seconds > 0
            assert len(done.lags) >= 1
            assert done.units > 0
            assert max(done.lags) <= done.seconds * 1.001
            assert side.bytes() > 0
    finally:
        size.close()


def test_the_lag_of_a_frame_leaves_out_the_turns_of_others():
    """Frames stay in flight from one turn to the next, so that the ring never runs dry."""
    model = Denoiser(DenoiserConfig(), seed=1).eval()
    with rings._ring(model, 4) as ring:
        flow = rings.Flow(ring, itertools.repeat(torch.zeros(ring.shape)))
        flow.take(8)
        time.sleep(0.3)
        done, made = flow.take(8)
    assert 0 < len(done.lags) < len(made) == 8
    assert max(done.lags) <= done.seconds


def break_streaming(monkeypatch):
    whole = streaming.Window
    monkeypatch.setattr(streaming, "Window", lambda n: whole(n and n // 2))


def break_streams(monkeypatch):
    def mixed_up(self, **options):
        tokens = self.next()
        given = dict(zip(tokens, reversed(tokens.values()), strict=True))
        return list(self.engine.step(given, **options).values())

    monkeypatch.setattr(streams.Fleet, "together", mixed_up)


def break_lanes(monkeypatch):
    """The target sees no source."""
    apart = (lanes.LANES[0], replace(lanes.LANES[1], reads=()))
    whole = lanes.Pairs.__init__

    def init(self, *args):
        with monkeypatch.context() as patched:
            if len(made) % 2 == 0:  # ours of each size
                patched.setattr(lanes, "LANES", apart)
            made.append(self)
            whole(self, *args)

    made = []
    monkeypatch.setattr(lanes.Pairs, "__init__", init)


def break_stock(monkeypatch):
    monkeypatch.setattr(stock, "Window", lambda tokens: Window(tokens // 4))


def break_adapters(monkeypatch):
    monkeypatch.setattr(adapters, "merged", lambda model, new: model)  # one without the adapter


def break_recall(monkeypatch):
    whole = recall.Recalled
    fewer = lambda shelf, table, rows, exact: whole(shelf, table, [rows[0][:4]], exact)  # noqa: E731
    monkeypatch.setattr(recall, "Recalled", fewer)


def break_rings(monkeypatch):
    whole = rings.stream_diffusion
    other = lambda denoiser, **o: whole(denoiser, seed=o["depth"], **o)  # noqa: E731
    monkeypatch.setattr(rings, "stream_diffusion", other)


def break_video(monkeypatch):
    whole = video.pixel_gate
    monkeypatch.setattr(video, "pixel_gate", lambda model, threshold: whole(model, 200.0))


@pytest.mark.parametrize("name", loops.LOOPS)
def test_a_loop_that_computes_something_else_is_found(name, monkeypatch):
    globals()[f"break_{name}"](monkeypatch)
    size = largest(name)
    try:
        assert size.error() > size.tolerance
    finally:
        size.close()


class Clockwork:
    """A loop of known times: ours takes 1 s for 4 answers, the other 2, 3 and 4 s for 2."""

    def __init__(self, error=0.0):
        self.order, self.theirs = [], iter((9.0, 2.0, 3.0, 4.0))
        sides = (Side("ours", self.ours, lambda: 10), Side("the other", self.other, lambda: 2**21))
        self.closed = 0
        size = Size(8, sides, lambda: error, 1e-3, lambda: {"a note": 1.0}, self.close)
        self.loop = Loop("toy", "a toy", "sizes", "answers/s", "the truth", lambda quick: [size])

    def close(self):
        self.closed += 1

    def ours(self):
        self.order.append("ours")
        return Round(1.0, 4, [0.1, 0.2, 0.3, 0.4])

    def other(self):
        self.order.append("other")
        return Round(next(self.theirs), 2, [1.0, 2.0])


def test_what_a_loop_tells_follows_from_its_rounds():
    toy = Clockwork()
    (point,) = measure(toy.loop, quick=True)["points"]
    assert point["sides"]["ours"] == {
        "throughput": 4.0, "lag_p50": 0.3, "lag_p99": 0.4, "answers": 12, "bytes": 10,
    }  # fmt: skip
    assert point["sides"]["the other"]["throughput"] == 2 / 3
    assert point["speedup"] == {"the other": {"median": 6.0, "least": 4.0, "most": 8.0}}
    assert point["notes"] == {"a note": 1.0}
    assert toy.closed == 1
    assert toy.order == ["ours", "other", "other", "ours"] * 2  # both are first as often


def test_nothing_is_timed_after_a_wrong_result():
    for error in (1e-2, math.nan):
        toy = Clockwork(error)
        found = [measure(toy.loop, quick=True)]
        assert toy.order == []
        assert toy.closed == 1
        assert not found[0]["points"][0]["ok"]
        (told,) = map(str, loops.tables(found))
        assert "x" not in told.split("off by")[1]
        with pytest.raises(ValueError, match="a right result"):
            pictures.loops(found, Path("none.png"))


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(loops.LOOPS, "rings", Clockwork().loop)
    monkeypatch.setitem(loops.LOOPS, "video", Clockwork(math.inf).loop)


def test_the_command_writes_what_it_shows(toys, capsys):
    told = ["bench", "--loops", "rings", "--quick", "--json", "l.json", "--plot", "l.png"]
    assert main(told) == 0
    out = capsys.readouterr().out
    assert "6.00x" in out
    assert "4.00 to 8.00" in out
    made = json.loads(Path("l.json").read_text())
    assert made["loops"][0]["points"][0]["speedup"]["the other"]["median"] == 6.0
    assert made["host"]["threads"] >= 1
    assert Path("l.png").read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "--loops", "video", "--quick", "--json", "l.json"]) == 1
    assert "off by inf" in capsys.readouterr().out
    assert json.loads(Path("l.json").read_text())["loops"][0]["points"][0]["error"] is None


def test_a_loop_without_its_package_is_named(toys, monkeypatch, capsys):
    monkeypatch.setattr(loops, "find_spec", lambda name: None)
    assert main(["bench", "--loops", "stock"]) == 1
    err = capsys.readouterr().err
    assert "stock needs transformers; stock caches: pip install" in err
    assert err.count("\n") == 1
    few = {name: loops.LOOPS[name] for name in ("rings", "stock")}
    monkeypatch.setattr(loops, "LOOPS", few)
    assert main(["bench", "--loops", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "not here: stock, " in out
    assert "6.00x" in out


def test_the_command_shows_its_progress(toys, monkeypatch, capsys):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    clock = iter(range(1000))
    monkeypatch.setattr("headrace.cli.gather.time.perf_counter", lambda: float(next(clock)))
    main(["bench", "--loops", "rings", "--quick"])
    assert "toy: sizes 8, turn 3 of 3" in screen.getvalue()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--loops", "loop"], "bench(--loops): expected one of streaming, streams, "),
        (["--scaling", "loop"], "bench(--scaling): expected one of length, streams, "),
        (["linear", "--loops"], "bench(OP): expected none with --loops"),
        (["--scaling", "--peers"], "bench(--peers): expected none with --scaling"),
        (["--scaling", "--loops"], "bench(--loops): expected none with --scaling"),
    ],
)
def test_what_does_not_go_together_is_one_line(args, told, capsys):
    assert main(["bench", *args]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
