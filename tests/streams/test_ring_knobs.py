# SPDX-License-Identifier: Apache-2.0
"""When a knob acts: exactly at the next tick, or exactly after the steps of a frame."""

import math

import pytest
import torch

from headrace import Sink, Window
from headrace.streams import Diffusion
from headrace.streams.ring_knobs import ACTS, FIXED
from headrace.streams.ring_oracle import unrolled

from .rings import DENOISER, LEVELS, NOISE, clip, constant, played, ring, stacked, told

START = {"guidance": 1.2, "condition": told(), "negative": told(1)}
TURNED = {
    "guidance": 1.7,
    "delta": 0.4,
    "velocity": 0.8,
    "renoise": 0.2,
    "target": 0.3,
    "condition": told(5),
    "negative": told(6),
    "levels": (0.8, 0.6, 0.4, 0.2),
    "start": 0.95,
}
LAST = {"renoise"}  # it has no say in a last step, so it shows one tick later
TURN = 5  # before this tick
STEPS = len(LEVELS)


def options(name):
    kind = "full" if name == "negative" else "self" if name == "delta" else "initialize"
    return {"guidance": kind, "memory": Window(2), "solver": Diffusion()}


def run(name=None, acts=None, kind=None):
    with ring(acts=acts, knobs=START, **(kind or options(name))) as made:
        return played(made, clip(12), {TURN: {name: TURNED[name]}} if name else None)


@pytest.mark.parametrize(
    ("name", "acts"),
    [(n, a) for n in TURNED for a in ("tick", "frame") if a == "frame" or n not in FIXED],
)
def test_a_knob_first_acts_when_it_says(name, acts):
    declared = {} if acts == ACTS[name] else {name: acts}
    # Alone, so that nothing but the knob carries the change from one frame to another.
    kind = {**options(name), "memory": None}
    plain, turned = run(kind=kind), run(name, declared, kind)
    differ = [a.ended for a, b in zip(plain, turned, strict=True) if not a.frame.equal(b.frame)]
    first = TURN + (STEPS - 1 if acts == "frame" else name in LAST)
    assert differ == list(range(first, 12 + STEPS - 1))
    with ring(acts=declared, knobs=START, **kind) as made:
        for frame in clip(TURN):
            made.tick(frame)
        # What `set` promises; a knob without a say in the last step keeps it one tick later.
        assert made.set(**{name: TURNED[name]}) == {name: first - (name in LAST and acts == "tick")}


@pytest.mark.parametrize("name", list(TURNED))
def test_turned_on_the_way_it_equals_the_schedule_with_the_knobs_of_every_step(name):
    acts = ACTS[name]

    def knobs(number, step):
        when = number if acts == "frame" else number + step  # its first tick, or this one
        return {**START, "levels": LEVELS, **({name: TURNED[name]} if when >= TURN else {})}

    want = unrolled(DENOISER, clip(9), NOISE, knobs, **options(name))
    with ring(knobs=START, **options(name)) as made:
        got = stacked(played(made, clip(9), {TURN: {name: TURNED[name]}}))
    assert (got - want).abs().max() < 2e-5 * want.abs().max()


def test_a_knob_for_one_frame():
    with ring(knobs=START) as made:
        plain = stacked(played(made, clip(6)))
    with ring(knobs=START) as made:
        done = []
        for number, frame in enumerate(clip(6)):
            own = {"condition": told(9), "levels": (0.6, 0.5, 0.4, 0.3)} if number == 2 else {}
            done += made.tick(frame, **own)
        done += made.drain()
        assert made.knobs["condition"].equal(told())
    differ = (stacked(done) != plain).flatten(1).any(1).tolist()
    assert differ == [False, False, True, False, False, False]


def test_curves_and_conditions_of_tokens():
    curve = torch.linspace(0, 1, 16)[:, None]
    by_token = torch.randn(16, 8, generator=torch.Generator().manual_seed(3))
    knobs = {"velocity": 1 - curve / 4, "target": curve / 2, "condition": by_token}
    want = unrolled(DENOISER, clip(5), NOISE, constant(**knobs))
    with ring(knobs=knobs) as made:
        got = stacked(played(made, clip(5)))
    assert (got - want).abs().max() < 2e-5 * want.abs().max()
    with ring(knobs={"velocity": 0.9}) as made:
        assert not torch.equal(stacked(played(made, clip(5))), got)


def test_what_a_caller_does_to_a_tensor_afterwards_does_not_show():
    mine = told()
    with ring(knobs={"condition": mine}) as made:
        mine += 1
        assert made.knobs["condition"].equal(told())


def test_turning_is_all_or_nothing():
    with ring() as made:
        before = dict(made.knobs)
        for bad in (
            {"velocity": 2.0, "condition": torch.zeros(9)},
            {"velocity": 2.0, "levels": (0.3, 0.9)},
            {"velocity": 2.0, "nonsense": 1},
        ):
            with pytest.raises(ValueError, match=r"^Ring.set"):
                made.set(**bad)
        assert dict(made.knobs) == before
        assert list(made.knobs) == list(ACTS)
        assert len(made.knobs) == len(ACTS)


def test_a_changed_number_of_steps():
    with ring() as made:
        made.tick(clip(1)[0])
        assert made.set(levels=(0.9, 0.5)) == {"levels": 2}
        done = made.tick(clip(2)[1]) + made.drain()
    assert [(f.number, f.ended) for f in done] == [(1, 2), (0, 3)]
    with ring(memory=Sink(1) + Window(1)) as made:
        line = r"expected 4 levels, got .*; every step has a"
        with pytest.raises(ValueError, match=line):
            made.set(levels=(0.9, 0.5))
        with pytest.raises(ValueError, match=line):
            made.tick(clip(1)[0], levels=[1])
        assert made.now == 0


def test_guidance_at_one_is_the_prediction_itself():
    """g = 1 leaves what the model said with its condition, to rounding."""
    with ring(knobs={"condition": told()}) as made:
        want = stacked(played(made, clip(5)))
    for kind in ("self", "initialize", "full"):
        with ring(guidance=kind, knobs={"condition": told()}) as made:
            got = stacked(played(made, clip(5)))
        assert math.isclose(float((got - want).abs().max()), 0, abs_tol=2e-5)
