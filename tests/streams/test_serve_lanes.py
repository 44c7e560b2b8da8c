# SPDX-License-Identifier: Apache-2.0
"""Streams of several lanes in runs: fused steps, interrupts, and replay bit for bit."""

from __future__ import annotations

import pytest
import torch

from headrace import Lane, PerLane, Sink, Window, wrap
from headrace.streams import (
    Event,
    Linear,
    Real,
    Virtual,
    lanes_oracle,
    load,
    policies,
    replay,
    save,
    serve,
)
from headrace.streams.saying import pick

from .tiny import TinyDecoder, tokens

MODEL = TinyDecoder()
LANES = (Lane("see"), Lane("say", reads=("see",), kind="out"))
COST = Linear(step=5e-3, token=5e-4)


def engine(lanes=LANES, pages=200, **options):
    options = {"memory": Sink(2) + Window(60), "page_size": 16, "pool_pages": pages, **options}
    return wrap(MODEL, lanes=lanes, **options)


def watching(names="ab", frames=8, count=6):
    """Frames come in while something is said about them."""
    made = []
    for at, name in enumerate(names):
        made.append(Event(0.01 * at, name, "open"))
        for i in range(frames):
            fed = tuple(tokens(count, seed=10 * at + i).tolist())
            made.append(Event(0.02 * i + 0.01 * at, f"{name}/see", "feed", fed, deadline=0.05))
        made.append(
            Event(0.03, f"{name}/say", "say", (1, 2), max_new=12, deadline=0.5, temperature=2.0)
        )
        made.append(Event(1.0 + 0.1 * frames, name, "close"))
    return made


def ran(events, policy=None, **options):
    with engine(**options) as e:
        run = serve(e, events, policy, Virtual(COST), budget=16)
        assert e.pool.live_pages == 0
        written = e.pool.written_bytes
        row = e.pool.row_bytes * e.pool.k.shape[0]
    assert written == run.tokens * row  # no key is copied
    return run


def test_reading_and_saying_share_steps():
    run = ran(watching())
    assert all(o.state == "done" for o in run.outcomes)
    kinds = [{run.events[i].kind for i, _ in turn["step"]} for turn in run.log if "step" in turn]
    assert sum(kind == {"feed", "say"} for kind in kinds) >= 8
    said = [o for o in run.outcomes if o.kind == "say"]
    frames = [o for o in run.outcomes if o.kind == "feed"]
    assert [len(o.said) for o in said] == [12, 12]
    last = max(o.done for o in frames)
    assert any(o.first < last for o in said)


def test_what_is_said_is_what_the_masked_forward_says():
    run = ran(watching("a"))
    fed = {name: [] for name in ("see", "say")}
    ticks = {name: [] for name in fed}
    whole = {"see": [t for e in run.events if e.kind == "feed" for t in e.tokens],
             "say": [1, 2, *run.outputs[9]]}  # fmt: skip
    for tick, turn in enumerate(turn for turn in run.log if "step" in turn):
        for index, count in turn["step"]:
            name = run.events[index].stream.partition("/")[2]
            fed[name] += whole[name][len(fed[name]) : len(fed[name]) + count]
            ticks[name] += [tick] * count
    assert run.events[9].kind == "say"
    fed, ticks = ({k: torch.tensor(v) for k, v in x.items()} for x in (fed, ticks))
    want = lanes_oracle(MODEL, fed, ticks, LANES, Sink(2) + Window(60), PerLane())["say"]
    generator = torch.Generator().manual_seed(0)
    assert [pick(row, 2.0, generator) for row in want[1:-1]] == run.outputs[9]
    assert len(set(run.outputs[9])) > 2


@pytest.mark.parametrize("policy", [policies.Arrival(), policies.Deadline(), policies.JustInTime()])
def test_a_run_of_lanes_runs_again_in_every_bit(policy, tmp_path):
    run = ran(watching("abc"), policy)
    save(run, tmp_path / "run")
    with engine() as e:
        again = replay(e, load(tmp_path / "run"))
    assert again.log == run.log
    assert again.outputs == run.outputs
    other = (Lane("see"), Lane("say", kind="out"))
    with engine(other) as e, pytest.raises(ValueError, match=r"^replay\(engine\): expected"):
        replay(e, run)
    changed = TinyDecoder(seed=1)
    with wrap(changed, lanes=LANES, memory=Sink(2) + Window(60), page_size=16,
              pool_pages=200) as e, pytest.raises(ValueError, match=r"^replay\(run\)"):  # fmt: skip
        replay(e, run)


def test_a_live_run_of_lanes_runs_again_on_its_readings(tmp_path):
    with engine() as e:
        run = serve(e, watching("ab"), policies.Deadline(), Real(nap=0.001), budget=16)
    save(run, tmp_path / "run")
    with engine() as e:
        assert replay(e, load(tmp_path / "run")).outputs == run.outputs


@pytest.mark.parametrize("whole", [True, False])
def test_an_interrupt_stops_what_is_said_within_a_step(whole):
    events = watching("ab", frames=30)
    say = next(i for i, e in enumerate(events) if e.kind == "say")
    events[say] = Event(0.03, "a/say", "say", (1, 2), max_new=100)
    at = 0.2
    run = ran([*events, Event(at, "a" if whole else "a/say", "interrupt")])
    out, plain = run.outcomes[say], ran(events).outcomes[say]
    assert out.state == "shortened"
    assert 0 < len(out.said) < len(plain.said) == 100
    assert out.said == plain.said[: len(out.said)]
    step = max(seconds for _, seconds in run.steps)
    assert max(out.emitted) <= at + step
    assert [o.state for i, o in enumerate(run.outcomes) if i != say] == ["done"] * len(events)


def test_a_mark_is_of_all_lanes_and_waits_for_them():
    text = tuple(tokens(9).tolist())
    events = [
        Event(0, "a", "open"),
        Event(0, "a/see", "feed", text),
        Event(0, "a/say", "say", (1,), max_new=2),
        Event(0, "a", "mark"),
        Event(0, "a/say", "say", (3,), max_new=4),
        Event(0, "a/see", "feed", text[::-1]),
        Event(0, "a", "rollback"),
        Event(0, "a/say", "say", (3,), max_new=4),
        Event(0, "a", "close"),
    ]
    quiet = [e for i, e in enumerate(events) if i != 5]
    for trace in (events, quiet):
        run = ran(trace)
        assert [o.state for o in run.outcomes] == ["done"] * len(trace)
        first, second = [i for i, e in enumerate(trace) if e.kind == "say" and e.max_new == 4]
        assert len(run.outputs[first]) == len(run.outputs[second]) == 4
    assert run.outputs[first] == run.outputs[second]  # nothing came between


def test_lanes_keep_their_pages_under_pressure():
    """Who has many is never a victim in parts; a plain stream could be."""
    events = watching("abc", frames=4)
    run = ran(events, policies.JustInTime(), pages=48)
    assert not any("parked" in turn for turn in run.log)


def test_kill_ends_all_lanes():
    events = watching("a", frames=20)
    run = ran([*events[:-1], Event(0.06, "a", "kill"), Event(0.07, "a/see", "feed", (1, 2))])
    states = [o.state for o in run.outcomes]
    assert states[-1] == "killed"
    assert "done" in states
    assert states.count("killed") > 3


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Event(0, "a", "feed", (1,)), "expected one of close, kill, mark, rollback, interrupt of"),
        (Event(0, "a/see", "kill"), "expected one of feed, say, interrupt of one of its lanes"),
        (Event(0, "a/see", "update", (1,)), "got update of 'a/see'"),
        (Event(0, "b", "fork", parent="a"), "got fork of 'a'"),
    ],
)
def test_what_lanes_cannot_do_is_told(event, says):
    with engine() as e, pytest.raises(NotImplementedError, match=says):
        serve(e, [Event(0, "a", "open"), event], clock=Virtual(COST))


def test_names_of_lanes_are_checked():
    for events in ([Event(0, "a/hear", "feed", (1,))], [Event(0, "a", "open")] * 2):
        with engine() as e, pytest.raises(ValueError, match=r"^serve\(trace\): expected"):
            serve(e, [Event(0, "a", "open"), *events], clock=Virtual(COST))
