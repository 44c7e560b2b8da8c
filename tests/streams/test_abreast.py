# SPDX-License-Identifier: Apache-2.0
"""The step in columns is the step one by one, bit for bit, and is taken where it may be alone."""

import signal

import pytest
import torch

from headrace import Absolute, Archive, InCache, Keep, Lane, PerLane, Sink, Window, wrap
from headrace.memory import Edit
from headrace.presets import mixed
from headrace.streams import Piece, abreast, report, stepping

from .test_failure import Faulty, Interrupted, scene, state
from .tiny import TinyDecoder, tokens

MEMORY = Sink(4) + Window(24)


@pytest.fixture
def taken(monkeypatch):
    """How many streams were in each step in columns."""
    sizes, plain = [], abreast.step

    def counted(engine, streams, *rest):
        sizes.append(len(streams))
        return plain(engine, streams, *rest)

    monkeypatch.setattr(stepping.abreast, "step", counted)
    return sizes


def world(positions):
    engine = wrap(TinyDecoder(), memory=MEMORY, positions=positions, page_size=16, chunk=16)
    streams = [engine.open(position=7 * i) for i in range(4)]
    for i, stream in enumerate(streams):
        stream.feed(tokens(11 * i, seed=i))
    return engine, [*streams, streams[3].fork()]


@pytest.mark.parametrize("positions", [InCache(), Absolute()])
@pytest.mark.parametrize("most", [1, 3])
def test_it_is_the_step_one_by_one(taken, positions, most):
    (one, ones), (other, others) = world(positions), world(positions)
    draw = torch.Generator().manual_seed(most)
    taken.clear()
    for at in range(60):
        order = torch.randperm(5, generator=draw)[: 5 - at % 2].tolist()
        counts = torch.randint(1, most + 1, (5,), generator=draw).tolist()
        fed = [tokens(n, seed=9 * at + i) for i, n in enumerate(counts)]
        mine = one.step({ones[i]: fed[i] for i in order})
        want = other.step({others[i]: fed[i] for i in order}, logits=True)
        for a, b in zip(mine.values(), want.values(), strict=True):
            assert (a.tokens, a.alive, a.evicted) == (b.tokens, b.alive, b.evicted)
            assert a.nll.tolist() == pytest.approx(b.nll.tolist(), rel=0, nan_ok=True)
            assert a.logits is None
        assert state(one, ones) == state(other, others)
    assert taken == [5, 4] * 30


@pytest.mark.parametrize(
    ("opened", "memory"),
    [
        ({"history": True}, MEMORY), ({}, Sink(4) + Keep("surprisal", 20)),
        ({}, MEMORY >> Archive(pages=4)), ({}, MEMORY),
    ],
)  # fmt: skip
def test_a_stream_of_more_than_a_window_does_not_take_it(taken, opened, memory):
    engine = wrap(TinyDecoder(), memory=memory, page_size=16)
    stream, many = engine.open(**opened), opened or memory is not MEMORY
    engine.step({stream: tokens(5)})
    assert taken == ([] if many else [1])


def adapted(engine):
    return engine.open(adapter="adapter 1")


def lane(which, start=0, **options):
    def opened(engine):
        lanes = Lane("first"), Lane("second", **options)
        stream = engine.open_lanes(lanes=lanes, positions=PerLane({"second": start}))
        stream.feed({"first": tokens(9)})
        return stream[which]

    return opened


@pytest.mark.parametrize(
    ("opened", "takes"),
    [
        (adapted, 0), (lane("first"), 2), (lane("second", start="first"), 0),
        (lane("second", reads=("first",)), 0),
    ],
    ids=["adapted", "a lane", "a lane that follows", "a lane that reads"],
)  # fmt: skip
def test_one_that_may_not_take_it_says_the_same_when_logits_are_asked(taken, opened, takes):
    said = []
    for logits in (False, True):
        with mixed.engine(TinyDecoder(), memory=MEMORY) as engine:
            stream = opened(engine)
            taken.clear()
            told = [engine.step({stream: tokens(n)}, logits=logits)[stream] for n in (3, 1)]
            assert len(taken) == (0 if logits else takes)
            said.append([told[1].nll.tolist(), stream.position, stream._last.tolist()])
    assert said[0] == said[1]


def test_neither_pieces_nor_long_runs_nor_nothing_to_read_take_it(taken):
    engine = wrap(TinyDecoder(), memory=MEMORY, page_size=16, chunk=16)
    a, b = engine.open(), engine.open()
    for batch in ({a: Piece([1])}, {a: tokens(17), b: [1]}, {a: [1], b: []}, {}):
        engine.step(batch)
    assert taken == []
    engine.step({a: tokens(16), b: [1]})
    assert taken == [2]


@pytest.mark.parametrize(
    ("kind", "error"), [(Faulty, RuntimeError), (Interrupted, KeyboardInterrupt)]
)
def test_an_error_in_the_model_changes_nothing(taken, kind, error):
    model = kind()
    engine, streams, _ = scene(model)
    control_engine, control, _ = scene(TinyDecoder())
    taken.clear()
    for steps in range(20):  # a page turns
        batch = [tokens(1 + steps % 2, seed=steps + i) for i in range(len(streams))]
        before, model.calls = state(engine, streams), 1
        with pytest.raises(error):
            engine.step(dict(zip(streams, batch, strict=True)))
        assert state(engine, streams) == before
        model.calls = -1
        engine.step(dict(zip(streams, batch, strict=True)))
        control_engine.step(dict(zip(control, batch, strict=True)))
        said, want = ([s._last.tolist() for s in x] for x in (streams, control))
        assert said == want
    assert taken == [len(streams)] * 60  # the control's too


@pytest.mark.parametrize("method", ["extend", "trim", "commit"])
def test_an_interrupt_amid_the_bookkeeping_waits_for_its_end(monkeypatch, taken, method):
    engine, streams, _ = scene(TinyDecoder())
    stream, plain = streams[1], getattr(Edit, method)
    before = []

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        return plain(self, *args)

    def read():  # a page comes, and one is let go
        for _ in range(20):
            before[:] = state(engine, streams)
            stream.feed(tokens(1))

    monkeypatch.setattr(Edit, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        read()
    assert taken[-1] == 1
    if method == "commit":  # the step was over
        assert stream.tokens == 76
    else:
        assert list(state(engine, streams)) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_worked_out_later_is_of_what_was_fed():
    engine = wrap(TinyDecoder(), memory=MEMORY, page_size=16)
    one, other = engine.open(), engine.open()
    fed = torch.tensor([5, 6, 7])
    late = one.feed(fed)
    want = other.feed([5, 6, 7]).nll.tolist()
    fed += 1
    one.feed(fed)
    assert late.nll.tolist() == pytest.approx(want, rel=0, nan_ok=True)


@pytest.mark.parametrize("waiting", [0, 1 << 20])
def test_a_report_holds_on_to_few_logits(monkeypatch, waiting):
    monkeypatch.setattr(report, "WAITING", waiting)
    model, said = TinyDecoder(), []
    monkeypatch.setattr(
        report.F, "cross_entropy", lambda *args, plain=report.F.cross_entropy, **kwargs: (
            said.append(args), plain(*args, **kwargs)
        )[1],
    )  # fmt: skip
    engine = wrap(model, memory=MEMORY, page_size=16)
    told = engine.open().feed([1, 2])
    assert len(said) == (waiting == 0)
    assert told.nll is told.nll
    assert len(said) == 1
