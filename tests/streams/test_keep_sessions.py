# SPDX-License-Identifier: Apache-2.0
"""Streams that choose, in sessions: forks, snapshots, neighbours, failures, serving, errors."""

import functools

import numpy as np
import pytest
import torch

from headrace import (
    Archive,
    InCache,
    Keep,
    Lane,
    PerLane,
    Piece,
    Rest,
    Sink,
    Tagged,
    Window,
    oracle,
    recompute,
    wrap,
)  # fmt: skip
from headrace.memory import most_pages
from headrace.streams import Event, Linear, Virtual, resume, serve, snapshot
from headrace.streams.seat import Seat

from .keeping import BOUND, MEMORIES, PAGE, episode, played
from .test_failure import Faulty, Interrupted, state
from .tiny import TinyDecoder, gap, tokens


def test_forks_marks_snapshots_and_parking(tmp_path):
    model, memory = TinyDecoder(), MEMORIES[0]
    first, second = list(episode(20)), list(episode(12, seed=1))
    late = [Piece(p.tokens, p.scores, p.at + 100, p.frame + 100, p.tag) for p in second]
    options = {"memory": memory, "page_size": PAGE, "pool_pages": 80}
    with wrap(model, **options) as engine:
        alone = engine.open()
        played(alone, first)
        want, _ = played(alone, late)
        stream = engine.open()
        played(stream, first)
        mark, fork = stream.mark(), stream.fork()
        fork_mark = fork.mark()
        held = stream.held.number.tolist()
        snapshot(stream, tmp_path / "a")
        played(stream, late[::-1][:1])
        stream.rollback(mark)
        assert stream.held.number.tolist() == held
        played(fork, late[-1:])
        fork.rollback(fork_mark)
        seat = Seat("a", fork)
        seat.park(swap=False)
        assert seat.parked is not None  # not to be read again: others might survive
        got, _ = played(stream, late)
        assert gap(got, want) < BOUND  # in a page of its own, for others hold the last one
        seat.resume()
        assert gap(played(fork, late)[0], want) < BOUND
        for one in (alone, stream, fork):
            one.close()
        for one in (mark, fork_mark):
            one.release()
        assert engine.pool.live_pages == 0
    with wrap(model, **options) as engine:
        engine.open().feed(tokens(5), scores=torch.zeros(5))
        again = resume(engine, tmp_path / "a").stream
        assert again.held.number.tolist() == held
        assert torch.equal(played(again, late)[0], want)


def test_bits_do_not_depend_on_neighbours():
    with wrap(TinyDecoder(), memory=MEMORIES[0], page_size=PAGE, pool_pages=400) as engine:
        alone, _ = played(engine.open(), episode(10))
        streams = [engine.open() for _ in range(5)]
        rows = [list(episode(10, seed=i)) for i in range(5)]
        got = [
            engine.step(dict(zip(streams, step, strict=True)), logits=True)[streams[0]].logits
            for step in zip(*rows, strict=True)
        ]
        assert torch.equal(torch.cat(got), alone)


@pytest.mark.parametrize("cls", [Faulty, Interrupted])
def test_after_an_error_all_is_as_it_was(cls):
    model = cls()
    with wrap(model, memory=MEMORIES[0], page_size=PAGE, chunk=16, pool_pages=64) as engine:
        stream = engine.open()
        played(stream, episode(12))
        fork, mark = stream.fork(), stream.mark()
        before = state(engine, [stream, fork])
        for call in (1, 2, 3):  # some evict and pack before they fail
            model.calls = call
            with pytest.raises((RuntimeError, KeyboardInterrupt)):
                stream.feed(tokens(48), scores=torch.zeros(48), at=1e3, frame=1e3)
            assert state(engine, [stream, fork]) == before
        with pytest.raises(ValueError, match=r"keep\(numbers\): expected tokens that are alive"):
            stream.keep([10**6])
        assert state(engine, [stream, fork]) == before
        stream.feed(tokens(48), scores=torch.zeros(48), at=1e3, frame=1e3)
        mark.release()


def test_random_sessions_leak_nothing():
    rng = np.random.default_rng(0)
    with wrap(TinyDecoder(layers=1), memory=MEMORIES[2], page_size=PAGE, pool_pages=200) as engine:
        streams, marks = [engine.open()], []
        for i in range(250):
            s, what = streams[rng.integers(len(streams))], rng.integers(8)
            if what == 0 and len(streams) < 5:
                streams.append(s.fork())
            elif what == 1 and len(streams) > 1:
                streams.remove(s)
                marks = [m for m in marks if m.stream is not s]
                s.close()
            elif what == 2 and len(marks) < 5:
                marks.append(s.mark())
            elif what == 3 and marks:
                mark = marks.pop(rng.integers(len(marks)))
                mark.stream.rollback(mark)
                mark.release()
            elif what == 4 and s.tokens:
                s.keep(s.held.number[rng.random(len(s.held)) < 0.7])
            else:
                n = int(rng.integers(1, 20))
                s.feed(tokens(n, i), scores=rng.random(n))
            held = [x._lease.table.page_ids for x in (*streams, *marks)]
            assert engine.pool.live_pages == len({page for ids in held for page in ids})
            for x in streams:
                assert len(x.pages) <= most_pages(x.alive, PAGE) + 2
        for x in (*streams, *marks):
            (x.release if x in marks else x.close)()
        assert engine.pool.live_pages == 0


def test_recompute_of_one_layer_is_the_oracle():
    model, memory = TinyDecoder(layers=1), MEMORIES[0]
    with wrap(model, memory=memory, page_size=PAGE) as engine:
        got, heard = played(engine.open(), episode(20))
    again = recompute(model, heard, memory, at=[3, 90, len(got) - 1])
    assert gap(again, got[[3, 90, -1]]) < BOUND
    deep = TinyDecoder()
    want = oracle(deep, heard, memory, InCache())
    assert gap(recompute(deep, heard, memory, at=[len(got) - 1]), want[-1:]) > 100 * BOUND


def test_served_streams_keep_what_their_pieces_say():
    """Parked, forked while parked, gone on: the same outputs as with pages for all."""
    memory = Sink(2) + Keep("surprisal", 12) + Window(10)
    fed = [tuple(tokens(40, i).tolist()) for i in range(4)]
    events = [Event(0.0, f"s{i}", "open") for i in range(4)]
    events += [Event(1.0 + i, f"s{i}", "feed", fed[i]) for i in range(4)]
    events += [Event(9.0, "t", "fork", parent="s0")]
    events += [Event(10.0 + i, n, "say", max_new=6) for i, n in enumerate(["s1", "t", "s0", "s3"])]
    outputs = []
    for pages in (400, 14):
        with wrap(TinyDecoder(), memory=memory, page_size=PAGE, pool_pages=pages, chunk=8) as e:
            run = serve(e, events, clock=Virtual(Linear()))
            outputs.append(run.outputs)
            parked = any("parked" in line for line in run.log)
            assert parked == (pages == 14)
    assert outputs[0] == outputs[1]


def refused(what, error, text):
    with pytest.raises(error) as caught:
        what()
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_errors_are_one_line():
    model = TinyDecoder()
    refused(lambda: Keep("likely", 3), TypeError, "Keep(score): expected 'given', 'surprisal'")
    refused(lambda: Keep("given", -1), ValueError, "Keep(budget): expected 0 or more, got -1")
    refused(lambda: Window(3, seconds=2), ValueError, "Window(tokens): expected one of tokens")
    refused(lambda: Window(seconds=0), ValueError, "Window(seconds): expected more than 0")
    refused(lambda: Rest(0), ValueError, "Rest(total): expected 1 or more, got 0")
    refused(lambda: Tagged("a", 3), TypeError, "Tagged(region): expected a region")
    lanes = {"lanes": [Lane("a", memory=Keep())], "positions": PerLane()}
    for what, text in (
        ({"memory": Window(3), **lanes}, "Sink and Window in tokens here, got"),
        ({"memory": Keep() >> Archive()}, "Sink and Window in tokens, got"),
        ({"memory": Window(seconds=2) >> Archive()}, "Sink and Window in tokens, got"),
        ({"memory": Window(3) >> Archive() >> Keep()}, "Sink, Window, Keep, Rest and Tagged"),
        ({"memory": Window(3) >> (Keep() + Archive())}, "Sink, Window, Keep, Rest and Tagged"),
    ):
        text = f"wrap(memory): expected one of {text}"
        refused(functools.partial(wrap, model, **what), NotImplementedError, text)
    with wrap(model, memory=Sink(4) + Window(20)) as plain:
        for use in (
            lambda: plain.open().feed([1], at=3),
            lambda: plain.open().keep([0]),
            lambda: plain.open().held,
            lambda: plain.open().rescore([]),
        ):
            refused(use, NotImplementedError, "")
    with wrap(model, memory=Keep("given", 4) + Window(seconds=3) + Window(4)) as engine:
        s = engine.open(history=True)
        refused(lambda: s.feed([1]), ValueError, "feed(at): expected the time in seconds")
        refused(lambda: s.feed([1], at=1), ValueError, "feed(scores): expected a number for each")
        refused(lambda: s.feed([1], at="x"), TypeError, "feed(at): expected a number")
        refused(lambda: s.feed([1, 2], at=1, scores=[1]), ValueError, "feed(scores): expected")
        s.feed([1, 2], at=2, scores=[1, 1])
        refused(
            lambda: s.feed([1], at=1, scores=[1]), ValueError, "feed(at): expected 2.0 or later"
        )
        refused(lambda: s.keep([0.5]), TypeError, "keep(numbers): expected whole numbers")
        refused(lambda: s.rescore([1]), ValueError, "rescore(scores): expected a number for each")
        refused(lambda: s.update([1]), NotImplementedError, "update(memory): expected one of")
    with wrap(model, memory=Keep(lambda held: [1], 2)) as engine:
        s = engine.open()
        s.feed([1, 2, 3])
        refused(lambda: s.feed([1]), ValueError, "Keep(score): expected a number for each of 3")
        assert s.tokens == 3
