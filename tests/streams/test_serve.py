# SPDX-License-Identifier: Apache-2.0
"""Runs: what is said is what streams say on their own, and times are those of the clock."""

import math

import pytest

from headrace import Sink, Window, wrap
from headrace.streams import Event, Linear, Outcome, Server, Timing, Virtual, serve
from headrace.streams.policies import Arrival, Deadline, Share
from headrace.streams.timing import percentile

from .tiny import TinyDecoder, tokens

MODEL = TinyDecoder()
TEXT = tokens(400).tolist()


def engine(memory=None, **options):
    options = {"page_size": 16, "pool_pages": 64, **options}
    return wrap(MODEL, memory=memory or Window(None), **options)


def run(events, policy=None, cost=None, **options):
    pages = options.pop("pages", 64)
    memory = options.pop("memory", None)
    with engine(memory, pool_pages=pages) as e:
        made = serve(e, events, policy, Virtual(cost or Linear(step=1.0, token=0.0)), **options)
        assert e.pool.live_pages == 0
        return made


def said(script, memory=None):
    """What a stream says that does all this on its own; (kind, tokens, max_new)."""
    with engine(memory) as e:
        stream, out = e.open(history=True), []
        for kind, read, *rest in script:
            if kind == "say":
                out.append(list(stream.say(read, max_new=rest[0])))
            else:
                getattr(stream, kind)(read)
        return out


def opened(*names):
    return [Event(0.0, name, "open") for name in names]


@pytest.mark.parametrize("memory", [Window(None), Sink(4) + Window(24)])
@pytest.mark.parametrize(("pages", "budget"), [(64, 1), (64, 256), (9, 7), (7, 256)])
def test_outputs_are_those_of_streams_alone(memory, budget, pages):
    events, scripts = opened("a", "b", "c"), {}
    for i, name in enumerate("abc"):
        text = TEXT[50 * i : 50 * i + 40]
        scripts[name] = [
            ("feed", text), ("say", TEXT[7 * i : 7 * i + 3], 6), ("feed", TEXT[:9]), ("say", (), 4),
            ("update", [*text[:30], *TEXT[:5]]), ("say", (), 5),
        ]  # fmt: skip
        for j, (kind, read, *rest) in enumerate(scripts[name]):
            new = rest[0] if rest else 0
            events.append(Event(0.5 * j, name, kind, tuple(read), max_new=new))
    made = run(events, memory=memory, budget=budget, pages=pages)
    for name, script in scripts.items():
        got = [o.said for o in made.outcomes if o.stream == name and o.kind == "say"]
        assert got == said(script, memory)
    parked = [turn for turn in made.log if "parked" in turn]
    assert parked or pages == 64


def test_times():
    events = [
        *opened("a"),
        Event(1.0, "a", "feed", tuple(TEXT[:4]), deadline=1.5),
        Event(1.5, "a", "feed", tuple(TEXT[:4]), deadline=1.0),
        Event(1.5, "a", "say", tuple(TEXT[:2]), max_new=3, deadline=2.0, pace=1.0),
    ]
    made = run(events)
    feed, late, say = made.outcomes[1:]
    # steps begin at 1, 2 and 3; tokens are said at 4, 5 and 6
    assert (feed.arrived, feed.due, feed.first, feed.done) == (1.0, 2.5, 2.0, 2.0)
    assert (late.arrived, late.due, late.first, late.done) == (1.5, 2.5, 3.0, 3.0)
    assert (say.emitted, say.first, say.done) == ([4.0, 5.0, 6.0], 4.0, 6.0)
    assert say.staleness == [2.5, 3.5, 4.5]
    assert [o.missed for o in (feed, late, say)] == [False, True, True]
    timing = made.timing()
    assert (timing.events, timing.deadlines, timing.missed, timing.miss_rate) == (3, 3, 2, 2 / 3)
    assert (timing.lag_p50, timing.lag_p99) == (1.5, 4.5)
    assert timing.jitter == ((1.5 - 1.0) + (4.5 - 1.5)) / 2
    assert (timing.first_p50, timing.first_p99) == (1.5, 2.5)
    assert timing.goodput == 1 / 7  # the last token is read until 7
    assert made.timing(kind="feed").events == 2
    assert math.isnan(run(opened("a")).timing().miss_rate)


def test_a_pace_is_kept_or_missed():
    def outcome(*emitted):
        return Outcome(0, "a", "say", 0.0, 2.0, 1.0, first=emitted[0], done=9, emitted=[*emitted])

    assert not outcome(1.5, 3.0, 4.0).missed
    assert outcome(1.5, 3.1, 4.0).missed
    assert outcome(2.1, 2.2, 2.3).missed


def test_percentiles_are_nearest_ranks():
    assert [percentile(range(1, 101), p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert [percentile([7], p) for p in (0, 50, 99)] == [7, 7, 7]
    assert math.isnan(Timing.of([], 1.0).lag_p50)


def test_the_earliest_deadline_goes_first():
    events = opened("a", "b")
    events += [Event(0.0, n, "feed", tuple(TEXT[:8]), deadline=d) for n, d in (("a", 9), ("b", 3))]
    for policy, first in ((Arrival(), "a"), (Deadline(), "b")):
        made = run(events, policy, budget=8)
        done = {o.stream: o.done for o in made.outcomes if o.kind == "feed"}
        assert done == {first: 1.0, "ab".replace(first, ""): 2.0}


def test_an_event_may_follow_another():
    events = [
        *opened("a"),
        Event(1.0, "a", "say", tuple(TEXT[:3]), max_new=2, deadline=9.0),
        Event(5.0, "a", "say", tuple(TEXT[:2]), max_new=1, after=1, since=1, deadline=8.5),
        Event(0.0, "a", "close", after=2),
    ]
    one, two, close = run(events).outcomes[1:]
    assert one.emitted == [2.0, 3.0]
    assert (two.arrived, two.due, two.emitted) == (8.0, 9.5, [9.0])
    assert close.done == 10.0  # what it said last is read before


def late_trace():
    """Two feeds of which the second is late, and a long answer."""
    events = opened("a", "b")
    events += [Event(0.1 * i, "a", "feed", tuple(TEXT[:4]), deadline=1.5) for i in range(4)]
    return [*events, Event(0.0, "b", "say", tuple(TEXT[:4]), max_new=9, deadline=3.5)]


@pytest.mark.parametrize(
    ("degrade", "feeds", "say", "count"),
    [
        ("late", ["done"] * 4, "done", 9),
        ("drop", ["done", "done", "dropped", "dropped"], "done", 9),
        ("skip", ["done", "done", "skipped", "done"], "done", 9),
        ("shorten", ["done"] * 4, "shortened", 3),
        ("refuse", ["done", "refused", "refused", "refused"], "done", 9),
    ],
)
def test_the_user_names_what_gives_way(degrade, feeds, say, count):
    made = run(late_trace(), degrade=degrade)
    assert [o.state for o in made.outcomes if o.kind == "feed"] == feeds
    out = made.outcomes[-1]
    assert (out.state, len(out.said)) == (say, count)
    assert out.missed == (degrade != "shorten")
    ended = [state for turn in made.log for _, state in turn.get("ended", [])]
    assert sorted(ended) == sorted(s for s in [*feeds, say] if s != "done")
    assert made.timing().states["done"] == [*feeds, say].count("done")
    alone = said([("say", TEXT[:4], 9)])[0]
    assert out.said == alone[:count]


def test_what_was_dropped_was_not_read():
    events = late_trace()
    events.append(Event(9.0, "a", "say", max_new=4))
    made = run(events, degrade="skip")
    alone = said([("feed", TEXT[:4])] * 3 + [("say", (), 4)])
    assert made.outcomes[-1].said == alone[0]


def test_interrupts_and_kills_act_at_once():
    events = [
        *opened("a", "b"),
        *(Event(0.0, name, "say", tuple(TEXT[:4]), max_new=20) for name in "ab"),
        Event(0.0, "b", "feed", tuple(TEXT[:4])),
        Event(4.5, "a", "interrupt"),
        Event(4.5, "b", "kill"),
        Event(6.0, "a", "say", max_new=2),
        Event(6.0, "b", "feed", (1,)),
    ]
    made = run(events)
    a, b, feed, _, _, again, gone = made.outcomes[2:]
    assert (a.state, a.emitted) == ("shortened", [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (b.state, b.emitted[-1], feed.state, gone.state) == ("killed", 5.0, "killed", "killed")
    assert again.said == said([("say", TEXT[:4], 5), ("say", (), 2)])[1]


def test_forks_marks_and_rollbacks():
    script = TEXT[:20]
    events = [
        *opened("a"),
        Event(0.0, "a", "feed", tuple(script)),
        Event(0.0, "b", "fork", parent="a"),
        Event(0.0, "a", "mark"),
        Event(0.0, "a", "say", (1, 2), max_new=3),
        Event(0.0, "a", "rollback"),
        Event(0.0, "a", "say", (3,), max_new=3),
        Event(0.0, "b", "say", (4,), max_new=3),
        Event(9.0, "c", "fork", parent="b"),
        Event(9.0, "c", "say", (5,), max_new=3),
        Event(9.0, "a", "close"),
        Event(9.5, "d", "fork", parent="a"),
        Event(9.5, "d", "feed", (5,)),
    ]
    for pages in (64, 4):
        made = run(events, pages=pages)
        outs = made.outputs
        assert outs[4] == said([("say", [*script, 1, 2], 3)])[0]
        assert outs[6] == said([("say", [*script, 3], 3)])[0]
        assert outs[7] == said([("say", [*script, 4], 3)])[0]
        assert outs[9] == said([("say", [*script, 4], 3), ("say", (5,), 3)])[1]
        assert made.outcomes[12].state == "killed"


def test_closing_a_parent_before_its_turn_kills_the_fork():
    events = [
        *opened("a"),
        Event(0.0, "a", "feed", tuple(TEXT[:9])),
        Event(0.0, "b", "fork", parent="a"),
        Event(0.0, "b", "feed", (1,)),
        Event(0.0, "a", "kill"),
    ]
    made = run(events)
    assert [o.state for o in made.outcomes] == ["done", "killed", "killed", "killed", "done"]


def test_sampling_and_stops():
    events = [
        *opened("a"),
        Event(0.0, "a", "say", tuple(TEXT[:9]), max_new=9, temperature=1.0, seed=5),
    ]
    out = run(events).outputs[1]
    with engine() as e:
        assert out == list(e.open().say(TEXT[:9], max_new=9, temperature=1.0, seed=5))
    events[1] = Event(
        0.0, "a", "say", tuple(TEXT[:9]), max_new=9, temperature=1.0, seed=5, stop=out[3]
    )
    assert run(events).outputs[1] == out[: out.index(out[3]) + 1]


def test_events_may_be_pushed_while_it_runs():
    with engine() as e:
        server = Server(e, clock=Virtual(Linear()))
        server.push(*opened("a"))
        while server.turn():
            pass
        server.push(Event(server.now, "a", "say", tuple(TEXT[:9]), max_new=4))
        server.push(Event(0.5, "a", "close", after=1))
        while server.turn():
            pass
        server.push(Event(0.0, "b", "open", after=2))  # of what is over
        while server.turn():
            pass
        assert server.run.outputs[1] == said([("say", TEXT[:9], 4)])[0]
        assert set(server.seats) == {"b"}
        server.close()


def test_a_fork_that_is_killed_before_its_turn_is_never_born():
    told = tuple(TEXT[:9])
    events = [
        *opened("a"),
        Event(0.0, "a", "say", told, max_new=4),
        Event(0.0, "b", "fork", parent="a"),
        Event(0.0, "c", "fork", parent="b"),
        Event(1.5, "b", "kill"),
        Event(2.5, "b", "feed", told),
        Event(2.5, "c", "feed", told),
        Event(9.0, "b", "open"),  # another of that name
        Event(9.0, "b", "say", told, max_new=4),
    ]
    made = run(events)
    assert [o.state for o in made.outcomes[2:7]] == ["killed", "killed", "done", "killed", "killed"]
    assert made.outputs[1] == made.outputs[8] == said([("say", TEXT[:9], 4)])[0]


@pytest.mark.parametrize("swaps", [False, True])
def test_pages_that_forks_share_can_be_had(swaps):
    class Chosen(Arrival):
        def swaps(self, seat, desk):
            return swaps

    long = tuple(TEXT[:100])  # 7 pages of 16, of the 12 that there are
    events = [
        *opened("a"),
        Event(0.0, "a", "feed", long),
        Event(0.0, "b", "fork", parent="a"),
        Event(5.0, "c", "open"),
        Event(5.0, "c", "say", long, max_new=2),
        Event(20.0, "b", "say", tuple(TEXT[100:104]), max_new=3),
        Event(40.0, "a", "say", tuple(TEXT[100:104]), max_new=3),
    ]
    made = run(events, Chosen(), pages=12)
    assert made.outputs[4] == said([("say", long, 2)])[0]
    assert made.outputs[5] == made.outputs[6] == said([("say", TEXT[:104], 3)])[0]


def test_a_server_may_forget_what_is_over():
    with engine() as e:
        server = Server(e, clock=Virtual(Linear()))
        server.push(*opened("a", "b"), Event(0.0, "a", "say", tuple(TEXT[:9]), max_new=4))
        server.push(Event(0.0, "b", "kill"))
        while server.turn():
            pass
        server.push(Event(server.now + 9.0, "a", "say", (), max_new=3))
        told = r"^serve\(forget\): expected a run with nothing left to do, got 1 events"
        with pytest.raises(ValueError, match=told):
            server.forget()
        assert len(server.run.events) == 5
        while server.turn():
            pass
        now, text = server.now, server.seats["a"].text.tokens()
        server.forget()
        run = server.run
        assert [run.events, run.outcomes, run.readings, run.steps, run.log] == [[]] * 5
        server.push(Event(now, "a", "say", tuple(TEXT[9:12]), max_new=2))
        server.push(Event(0.0, "b", "open", after=0))  # its first event is number 0
        while server.turn():
            pass
        script = [("say", TEXT[:9], 4), ("say", (), 3), ("say", TEXT[9:12], 2)]
        assert text == [*TEXT[:9], *(t for said_ in said(script)[:2] for t in said_)]
        assert server.run.outputs[0] == said(script)[2]
        assert server.run.outcomes[0].done > now
        server.close()


def test_copied_pages_come_back_without_reading_again():
    class Swaps(Arrival):
        def swaps(self, seat, desk):
            return True

    events = opened("a", "b")
    for i in range(4):
        events += [Event(20.0 * i, n, "say", tuple(TEXT[:30]), max_new=3) for n in "ab"]
    plain = run(events)
    swapped, again = run(events, Swaps(), pages=9), run(events, pages=9)
    assert plain.outputs == swapped.outputs == again.outputs
    assert plain.tokens == swapped.tokens < again.tokens
    assert sum(work.copied for work, _ in swapped.steps) > 0
    assert all(work.copied == 0 for work, _ in again.steps)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([Event(0, "a", "feed", (1,))], "serve(trace): expected an open stream, got 'a'"),
        (opened("a", "a"), "serve(trace): expected a name that is free, got 'a'"),
        ([*opened("a"), Event(0, "a", "rollback")],
         "serve(trace): expected a mark before a rollback, got none in 'a'"),
        ([*opened("a"), Event(0, "a", "say", max_new=1)],
         "serve(trace): expected tokens before a stream is to say something, got none in 'a'"),
        ([Event(0, "a", "open", after=0)], "serve(trace): expected after before event 0, got 0"),
        ([*opened("a"), Event(0, "a", "feed", tuple(TEXT[:100]))],
         "serve(pool_pages): expected 1 free, got 0 of 2; raise pool_pages"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(events, told):
    with pytest.raises(ValueError, match="serve") as caught:
        run(events, pages=2)
    assert str(caught.value) == told


def test_bad_arguments():
    with engine() as e:
        with pytest.raises(TypeError, match=r"^serve\(policy\): expected a Policy, got str"):
            serve(e, [], "fcfs")
        with pytest.raises(ValueError, match=r"^serve\(degrade\): expected one of late, drop, sk"):
            serve(e, [], degrade="panic")
        with pytest.raises(ValueError, match=r"^serve\(budget\): expected 1 token or more, got 0"):
            serve(e, [], budget=0)
        with pytest.raises(TypeError, match=r"^serve\(trace\): expected events, got int"):
            serve(e, [3])

    class Idle(Arrival):
        def pick(self, desk):
            return []

    with pytest.raises(ValueError, match=r"^serve\(policy\): expected a choice among what is re"):
        run([*opened("a"), Event(0.0, "a", "feed", (1,))], Idle())
    assert Share(None, 3).tokens == 3


@pytest.mark.parametrize(
    ("of", "told"),
    [
        ({"kind": "shout"}, "kind): expected one of open, fork, feed"),
        ({"stream": ""}, "stream): expected a name"),
        ({"time": -1.0}, "time): expected 0 or more, got -1"),
        ({"deadline": math.nan}, "deadline): expected 0 or more, got nan"),
        ({"max_new": -1}, "max_new): expected 0 or more, got -1"),
        ({"pace": 1.0}, "pace): expected a deadline, for the first token, got none"),
    ],
)
def test_bad_events(of, told):
    with pytest.raises((TypeError, ValueError)) as caught:
        Event(**{"time": 0.0, "stream": "a", "kind": "say", **of})
    assert told in str(caught.value)
