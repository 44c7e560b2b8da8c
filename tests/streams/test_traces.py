# SPDX-License-Identifier: Apache-2.0
"""Traces of lanes, and what the shapes are about."""

from __future__ import annotations

from itertools import pairwise

import pytest

from headrace import Window, wrap
from headrace.streams import Linear, Virtual, policies, replay, serve, traces

from .stub import Stub

COST = Linear(step=6e-2, token=5e-4)
SMALL = {"x_stream": {"seconds": 3.0}, "gaze": {"seconds": 3.0}}


def engine(lanes=()):
    return wrap(Stub(), memory=Window(None), lanes=lanes, page_size=16, pool_pages=300, exact=False)


@pytest.mark.parametrize("shape", traces.OF_LANES)
@pytest.mark.parametrize("policy", [policies.Arrival(), policies.Deadline()], ids=repr)
def test_traces_of_lanes_run_and_run_again(shape, policy):
    make, lanes = traces.OF_LANES[shape]
    trace = make(1, **SMALL[shape])
    assert trace == make(1, **SMALL[shape]) != make(2, **SMALL[shape])
    with engine(lanes) as e:
        run = serve(e, trace, policy, Virtual(COST), budget=16)
        assert e.pool.live_pages == 0
    assert {o.state for o in run.outcomes} == {"done"}
    kinds = [{run.events[i].group for i, _ in turn["step"]} for turn in run.log if "step" in turn]
    assert any({"frame", "question"} <= kind for kind in kinds)  # read and written at once
    with engine(lanes) as e:
        assert replay(e, run).log == run.log


def test_a_question_across_cameras_goes_to_the_lane_that_reads_them_all():
    lanes = traces.x_stream_lanes(3)
    assert lanes[-1].reads == ("camera 0", "camera 1", "camera 2")
    trace = traces.x_stream(0, cameras=3, seconds=3.0)
    assert {e.stream.partition("/")[2] for e in trace if e.kind == "say"} == {"answer"}
    fed = {e.stream.partition("/")[2] for e in trace if e.kind == "feed"}
    assert fed == {"camera 0", "camera 1", "camera 2"}


def test_gaze_comes_more_often_than_frames_and_is_due_sooner():
    trace = traces.gaze(0, people=1, seconds=20.0)
    looks, frames = ([e for e in trace if e.group == g] for g in ("gaze", "frame"))
    assert len(looks) > len(frames)
    assert max(e.deadline for e in looks) < min(e.deadline for e in frames)
    asked = [e.time for e in trace if e.group == "question"]
    assert sum(any(abs(t - e.time - 0.05) < 1e-9 for e in looks) for t in asked) >= 2


def test_probes_ask_the_same_at_even_times():
    trace = [e for e in traces.probes(3, videos=1, seconds=10.0, every=2.0) if e.group == "probe"]
    assert len({e.tokens for e in trace}) == 1
    gaps = {round(b.time - a.time, 6) for a, b in pairwise(trace)}
    assert (len(trace), gaps) == (5, {2.0})


def test_a_proactive_trace_can_be_probed_and_is_otherwise_the_same():
    online, probed = traces.proactive(2), traces.proactive(2, videos=1, probe=0.5)
    assert not any(e.group == "probe" for e in online)
    assert sum(e.group == "probe" for e in probed) == 40
    assert all(e.max_new == 1 for e in probed if e.group == "probe")
    alerts = [e.time for e in traces.proactive(2, videos=1) if e.group == "alert"]
    assert [e.time for e in probed if e.group == "alert"] == alerts


def test_scopes_of_a_question_have_their_deadlines():
    trace = [e for e in traces.embodied(0, questions=60) if e.kind == "say"]
    due = {g: [e.deadline for e in trace if e.group == g] for g in ("past", "now", "next")}
    assert max(due["now"]) < min(due["next"]) <= max(due["next"]) <= min(due["past"])
    assert all(e.max_new <= 2 for e in trace if e.group == "now")
