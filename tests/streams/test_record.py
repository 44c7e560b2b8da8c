# SPDX-License-Identifier: Apache-2.0
"""What ran once runs again, in every bit; what was tampered with does not load."""

import hashlib
import json
from dataclasses import dataclass, replace

import pytest
import torch

from headrace import Sink, Window, wrap
from headrace.streams import (
    Event,
    Linear,
    Real,
    Server,
    Virtual,
    load,
    policies,
    replay,
    save,
    serve,
    traces,
)
from headrace.streams.policies import Arrival

from .tiny import TinyDecoder, tokens

MODEL = TinyDecoder()
COST = Linear(step=5e-3, token=5e-4)
SMALL = {
    "multi_question": {"seconds": 4.0},
    "proactive": {"seconds": 4.0, "every": 1.0},
    "lanes": {"lanes": 3, "seconds": 3.0},
    "hours": {"hours": 0.05},
    "probes": {"seconds": 6.0},
    "embodied": {"seconds": 4.0},
    "agents": {"programs": 4, "turns": 2},
    "prefix_heavy": {"requests": 8},
    "retrieval": {"requests": 4},
    "services": {"requests": 10},
}
POLICIES = {name: {} for name in policies.NAMES} | {"ProgramPause": {"capacity": 300}}


def engine(pages=60, memory=None, **options):
    return wrap(MODEL, memory=memory or Window(None), page_size=16, pool_pages=pages, **options)


@pytest.mark.parametrize("shape", traces.SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_traces_are_their_seed(shape, seed):
    make = traces.SHAPES[shape]
    one, two = (make(seed, **SMALL[shape]) for _ in "ab")
    assert one == two != make(seed + 1, **SMALL[shape])
    assert all(max(e.tokens, default=0) < 256 for e in one)


@pytest.mark.parametrize("policy", policies.NAMES)
def test_a_virtual_run_runs_again_under_every_policy(policy, tmp_path):
    made = policies.make(policy, POLICIES[policy])
    for shape in ("agents", "prefix_heavy", "retrieval", "services"):
        trace = traces.SHAPES[shape](3, **SMALL[shape])
        with engine(pages=24) as e:
            run = serve(e, trace, made, Virtual(COST), budget=16)
        save(run, tmp_path / shape)
        with engine(pages=24) as e:
            again = replay(e, load(tmp_path / shape))
        assert again.outputs == run.outputs
        assert [o.state for o in run.outcomes] == ["done"] * len(trace)


@pytest.mark.parametrize("degrade", ["late", "drop", "skip", "shorten", "refuse"])
def test_a_live_run_runs_again_on_its_readings(degrade, tmp_path):
    trace = _fast(traces.lanes(lanes=3))
    with engine(memory=Sink(4) + Window(40)) as e:
        run = serve(e, trace, policies.Deadline(), Real(nap=0.001), degrade=degrade, budget=16)
    save(run, tmp_path / "run")
    kept = load(tmp_path / "run")
    assert (kept.events, kept.log, kept.readings) == (run.events, run.log, run.readings)
    assert kept.timing() == run.timing()
    with engine(memory=Sink(4) + Window(40)) as e:
        again = replay(e, kept)
    assert again.timing() == run.timing()
    assert Linear.fit(run.steps).step >= 0


def _fast(trace, by=60):
    """The same, `by` times as fast."""
    return [
        replace(e, time=e.time / by, deadline=None if e.deadline is None else e.deadline / by)
        for e in trace
    ]


def test_what_was_pushed_live_runs_again():
    with engine() as e:
        server = Server(e, policies.Urgency(), Real())
        server.push(Event(0.0, "a", "open"))
        for i in range(6):
            text = tuple(tokens(20, seed=i).tolist())
            server.push(Event(server.now, "a", "say", text, max_new=3, deadline=0.5))
            server.turn()
        while server.turn():
            pass
        server.close()
    with engine() as e:
        assert replay(e, server.run).outputs == server.run.outputs


def made_run(**options):
    with engine(**options) as e:
        return serve(e, traces.retrieval(requests=3), None, Virtual(COST))


def test_another_engine_or_other_weights_are_told():
    run = made_run()
    with engine(pages=61) as e, pytest.raises(ValueError, match=r"^replay\(engine\): expected"):
        replay(e, run)
    other = TinyDecoder()
    other.embedding.data[5, 5] += 1e-3
    with (
        wrap(other, memory=Window(None), page_size=16, pool_pages=60) as e,
        pytest.raises(ValueError, match=r"^replay\(run\): expected turn \d+ to be \{"),
    ):
        replay(e, run)


def test_other_decisions_are_told():
    run = made_run()
    run.log[-1]["step"] = []
    with engine() as e, pytest.raises(ValueError, match=r"^replay\(run\): expected turn"):
        replay(e, run)
    run = made_run()
    run.log.append({"at": 9.0})
    with engine() as e, pytest.raises(ValueError, match=r"^replay\(run\): expected \d+ turns, got"):
        replay(e, run)
    run = made_run()
    run.outcomes[1].read += 1
    with engine() as e, pytest.raises(ValueError, match=r"^replay\(run\): expected \{'index': 1"):
        replay(e, run)
    run = made_run()
    run.readings[:] = run.readings[:4]
    with engine() as e, pytest.raises(ValueError, match=r"^Recorded\(readings\): expected a read"):
        replay(e, run)


def test_a_policy_of_the_users_own_is_handed_in():
    @dataclass
    class Newest(Arrival):
        def order(self, job, desk):
            return tuple(-x for x in job.key)

    trace = traces.services(requests=8)
    with engine() as e:
        run = serve(e, trace, Newest(), Virtual(COST), budget=16)
    with engine() as e, pytest.raises(ValueError, match=r"^policies.make\(name\): expected"):
        replay(e, run)
    with engine() as e:
        assert replay(e, run, Newest()).log == run.log


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda text: text[:-30], "got"),
        (lambda text: text.replace('"at":', '"at": ', 1), "a checksum that does not fit"),
        (lambda text: "", "got"),
        (lambda text: "\n".join(text.splitlines()[1:]), "a checksum that does not fit"),
    ],
)
def test_a_damaged_file_is_refused(harm, told, tmp_path):
    path = tmp_path / "run"
    save(made_run(), path)
    path.write_text(harm(path.read_text()))
    with pytest.raises(ValueError, match=r"^load\(path\): expected a whole run") as caught:
        load(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_format_and_no_file_are_refused(tmp_path):
    body = json.dumps({"format": "other"}) + "\n"
    digest = hashlib.sha256(body.encode()).hexdigest()
    (tmp_path / "run").write_text(body + json.dumps({"sha256": digest}) + "\n")
    for name, told in (("run", "format 'other'"), ("none", "No such file")):
        with pytest.raises(ValueError, match=told):
            load(tmp_path / name)


def test_a_run_is_written_whole_or_not_at_all(tmp_path):
    run = made_run()
    save(run, tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    run.log.append({"at": torch.zeros(1)})
    with pytest.raises(TypeError):
        save(run, tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
