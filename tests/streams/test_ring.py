# SPDX-License-Identifier: Apache-2.0
"""A ring gives what the sequential schedule gives."""

import pytest
import torch

from headrace import InCache, Ring, Sink, Window, ops
from headrace.models import Denoiser, DenoiserConfig
from headrace.streams import Diffusion
from headrace.streams.ring_oracle import rolled, unrolled

from .rings import DENOISER, LEVELS, NOISE, clip, constant, played, ring, stacked, told

BOUND = 2e-5
BEHIND = {"memory": Sink(2) + Window(3)}
CASES = {
    "alone": ({}, {}),
    "diffusion": ({"solver": Diffusion()}, {}),
    "ode": ({}, {"renoise": 0.0}),
    "between": (
        {"solver": Diffusion()},
        {"renoise": 0.3, "target": 0.2, "velocity": 0.9, "start": 0.95},
    ),
    "behind": (BEHIND, {}),
    "window alone": ({"memory": Window(2)}, {}),
    "itself alone": ({"memory": Sink(1) + Window(1)}, {}),
    "ranks": ({**BEHIND, "positions": InCache()}, {}),
    "blocks": ({**BEHIND, "span": 4}, {}),
    "swaps": ({**BEHIND, "swap": 0.5}, {}),
    "swaps by rank": ({**BEHIND, "swap": 0.5, "positions": InCache(), "span": 2}, {}),
    "full": ({"guidance": "full"}, {"guidance": 1.5, "condition": told(), "negative": told(1)}),
    "self": ({"guidance": "self"}, {"guidance": 1.2, "delta": 0.8, "condition": told()}),
    "initialize": (
        {"guidance": "initialize"},
        {"guidance": 1.5, "delta": 0.7, "condition": told(), "negative": told(1)},
    ),
    "full behind": ({"guidance": "full", **BEHIND}, {"guidance": 1.5, "condition": told()}),
    "initialize behind": (
        {"guidance": "initialize", **BEHIND},
        {"guidance": 1.5, "delta": 0.7, "condition": told()},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_ring_equals_the_sequential_schedule(case):
    options, knobs = CASES[case]
    oracle = {k: v for k, v in options.items() if k != "knobs"}
    want = unrolled(DENOISER, clip(), NOISE, constant(**knobs), **oracle)
    with ring(knobs=knobs, **options) as made:
        got = stacked(played(made, clip()))
    assert 0 < (got - want).abs().max() < BOUND * want.abs().max()
    with ring(knobs=knobs, exact=False, **options) as made:
        loose = stacked(played(made, clip()))
    assert (loose - want).abs().max() < BOUND * want.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_exactly_so_in_exact_mode_however_many_are_in_flight(case):
    options, knobs = CASES[case]
    with ring(knobs=knobs, **options) as four:
        want = stacked(played(four, clip()))
        assert four.calls == 8 + 3
    for depth, calls in ((1, 32), (3, 13)) if case == "swaps" else ((1, 32),):
        with ring(knobs=knobs, depth=depth, **options) as few:
            assert torch.equal(stacked(played(few, clip())), want)
            assert few.calls == calls


def test_bit_for_bit_against_a_plain_loop():
    """No ring at all: one frame, one step, one model call, attention among 16 tokens."""
    c = DENOISER.config

    def alone(layer, q, k, v):
        pages = torch.empty(1, c.kv_heads, c.head_dim, 16), torch.empty(1, 2, 16, c.head_dim)
        slots = torch.arange(16)
        where = torch.stack([slots * 0, slots, slots * 0], 1)
        ops.append(k, v, *pages, where)
        entry = torch.tensor([[0, 0, 16, 0, 2**62, -16, 2**62]])
        ends = torch.tensor([0, 1], dtype=torch.int32)
        rows = torch.tensor([0, 16], dtype=torch.int32)
        return ops.paged_attention(q, *pages, entry, ends, rows, slots * 0)[0]

    with torch.inference_mode():
        for number, frame in enumerate(clip(3)):
            noise = NOISE(number, 4)
            a, b = 1 - LEVELS[0], LEVELS[0]
            x = a * frame + b * noise[0]
            for step, level in enumerate(LEVELS):
                levels = torch.full((16,), level)
                condition = torch.zeros(16, 8)
                place = torch.arange(16)
                v = DENOISER(x, levels, place, condition, alone, linear=ops.linear)
                x = x - level * v
                if step < 3:
                    x = (1 - LEVELS[step + 1]) * x + LEVELS[step + 1] * noise[step + 1]
            with ring() as made:
                assert torch.equal(stacked(played(made, clip(3)))[number], x)


@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (1, {"memory": Sink(1) + Window(3)}),
        (1, {"memory": Sink(2) + Window(1), "positions": InCache(), "span": 3}),
        (3, {"memory": Sink(1) + Window(2)}),
        (4, {"memory": Sink(1) + Window(3), "together": True}),
        (4, {"memory": Sink(1) + Window(3), "together": True, "positions": InCache(), "span": 2}),
        (4, {"together": True}),
        (2, {"together": True, "memory": Window(2), "solver": Diffusion()}),
    ],
)
def test_frames_that_read_finished_ones_and_those_in_flight(depth, options):
    want = rolled(DENOISER, clip(), NOISE, constant(condition=told()), depth=depth, **options)
    with ring(depth=depth, cache="clean", knobs={"condition": told()}, **options) as made:
        got = stacked(played(made, clip()))
    assert 0 < (got - want).abs().max() < BOUND * want.abs().max()


def test_what_is_seen_matters():
    """None of the switches above is without effect, so that none can be forgotten."""
    told_it = {"guidance": 1.5, "delta": 0.7, "condition": told()}
    made = {
        "alone": {},
        "behind": BEHIND,
        "ranks": {**BEHIND, "positions": InCache()},
        "blocks": {**BEHIND, "span": 4},
        "swaps": {**BEHIND, "swap": 0.5},
        "sinks": {"memory": Sink(1) + Window(3)},
        "window": {"memory": Sink(2) + Window(2)},
        "clean": {**BEHIND, "cache": "clean"},
        "together": {"together": True},
        "both": {**BEHIND, "cache": "clean", "together": True},
        "told": {"knobs": told_it},
        "self": {"knobs": told_it, "guidance": "self"},
        "initialize": {"knobs": told_it, "guidance": "initialize"},
        "full": {"knobs": told_it, "guidance": "full"},
        "diffusion": {"solver": Diffusion()},
        "other noise": {"noise": 1},
    }
    last = {}
    for name, options in made.items():
        with ring(**options) as r:
            last[name] = stacked(played(r, clip()))[-1]
    names = list(last)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert (last[a] - last[b]).abs().max() > 1e-3, (a, b)


def test_one_frame_in_and_one_out_with_every_tick():
    with ring() as made:
        done = [made.tick(frame) for frame in clip(8)]
        assert [len(d) for d in done] == [0, 0, 0, 1, 1, 1, 1, 1]
        finished = [f for d in done for f in d]
        assert [(f.number, f.began, f.ended) for f in finished] == [(i, i, i + 3) for i in range(5)]
        assert [f.number for f in made.flying] == [5, 6, 7]
        assert [f.step for f in made.flying] == [3, 2, 1]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 4),
        ({"guidance": "self"}, 4),
        ({"guidance": "initialize"}, 5),
        ({"guidance": "full"}, 8),
        ({"memory": Window(2)}, 4),
        ({"memory": Window(2), "cache": "clean"}, 5),
        ({"memory": Window(2), "cache": "clean", "together": True}, 5),
    ],
)
def test_model_rows_and_calls(options, rows):
    calls = []

    class Counting(Denoiser):
        def forward(self, x, *rest, **more):
            calls.append(len(x) // 16)
            return super().forward(x, *rest, **more)

    with ring(denoiser=Counting(seed=1), **options) as made:
        for frame in clip(8):
            made.tick(frame)
            assert calls[-1] == made.rows
        assert len(calls) == made.calls == 8
        assert made.rows == rows


def test_drain_finishes_what_is_in_flight():
    frames = clip(9)
    with ring(**BEHIND) as made:
        first = [f for frame in frames[:6] for f in made.tick(frame)]
        calls = made.calls
        drained = made.drain()
        assert made.calls == calls + 3
        assert [(f.number, f.began, f.ended) for f in drained] == [(3, 3, 6), (4, 4, 7), (5, 5, 8)]
        assert made.flying == ()
        assert made.drain() == []
        rest = played(made, frames[6:])
        assert rest[0].began == 9
    with ring(**BEHIND) as whole:
        want = stacked(played(whole, frames))
    assert torch.equal(stacked(first + drained + rest), want)


def test_a_tick_without_frames_costs_no_call():
    with ring() as made:
        assert made.tick() == []
        assert (made.calls, made.now, made.rows) == (0, 1, 0)
        made.tick(clip(1)[0])
        assert (made.calls, made.rows) == (1, 1)


def test_fewer_slots_than_steps():
    with ring(depth=2) as made:
        frames = clip(4)
        made.tick(frames[0])
        made.tick()
        made.tick(frames[1])
        assert not made.ready
        with pytest.raises(ValueError, match=r"^Ring.tick\(frame\): expected a free slot, got all"):
            made.tick(frames[2])
        assert made.now == 3
        assert [f.number for f in made.tick()] == [0]
        assert made.ready


def test_frames_with_schedules_of_their_own():
    frames = clip(3)
    schedules = [(0.9, 0.4), (0.8, 0.6, 0.5, 0.2), (0.5,)]
    with ring() as made:
        for frame, levels in zip(frames, schedules, strict=True):
            done = made.tick(frame, levels=levels)
        assert [f.number for f in done] == [2]
        done = {f.number: f for f in [*done, *made.drain()]}
    # Frame 0 ended one tick earlier.
    assert sorted(done) == [1, 2]
    for number, levels in ((1, schedules[1]), (2, schedules[2])):
        lone = unrolled(
            DENOISER,
            frames[number][None],
            lambda _, steps, n=number: NOISE(n, steps),
            constant(levels=levels),
        )
        assert (done[number].frame - lone[0]).abs().max() < BOUND * lone.abs().max()


def test_given_tokens_stay_and_are_clean():
    given = torch.zeros(16, dtype=torch.bool)
    given[:5] = True
    frames = clip(6)
    want = rolled(DENOISER, frames, NOISE, constant(), depth=4, given=given)
    with ring() as made:
        got = [f for frame in frames for f in made.tick(frame, given=given)] + made.drain()
    assert torch.equal(stacked(got)[:, :5], frames[:, :5])
    assert (stacked(got) - want).abs().max() < BOUND * want.abs().max()
    with ring() as made:
        free = stacked(played(made, frames))
    assert (stacked(got)[:, 5:] - free[:, 5:]).abs().max() > 1e-2


def test_larger_frames_take_several_pages():
    denoiser = Denoiser(DenoiserConfig(tokens=81, layers=1), seed=2)
    frames = torch.randn(5, 81, 4, generator=torch.Generator().manual_seed(1))

    def noise(number, steps):
        made = torch.Generator().manual_seed(number)
        return torch.randn(steps, 81, 4, generator=made)

    options = {"memory": Sink(1) + Window(2), "span": 3}
    want = unrolled(denoiser, frames, noise, constant(), **options)
    with ring(denoiser=denoiser, noise=noise, **options) as made:
        got = stacked(played(made, frames))
        assert made.pool.page_size == 64
        assert made.pool.live_pages == 4 * 3 * 2  # steps, frames, pages of one
    assert (got - want).abs().max() < BOUND * want.abs().max()


@pytest.mark.parametrize("cache", ["step", "clean"])
def test_pages_stay_as_many(cache):
    with ring(memory=Sink(2) + Window(3), cache=cache, swap=0.5 if cache == "step" else None) as r:
        live = []
        for frame in clip(40):
            r.tick(frame)
            live.append(r.pool.live_pages)
        kept = (4 if cache == "step" else 1) * 5 * 2
        assert live[-20:] == [kept] * 20
        assert max(live) == kept
        assert r.pool.pages < kept + 2 * 10 + 1


def test_a_ring_without_condition_and_its_dtype():
    denoiser = Denoiser(DenoiserConfig(condition=0, kv_heads=4), seed=3)
    want = unrolled(denoiser, clip(), NOISE, constant(), **BEHIND)
    with Ring(denoiser, LEVELS, **BEHIND) as made:
        got = stacked(played(made, clip()))
    assert (got - want).abs().max() < BOUND * want.abs().max()
    with Ring(denoiser, LEVELS, dtype=torch.bfloat16, **BEHIND) as made:
        rough = stacked(played(made, clip()))
    assert BOUND < (rough - want).abs().max() / want.abs().max() < 0.1
