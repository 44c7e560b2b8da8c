# SPDX-License-Identifier: Apache-2.0
"""Streams of several lanes: equality with the masked forward, however the lanes are fed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Lane, PerLane, Sink, Window, wrap
from headrace.memory import view
from headrace.streams import InCache, lanes_oracle

from .tiny import TinyDecoder

MEMORY = Sink(3) + Window(20)
SOURCE_TARGET = (Lane("source"), Lane("target", reads=("source",), kind="out"))
STARTS = ({}, {"target": 10_000}, {"target": "source"})


def text(count, seed=0):
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed))


def run(model, lanes, steps, memory=MEMORY, positions=None, **options):
    """Feeds steps, each {lane: tokens}; gives tokens, ticks and logits by lane, and the counter."""
    names = [lane.name for lane in lanes]
    fed, ticks, got = ({name: [] for name in names} for _ in range(3))
    options = {"page_size": 16, "chunk": 16, **options}
    with wrap(model, memory=memory, positions=positions, lanes=lanes, **options) as engine:
        stream = engine.open_lanes()
        for tick, step in enumerate(steps):
            for name, report in stream.feed(step, logits=True).items():
                fed[name].append(step[name])
                ticks[name].append(torch.full((len(step[name]),), tick))
                got[name].append(report.logits)
        written = engine.pool.written_bytes
    empty = {"fed": torch.zeros(0, dtype=torch.int64), "got": torch.zeros(0, 256)}

    def joined(parts, kind):
        return {name: torch.cat([empty[kind], *x]) for name, x in parts.items()}

    return joined(fed, "fed"), joined(ticks, "fed"), joined(got, "got"), written


def gap(model, lanes, steps, memory=MEMORY, positions=None, **options):
    """Largest difference from the oracle of any logit of any lane."""
    fed, ticks, got, _ = run(model, lanes, steps, memory, positions, **options)
    want = lanes_oracle(model, fed, ticks, lanes, memory, positions or PerLane())
    return max((float((got[n] - want[n]).abs().max()) for n in got if len(got[n])), default=0.0)


def wait_k(k, source, target):
    """Read k, then write one and read one in turn."""
    steps = [{"source": source[:k]}]
    for j in range(len(target)):
        steps.append({"target": target[j : j + 1]})
        if k + j < len(source):
            steps.append({"source": source[k + j : k + j + 1]})
    return steps


@pytest.mark.parametrize("starts", STARTS, ids=str)
def test_wait_k_equals_the_masked_forward(starts):
    steps = wait_k(5, text(60), text(60, 1))
    assert gap(TinyDecoder(), SOURCE_TARGET, steps, positions=PerLane(starts)) < 1e-4


@pytest.mark.parametrize("starts", STARTS, ids=str)
def test_lanes_that_advance_in_one_step_equal_the_masked_forward(starts):
    source, target = text(200), text(50, 1)
    steps = [{"source": source[:7]}] + [
        {"source": source[7 + 3 * i : 10 + 3 * i], "target": target[i : i + 1]} for i in range(50)
    ]
    assert gap(TinyDecoder(), SOURCE_TARGET, steps, positions=PerLane(starts)) < 1e-4


def test_a_long_chunk_is_one_tick():
    """Tokens of a step see nothing of what comes with them, however many model calls it takes."""
    steps = [{"source": text(9)}, {"source": text(70, 1), "target": text(90, 2)}]
    steps.append({"target": text(40, 3), "source": text(3, 4)})
    assert gap(TinyDecoder(), SOURCE_TARGET, steps) < 1e-4


def test_every_lane_of_four_reads_the_others():
    names = ("hear", "see", "think", "speak")
    lanes = tuple(Lane(n, reads=[m for m in names if m != n]) for n in names)
    data = {n: text(40, i) for i, n in enumerate(names)}
    steps = [{n: data[n][i : i + 1] for n in names} for i in range(40)]
    assert gap(TinyDecoder(), lanes, steps) < 1e-4


def test_each_lane_has_its_own_memory():
    lanes = (
        Lane("frames", memory=Window(30)),
        Lane("notes", reads=["frames"], memory=Sink(2) + Window(9)),
        Lane("talk", reads=["notes"], memory=Window(None)),
    )
    data = {lane.name: text(99, i) for i, lane in enumerate(lanes)}
    steps = [{n: x[i : i + 9] for n, x in data.items() if i % (j + 1) == 0} for j in range(3)
             for i in range(33 * j, 33 * j + 33, 9)]  # fmt: skip
    assert gap(TinyDecoder(), lanes, steps) < 1e-4


lane_steps = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 25), min_size=1), min_size=1, max_size=8
)
reads = st.fixed_dictionaries(
    {x: st.lists(st.sampled_from([y for y in "abc" if y != x]), unique=True) for x in "abc"}
)


@settings(max_examples=15, deadline=None)
@given(reads, lane_steps, st.sampled_from([{}, {"b": "a", "c": "b"}, {"c": 77}]))
def test_any_lanes_fed_in_any_way_equal_the_masked_forward(graph, counts, starts):
    lanes = tuple(Lane(name, reads=graph[name]) for name in "abc")
    steps = [{n: text(c, i) for n, c in step.items()} for i, step in enumerate(counts)]
    memory = Sink(1) + Window(13)
    assert gap(TinyDecoder(layers=1), lanes, steps, memory, PerLane(starts)) < 1e-4


def test_what_a_lane_does_not_read_cannot_reach_it():
    steps = wait_k(3, text(30), text(30, 1))
    other = wait_k(3, text(30), text(30, 9))
    a, b = (run(TinyDecoder(), SOURCE_TARGET, s)[2] for s in (steps, other))
    assert torch.equal(a["source"], b["source"])
    assert not torch.equal(a["target"], b["target"])


def test_a_lane_alone_is_a_stream():
    x = text(120)
    _, _, got, _ = run(TinyDecoder(), (Lane("only"),), [{"only": x}])
    with wrap(TinyDecoder(), memory=MEMORY, positions=PerLane(), page_size=16, chunk=16) as engine:
        assert torch.equal(got["only"], engine.open().feed(x, logits=True).logits)


def test_streams_of_lanes_have_the_same_bits_alone_and_together():
    model, count = TinyDecoder(), 6
    data = [(text(40, i), text(20, 50 + i)) for i in range(count)]

    def feed(engine, streams, each):
        out = []
        for i in range(10):
            batch = {}
            for stream, (source, target) in zip(streams, each, strict=True):
                batch[stream["source"]] = source[4 * i : 4 * i + 4]
                batch[stream["target"]] = target[2 * i : 2 * i + 2]
            reports = engine.step(batch, logits=True)
            out.append([reports[s["target"]].logits for s in streams])
        return [torch.cat(x) for x in zip(*out, strict=True)]

    options = {"memory": MEMORY, "lanes": SOURCE_TARGET, "page_size": 16}
    with wrap(model, **options) as engine:
        together = feed(engine, [engine.open_lanes() for _ in range(count)], data)
    for i in range(count):
        with wrap(model, **options) as engine:
            assert torch.equal(feed(engine, [engine.open_lanes()], data[i : i + 1])[0], together[i])


def test_no_key_is_ever_copied():
    """Every token's keys and values are written once, when it comes; nothing else is."""
    steps = wait_k(5, text(60), text(60, 1))
    fed, _, _, written = run(TinyDecoder(), SOURCE_TARGET, steps)
    tokens, c = sum(map(len, fed.values())), TinyDecoder().config
    assert written == tokens * c.layers * c.kv_heads * 2 * c.head_dim * 4


def test_a_fork_goes_its_own_way_and_reads_its_own_lanes():
    model = TinyDecoder()
    with wrap(model, memory=MEMORY, lanes=SOURCE_TARGET, page_size=16) as engine:
        stream = engine.open_lanes()
        stream.feed({"source": text(30), "target": text(10, 1)})
        other = stream.fork()
        stream.feed({"source": text(25, 2)})
        other.feed({"source": text(25, 3)})
        mine, theirs = (s.feed({"target": text(5, 4)}, logits=True) for s in (stream, other))
        assert not torch.equal(mine["target"].logits, theirs["target"].logits)
        again = engine.open_lanes()
        again.feed({"source": text(30), "target": text(10, 1)})
        again.feed({"source": text(25, 3)})
        want = again.feed({"target": text(5, 4)}, logits=True)
        # Not the same bits: a page that was shared when it was half full ends there.
        assert (theirs["target"].logits - want["target"].logits).abs().max() < 1e-4
        for s in (stream, other, again):
            s.close()
        assert engine.pool.live_pages == 0


def test_one_lane_rolls_back_and_the_others_stay():
    with wrap(TinyDecoder(), memory=MEMORY, lanes=SOURCE_TARGET, page_size=16) as engine:
        stream = engine.open_lanes()
        stream.feed({"source": text(30), "target": text(10, 1)})
        marks, mark = stream.mark(), stream["target"].mark()
        before = stream["target"].table
        stream["target"].feed(text(40, 5))
        stream["target"].rollback(mark)
        assert stream["target"].table == before
        assert stream["source"].tokens == 30
        first = stream.feed({"source": text(4, 6), "target": text(4, 7)}, logits=True)
        stream.rollback(marks)
        again = stream.feed({"source": text(4, 6), "target": text(4, 7)}, logits=True)
        assert all(torch.equal(first[n].logits, again[n].logits) for n in first)


def test_rollback_is_of_all_lanes_or_of_none():
    with wrap(TinyDecoder(), memory=MEMORY, lanes=SOURCE_TARGET, page_size=16) as engine:
        stream = engine.open_lanes()
        marks = stream.mark()
        stream.feed({"source": text(5), "target": text(5)})
        marks["target"].release()
        with pytest.raises(ValueError, match=r"rollback\(mark\): expected a mark that holds"):
            stream.rollback(marks)
        assert stream["source"].tokens == 5


@pytest.mark.parametrize("column", ["what came with it", "no start", "evicted"])
def test_a_wrong_view_across_lanes_is_noticed(monkeypatch, column):
    right = view.across

    def wrong(tables):
        rows = right(tables)
        if column == "what came with it":
            return rows[:-1]
        if column == "no start":
            return [[*r[:3], r[3] + 1, *r[4:]] for r in rows]
        return [[r[0], 0, r[1] + r[2], *r[3:]] for r in rows]  # slots before the first alive one

    steps = wait_k(5, text(60), text(60, 1))
    monkeypatch.setattr(view, "across", wrong)
    assert gap(TinyDecoder(), SOURCE_TARGET, steps) > 1e-3


def test_a_lane_that_looks_sees_what_was_there_and_nothing_is_copied():
    model = TinyDecoder()
    options = {"memory": MEMORY, "lanes": SOURCE_TARGET, "page_size": 16}
    with wrap(model, **options) as engine:
        late, early = engine.open_lanes(), engine.open_lanes()
        for stream in (late, early):
            stream.feed({"source": text(30)})
        before = engine.pool.written_bytes
        late.look("target")
        assert engine.pool.written_bytes == before
        other = late.fork()  # it looks at the same
        for stream in (late, other):
            stream.feed({"source": text(25, 2)})
        want = early.feed({"target": text(4, 3)}, logits=True)["target"].logits
        assert torch.equal(late.feed({"target": text(4, 3)}, logits=True)["target"].logits, want)
        got = other.feed({"target": text(4, 3)}, logits=True)["target"].logits
        assert (got - want).abs().max() < 1e-4
        early.feed({"source": text(25, 2)})
        late.watch("target")  # as it goes on
        want = early.feed({"target": text(4, 4)}, logits=True)["target"].logits
        assert torch.equal(late.feed({"target": text(4, 4)}, logits=True)["target"].logits, want)
        for stream in (late, early, other):
            stream.close()
        assert engine.pool.live_pages == 0


def test_a_closed_lane_cannot_be_read():
    with wrap(TinyDecoder(), memory=MEMORY, lanes=SOURCE_TARGET) as engine:
        stream = engine.open_lanes()
        stream["source"].close()
        with pytest.raises(ValueError, match=r"feed\(stream\): expected an open stream"):
            stream.feed({"target": text(3)})


def wrapped(*lanes, positions=None):
    return wrap(TinyDecoder(), memory=MEMORY, lanes=lanes, positions=positions)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Lane(3), TypeError, "Lane(name): expected a name, got 3"),
        (lambda: Lane("a", reads="b"), TypeError, "Lane(reads): expected names of lanes"),
        (lambda: Lane("a", kind="up"), ValueError, "Lane(kind): expected in, out or latent"),
        (lambda: Lane("a", memory=4), TypeError, "Lane(memory): expected regions"),
        (lambda: wrapped("a"), TypeError, "wrap(lanes): expected a sequence of Lane"),
        (lambda: wrapped(Lane("a"), Lane("a")), ValueError, "expected a name for each, got a, a"),
        (lambda: wrapped(Lane("a", reads=["b"])), ValueError, "got a reads b"),
        (lambda: wrapped(Lane("a", reads=["a"])), ValueError, "got a reads a"),
        (
            lambda: wrapped(Lane("a"), positions=InCache()),
            ValueError,
            "expected PerLane(...) with lanes",
        ),
        (
            lambda: wrapped(Lane("a"), positions=PerLane({"b": 1})),
            ValueError,
            "expected starts of lanes a",
        ),
        (lambda: PerLane({"b": -1}), ValueError, "PerLane(starts): expected 0 or more"),
        (lambda: PerLane({"b": 1.5}), TypeError, "PerLane(starts): expected positions"),
        (lambda: wrapped(*SOURCE_TARGET).open(), ValueError, "call open_lanes()"),
        (lambda: wrapped().open_lanes(), ValueError, "call open()"),
        (lambda: wrapped(*SOURCE_TARGET).open_lanes()["x"], ValueError, "one of source, target"),
    ],
)
def test_a_mistake_gets_one_line(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
