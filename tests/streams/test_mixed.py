# SPDX-License-Identifier: Apache-2.0
"""One step of 32 streams that differ in adapter, preset, lanes and phase: each as if it were alone.

In exact mode bit for bit, otherwise to rounding.
"""

from __future__ import annotations

import pytest
import torch

from headrace import Lane, PerLane, Sink, Window, oracle, wrap
from headrace.memory import Archive
from headrace.presets import mixed
from headrace.streams import Absolute, InCache, lanes_oracle, resume, snapshot

from .tiny import TinyDecoder, gap, tokens

MEMBERS, TICKS = 32, 10


def together(exact):
    with mixed.engine(TinyDecoder(), exact=exact) as engine:
        members = [mixed.Member(engine, i) for i in range(MEMBERS)]
        made = [mixed.step(engine, members, tick) for tick in range(TICKS)]
    return made


def alone(number, exact):
    with mixed.engine(TinyDecoder(), exact=exact, pages=200) as engine:
        member = mixed.Member(engine, number)
        return [mixed.step(engine, [member], tick) for tick in range(TICKS)]


def test_the_streams_differ_in_everything():
    with mixed.engine(TinyDecoder()) as engine:
        members = [mixed.Member(engine, i) for i in range(MEMBERS)]
        assert {m.kind.name for m in members} == {k.name for k in mixed.KINDS}
        pairs = {(m.kind.name, m.lane(next(iter(m.feeds(9)), "")).adapter) for m in members
                 if m.feeds(9)}  # fmt: skip
        assert len(pairs) > 20
        sizes = [{len(x) for m in members for x in m.feeds(t).values()} for t in range(TICKS)]
        assert all({1} < size for size in sizes[2:])  # some read much while others write
        assert all(len(m.feeds(t)) < 4 for m in members for t in range(TICKS))


@pytest.mark.parametrize("exact", [True, False])
def test_each_has_what_it_has_alone(exact):
    beside = together(exact)
    seen = 0
    for number in range(MEMBERS):
        for tick, want in enumerate(alone(number, exact)):
            for (_, lane), logits in want.items():
                got = beside[tick][number, lane]
                if exact:
                    assert torch.equal(got, logits), (number, tick, lane)
                else:
                    assert gap(got, logits) < 1e-4
                seen += 1
    assert seen == sum(map(len, beside)) > 300


def test_a_batch_that_depends_on_its_rows_is_noticed(monkeypatch):
    """Without `ops.linear` somewhere a bit is another."""
    beside = together(exact=False)
    other = [
        not torch.equal(beside[tick][number, lane], logits)
        for number in range(0, MEMBERS, 5)
        for tick, want in enumerate(alone(number, exact=False))
        for (_, lane), logits in want.items()
    ]
    assert any(other)


@pytest.mark.parametrize(
    ("memory", "positions"),
    [(Sink(4) + Window(20), InCache()), (Window(30), None), (None, Absolute())],
    ids=str,
)
def test_a_stream_with_memory_of_its_own_is_that_of_an_engine_with_it(memory, positions):
    model, fed = TinyDecoder(), tokens(90)
    with wrap(model, memory=Sink(2) + Window(50), page_size=16) as engine:
        mine, other = engine.open(memory=memory, positions=positions), engine.open()
        got = engine.step({mine: fed, other: fed}, logits=True)
        full = memory or Sink(2) + Window(50), positions or InCache()
        assert gap(got[mine].logits, oracle(model, fed, *full)) < 1e-4
        assert gap(got[other].logits, oracle(model, fed, engine.memory, InCache())) < 1e-4
        assert gap(got[mine].logits, got[other].logits) > 1e-2


def test_lanes_of_its_own():
    model = TinyDecoder()
    lanes = (Lane("a", memory=Window(9)), Lane("b", reads=("a",), memory=Window(None)))
    positions = PerLane({"b": 77})
    with wrap(model, memory=Sink(2) + Window(50), page_size=16) as engine:
        stream = engine.open_lanes(lanes=lanes, positions=positions)
        fed = {"a": tokens(30), "b": tokens(12, 1)}
        got = [stream.feed({k: x[:9] for k, x in fed.items()}, logits=True),
               stream.feed({k: x[9:] for k, x in fed.items()}, logits=True)]  # fmt: skip
        ticks = {k: (torch.arange(len(x)) >= 9).long() for k, x in fed.items()}
        want = lanes_oracle(model, fed, ticks, lanes, engine.memory, positions)
        for name, rows in want.items():
            assert gap(torch.cat([part[name].logits for part in got]), rows) < 1e-4
        assert stream.fork()["b"].position == 77 + 12


@pytest.mark.parametrize("number", range(1, len(mixed.KINDS)))
def test_each_kind_is_saved_and_resumed_with_the_same_bits(number, tmp_path):
    """In an engine like the one of all, but for its archive, which cannot be saved."""

    def member(engine):
        made = mixed.Member(engine, number)
        for tick in range(6):
            mixed.step(engine, [made], tick)
        return made

    def engine():
        return mixed.engine(TinyDecoder(), memory=Sink(4) + Window(40))

    kind = mixed.KINDS[number]
    own = {"memory": kind.memory, "positions": kind.positions, "lanes": kind.lanes or None}
    with engine() as e:
        made = member(e)
        if kind.lanes:
            for name in made.stream:
                made.stream.watch(name)
        snapshot(made.stream, tmp_path / "s")
        want = [mixed.step(e, [made], tick) for tick in (7, 8)]
    with engine() as e:
        other = mixed.Member(e, number)
        other.stream.close()
        other.stream = resume(e, tmp_path / "s", **own).stream
        got = [mixed.step(e, [other], tick) for tick in (7, 8)]
        assert any(want)
        for mine, theirs in zip(got, want, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[lane], logits) for lane, logits in theirs.items())
        wrong = {**own, "memory": Window(7)}
        if kind.lanes:
            wrong["lanes"] = [Lane(x.name, x.reads, x.kind, Window(7)) for x in kind.lanes]
        with pytest.raises(ValueError, match=r"^resume\((memory|lanes)\): expected"):
            resume(e, tmp_path / "s", **wrong)


def test_what_does_not_fit_is_told(tmp_path):
    model = TinyDecoder()
    with wrap(model, memory=Sink(2) + Window(50), page_size=16) as engine:
        with pytest.raises(NotImplementedError, match=r"^open\(memory\): expected one of regions"):
            engine.open(memory=Window(9) >> Archive())
        with pytest.raises(TypeError, match=r"^open\(positions\): expected InCache"):
            engine.open(positions=3)
        with pytest.raises(ValueError, match=r"^open_lanes\(engine\): expected one with lanes"):
            engine.open_lanes()
        with pytest.raises(ValueError, match=r"^open_lanes\(lanes\): expected a name for each"):
            engine.open_lanes(lanes=(Lane("a"), Lane("a")))
        lanes = engine.open_lanes(lanes=(Lane("a"), Lane("b", reads=("a",))))
        with pytest.raises(ValueError, match="expected all lanes of a stream"):
            snapshot(lanes["b"], tmp_path / "s")
    with wrap(model, memory=Window(50), lanes=(Lane("a"), Lane("b", reads=("a",)))) as engine:
        stream = engine.open_lanes()
        stream.look("b")
        with pytest.raises(NotImplementedError, match=r"call watch\(\) first"):
            snapshot(stream, tmp_path / "s")
        stream.watch("b")
        snapshot(stream, tmp_path / "s")
        assert engine.open(memory=Window(9)).feed(tokens(4)).tokens == 4
