# SPDX-License-Identifier: Apache-2.0
"""Each policy against its published rule."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Window, wrap
from headrace.streams import (
    Event,
    Linear,
    Polynomial,
    Server,
    Virtual,
    load,
    policies,
    save,
    traces,
)
from headrace.streams.policies import (
    AppendUpdate,
    Arrival,
    Deadline,
    Foresight,
    JustInTime,
    Lengths,
    PrefixGroups,
    ProgramPause,
    Retention,
    Urgency,
)
from headrace.streams.seat import Job, Seat
from headrace.streams.timing import Outcome

from .stub import SECOND, Stub, first_read, in_time, opened, run
from .tiny import TinyDecoder

COST = Linear(step=5e-3, token=5e-4)
TIGHT = Linear(step=5e-3, token=5e-4, copied=2e-3)


def say(stream, count, *, new=1, at=0.0, token=1, **of):
    return Event(at, stream, "say", (token,) * count, max_new=new, **of)


def feed(stream, count, *, at=0.0, token=1, **of):
    return Event(at, stream, "feed", (token,) * count, **of)


# BatchLLM


def distinct(prompts):
    """Prefixes of the prompts, each counted once."""
    return len({prompt[:i] for prompt in prompts for i in range(1, len(prompt) + 1)})


def prompts_of(made):
    return [event.tokens for event in made.events if event.kind == "say"]


@pytest.mark.parametrize("seed", range(3))
def test_shared_prefixes_are_read_once(seed):
    """And what is said are the bits of runs that share nothing."""
    trace = traces.prefix_heavy(seed, requests=10)
    model = TinyDecoder()
    alone = run(trace, Arrival(), model=model)
    shared = run(trace, PrefixGroups(), model=model, budget=64)
    said = sum(map(len, shared.outputs.values()))
    assert shared.outputs == alone.outputs
    assert shared.tokens - said == distinct(prompts_of(shared))
    assert alone.tokens - said == sum(map(len, prompts_of(alone)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=9))
def test_any_tree_of_prompts(prompts):
    trace = []
    for i, prompt in enumerate(prompts):
        trace += opened(f"{i}")
        trace.append(Event(0.0, f"{i}", "say", tuple(prompt), max_new=1 + i % 3))
    made = run(trace, PrefixGroups(), budget=5)
    said = sum(map(len, made.outputs.values()))
    assert made.tokens - said == distinct(prompts_of(made))
    assert made.outputs == run(trace).outputs


def test_groups_with_much_to_say_for_what_they_read_go_first():
    """Two groups of which answers are known to be long or short by now."""
    trace = [*opened("long", "short"), say("long", 3, new=30, group="long")]
    trace += [say("short", 3, token=2, group="short"), *opened("b", "d", "a", "c")]
    for name in "bdac":
        group, token = ("short", 5) if name in "bd" else ("long", 6)
        text = (token,) * 8 + (ord(name),)
        trace.append(Event(90.0, name, "say", text, max_new=2, group=group))
    order = first_read(run(trace, PrefixGroups(), budget=8))
    assert order[2:] == ["stem 1", "a", "c", "stem 2", "b", "d"]
    assert first_read(run(trace, Arrival(), budget=8))[2:] == ["b", "d", "a", "c"]


@pytest.mark.parametrize("pages", [12, 16, 24])
def test_a_tree_that_is_larger_than_the_pool(pages):
    trace = traces.prefix_heavy(1, requests=10)
    made = run(trace, PrefixGroups(), pages=pages, budget=32)
    assert made.outputs == run(trace).outputs
    assert made.tokens < run(trace, pages=pages, budget=32).tokens


# Stream2LLM


def test_an_update_keeps_the_longest_common_prefix():
    trace = opened("a")
    texts = [(1, 2, 3, 4, 5, 6), (1, 2, 3, 9, 9), (1, 2, 3, 9, 9), (7,), (7, 8, 9)]
    trace += [Event(float(9 * i), "a", "update", text) for i, text in enumerate(texts)]
    made = run(trace, AppendUpdate())
    assert [o.kept for o in made.outcomes[1:]] == [0, 3, 5, 0, 1]
    # One token of a prefix that is cut is read again, for what it predicts.
    assert [o.read for o in made.outcomes[1:]] == [6, 3, 0, 1, 2]


@pytest.mark.parametrize("queue", ["arrival", "last_chunk", "most_chunks"])
@pytest.mark.parametrize("pages", [600, 14])
def test_prompts_in_pieces_say_what_whole_ones_do(queue, pages):
    """However the pieces came, and whatever was given up for want of pages."""
    trace = traces.retrieval(2, requests=4)
    model = TinyDecoder()
    made = run(trace, AppendUpdate(queue), model=model, pages=pages, cost=TIGHT, budget=24)
    for out in (o for o in made.outcomes if o.kind == "say"):
        text = ()
        for event in (e for e in trace if e.stream == out.stream):
            if event.kind == "update":
                text = event.tokens
            elif event.kind in ("feed", "say"):
                text += event.tokens
        whole = [*opened("a"), Event(0.0, "a", "say", text, max_new=len(out.said))]
        assert run(whole, model=model).outputs[1] == out.said


def pieces():
    """a: 3 pieces from 0 s, b: 1 from 0.1 s, c: 2 from 0.2 s, all within one step; d asks."""
    return [
        *opened("z", "a", "b", "c", "d"), feed("z", 8),
        feed("a", 8, at=0.1), feed("b", 8, at=0.2), feed("c", 8, at=0.3), feed("a", 8, at=0.4),
        feed("a", 8, at=0.5), feed("c", 8, at=0.6), say("d", 8, at=0.7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("queue", "order"), [("arrival", "zdabc"), ("last_chunk", "zdcab"), ("most_chunks", "zdacb")]
)
def test_the_order_of_pieces(queue, order):
    """A complete prompt comes before all partial ones; a stream of whose pieces none is left to
    read has no say."""
    assert "".join(first_read(run(pieces(), AppendUpdate(queue), budget=8))) == order


def parked(made):
    return [how for turn in made.log for _, how in turn.get("parked", [])]


@pytest.mark.parametrize(
    ("recompute", "swap", "ways"),
    [
        ((0.0, 1e-3), (0.0, 1e-2), {"recompute"}),
        ((0.0, 1e-2), (0.0, 1e-3), {"swap"}),
        ((0.0, 1e-3), (0.0, 1e-3), {"swap"}),  # equal
        ((0.0, 0.0, 1.0), (45.0 * 45.0,), {"recompute", "swap"}),  # n**2 against that of 45 tokens
    ],
)
def test_what_is_given_up_goes_the_cheaper_way(recompute, swap, ways):
    trace = []
    for i, (name, size) in enumerate((("a", 30), ("b", 60), ("c", 30), ("d", 60))):
        trace += [Event(10.0 * i, name, "open"), feed(name, size, at=10.0 * i, token=2 + i)]
    trace += [say(name, 2, at=50.0 + 9 * i, new=3) for i, name in enumerate("abcd")]
    made = run(trace, AppendUpdate(recompute=recompute, swap=swap), pages=9, cost=TIGHT)
    assert made.outputs == run(trace).outputs
    assert set(parked(made)) == ways
    for turn in made.log:
        for name, how in turn.get("parked", []):
            n = {"a": 30, "b": 60, "c": 30, "d": 60}[name]
            spoke = any(o.stream == name and o.said and o.done < turn["at"] for o in made.outcomes)
            n += 5 * spoke
            cheaper = Polynomial(recompute)(n) < Polynomial(swap)(n)
            assert how == ("recompute" if cheaper else "swap")


# JITServe


def test_what_no_longer_fits_is_put_off():
    """Three that need 4 s each, all due after 9 s: two of them can be in time, one by one."""
    trace = opened("a", "b", "c")
    trace += [feed(name, 32, deadline=9.0) for name in "abc"]
    made = run(trace, JustInTime(), budget=8)
    assert sorted(not o.missed for o in made.outcomes[3:]) == [False, True, True]
    short = [*opened("a", "b"), feed("a", 64, deadline=9.0), feed("b", 16, deadline=9.5)]
    # The first step is taken before any was measured; then the longer one costs the other.
    for policy, kept in ((JustInTime(), [True, False]), (Deadline(), [False, True])):
        assert [o.missed for o in run(short, policy, budget=8).outcomes[2:]] == kept


def test_the_lost_and_the_undated_wait():
    trace = [
        *opened("z", "lost", "free", "dated"), feed("z", 8, deadline=0.5),
        feed("lost", 8, deadline=0.6), feed("free", 8), feed("dated", 8, deadline=40.0),
    ]  # fmt: skip
    assert first_read(run(trace, JustInTime(), budget=8)) == ["z", "dated", "free", "lost"]


@pytest.mark.parametrize("rate", [30, 60])
def test_goodput_is_not_below_that_of_the_baselines(rate, tmp_path):
    ours, edf, fcfs = [], [], []
    for seed in range(4):
        trace = traces.services(seed, requests=40, rate=rate)
        recorded = run(trace, Arrival(), cost=COST, budget=16)
        save(recorded, tmp_path / "run")
        trace = load(tmp_path / "run").events
        fcfs.append(in_time(recorded))
        ours.append(in_time(run(trace, JustInTime(), cost=COST, budget=16)))
        edf.append(in_time(run(trace, Deadline(), cost=COST, budget=16)))
    assert sum(ours) >= sum(edf) > sum(fcfs)


def test_estimates_tighten_as_tokens_arrive():
    """The distance between an upper and a lower quantile of the whole length never grows."""
    lengths = Lengths(0.9, 16)
    seat = Seat.__new__(Seat)
    for said in (2, 3, 5, 8, 13, 21, 34, 55):
        out = Outcome(0, "a", "say", 0.0, 9.0, said=[0] * said)
        lengths.learn(Job(Event(0.0, "a", "say", group="g"), out, seat))
    spread, totals = [], []
    for said in range(60):
        low, high = (lengths.total("g", said, q) for q in (0.1, 0.9))
        assert said < low <= high
        spread.append(high - low)
        totals.append(high)
    assert spread[0] == 53
    assert all(after <= before for before, after in pairwise(spread))
    assert spread[-1] == 0
    assert lengths.total("g", 13) == 55
    assert lengths.total("other") == 16
    assert lengths.total("other", 40) == 41
    assert totals[:55] == sorted(totals[:55])


# ThunderAgent


def turns(name, first, gap, count, size=16, new=2):
    """A program: (events, number of its last)."""
    made, at = [Event(0.0, name, "open")], first + 1
    made.append(say(name, size, new=new))
    for _ in range(count - 1):
        made.append(say(name, 4, new=new, at=gap, after=at))
        at += 1
    return [*made, Event(0.0, name, "close", after=at)]


def programs(sizes, gap=6.0, count=4):
    trace = []
    for i, size in enumerate(sizes):
        trace += turns("abcdefgh"[i], len(trace), gap, count, size)
    return trace


def test_programs_pause_so_that_none_reads_again():
    """Six programs of about 80 tokens where pages hold three: served by arrival they take one
    another's pages at every turn; paused, those that run keep theirs."""
    trace = programs([64] * 6)
    cost = Linear(step=0.05, token=0.01)
    policy = ProgramPause(capacity=300, period=1.0, reserve=24)
    made = {}
    for name, chosen in (("paused", policy), ("arrival", Arrival())):
        made[name] = run(trace, chosen, pages=19, cost=cost, budget=32)
    assert made["paused"].outputs == made["arrival"].outputs
    thrash = {name: len(parked(run)) for name, run in made.items()}
    assert thrash["paused"] < thrash["arrival"] / 2
    assert made["paused"].tokens < made["arrival"].tokens


def test_the_largest_that_fits_resumes_first():
    """Of 50, 90 and 20 tokens and a capacity of 115: 90, then 20; 50 when one is over."""
    trace = [*opened("a", "b", "c"), say("a", 50), say("b", 90), say("c", 20)]
    trace += [Event(0.0, n, "close", after=3 + i) for i, n in enumerate("abc")]
    made = run(trace, ProgramPause(capacity=115, reserve=1), budget=256)
    assert first_read(made)[-1] == "a"
    steps = [sorted(made.outcomes[i].stream for i, _ in t["step"]) for t in made.log if "step" in t]
    assert steps[0] == ["b", "c"]


def test_the_smallest_that_acts_pauses_else_one_is_marked():
    policy = ProgramPause(capacity=100, period=1.0, reserve=0)
    # a (40) and b (50) act when c grows; b and c (again grown) reason together at last.
    trace = [*opened("a", "b"), say("a", 36, new=2), say("b", 46, new=2)]
    trace += [say("a", 30, at=3.0, new=9, after=2), say("b", 30, at=3.0, new=9, after=3)]
    with wrap(Stub(), memory=Window(None), page_size=16, pool_pages=600) as engine:
        server = Server(engine, policy, Virtual(SECOND))
        server.push(*trace)
        seen = []
        while server.turn():
            seen.append((set(server.policy.active), set(server.policy.marked)))
        policy = server.policy
        server.close()
    # Both come back with 30 more: 146 in all, neither acts, so the smaller is marked, and pauses
    # only when its turn is over.
    assert ({"a", "b"}, {"a"}) in seen
    paused_at = [at for at, name in policy.pauses if name == "a"]
    over = server.run.outcomes[4].done
    assert paused_at
    assert paused_at[0] >= over
    assert not any(name == "b" for _, name in policy.pauses)


def test_one_that_is_larger_than_the_capacity_still_runs():
    trace = [*opened("a", "b"), say("a", 80), say("b", 80)]
    trace += [Event(0.0, n, "close", after=2 + i) for i, n in enumerate("ab")]
    assert run(trace, ProgramPause(capacity=40)).outcomes[3].said


@pytest.mark.parametrize("fields", [{}, {"capacity": 9, "period": 0.0}])
def test_a_pause_needs_a_capacity_and_a_period(fields):
    with pytest.raises(ValueError, match=r"^ProgramPause\(capacity\): expected tokens and a per"):
        ProgramPause(**fields)


# SAGA


def hit_rate(trace, policy, pages):
    """Share of the turns after the first that found what their stream had read; and tokens."""
    made = run(trace, policy, pages=pages, cost=Linear(step=0.02, token=1e-3), budget=64)
    found = made.policy
    return found.hits / (found.hits + found.misses), made.tokens


class Recent(Retention):
    """The longest unused goes first, as in any policy; it only counts."""

    def victims(self, desk, job):
        return Arrival.victims(self, desk, job)


def test_retention_lies_between_recency_and_foresight():
    trace = []
    made = {name: [] for name in ("recent", "saga", "foresight")}
    for seed in range(4):
        trace = traces.agents(seed, programs=12, turns=6, spread=4.0)
        for name, policy in zip(made, (Recent(), Retention(), Foresight()), strict=True):
            made[name].append(hit_rate(trace, policy, 30)[0])
    mean = {name: sum(rates) / len(rates) for name, rates in made.items()}
    assert mean["recent"] < mean["saga"] <= mean["foresight"] + 1e-9
    assert mean["foresight"] < 1


def test_gaps_of_a_tool_say_when_a_stream_is_back():
    policy = Retention(quantile=0.5, prior=3.0)

    class Desk:
        now = 0.0

    def arrive(name, at):
        seat = Seat("x", type("S", (), {"tokens": 0})())
        seat.name = name
        policy.arrived(Job(say(name, 1), Outcome(0, name, "say", at, math.inf), seat), desk)

    def finish(name, at, tool):
        desk.now = at
        seat = Seat(name, None)
        out = Outcome(0, name, "say", 0.0, 9.0)
        policy.finished(Job(say(name, 1, group=tool), out, seat), desk)

    desk = Desk()
    finish("a", 10.0, "search")
    assert policy.back("a", desk) == 13.0  # nothing is known but the prior
    for gap in (1.0, 2.0, 4.0):
        arrive("a", desk.now + gap)
        finish("a", desk.now + 20.0, "search")
    assert policy.back("a", desk) == desk.now + 2.0
    desk.now += 3.0
    assert policy.back("a", desk) == desk.now + 1.0  # of those that took longer
    desk.now += 3.0
    assert policy.back("a", desk) == desk.now + 6.0  # none did
    for name in "bcde":
        finish(name, desk.now, "end")
        policy.closed(name, desk)
    finish("f", desk.now, "end")
    assert policy.back("f", desk) == math.inf
    assert policy.back("g", desk) == desk.now


# HexGen


def test_work_over_slack():
    """At 1 s a token: 40 due after 80 s, 10 after 50 s, 2 after 25 s. At 8 s that is 36/72, 10/42
    and 2/17, at 24 s 20/56, 10/26 and 2/1. One that is overdue at once is the first."""
    trace = [
        *opened("z", "a", "b", "c", "d", "e"),
        feed("z", 8), feed("a", 40, deadline=80.0), feed("b", 10, deadline=50.0),
        feed("c", 2, deadline=25.0), feed("d", 8), feed("e", 4, deadline=0.0),
    ]  # fmt: skip
    token = Linear(step=0.0, token=1.0)
    assert "".join(first_read(run(trace, Urgency(), budget=8, cost=token))) == "eacbzd"
    assert "".join(first_read(run(trace, Deadline(), budget=8, cost=token))) == "ecbazd"


def test_a_chain_counts_what_is_still_to_follow():
    """Two due alike; behind one, as learnt from the one before it, come two more."""
    trace, at = [], 0
    for i, name in enumerate("lm"):
        trace += [Event(20.0 * i, name, "open")]
        first = len(trace)
        trace.append(say(name, 4, new=4, at=20.0 * i, deadline=90.0, group="chain"))
        for _ in range(2):
            trace.append(
                say(name, 4, new=4, deadline=90.0, after=len(trace) - 1, since=first, group="chain")
            )
        trace.append(Event(0.0, name, "close", after=len(trace) - 1))
    at = 200.0
    for name, group in (("one", "single"), ("many", "chain")):
        trace += [Event(at, name, "open")]
        trace.append(say(name, 8, new=4, at=at, deadline=60.0, group=group))
    assert first_read(run(trace, Urgency(prior=4), budget=8))[2:] == ["many", "one"]


# All of them


@pytest.mark.parametrize("name", policies.NAMES)
def test_a_policy_is_plain_data(name):
    of = {"capacity": 99} if name == "ProgramPause" else {}
    made = policies.make(name, of)
    again = policies.make(name, made.plain())
    assert (type(again), again.plain()) == (type(made), made.plain())


def test_a_queue_without_a_name():
    with pytest.raises(ValueError, match=r"^AppendUpdate\(queue\): expected one of arrival, last"):
        AppendUpdate("newest")
