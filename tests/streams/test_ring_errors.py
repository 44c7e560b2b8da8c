# SPDX-License-Identifier: Apache-2.0
"""A mistake is told in one line, and leaves a ring as it was."""

import pytest
import torch

from headrace import Ring, Sink, Window
from headrace.models import Denoiser

from .rings import DENOISER, LEVELS, clip, played, ring, stacked, told

FRAME = clip(1)[0]


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"denoiser": torch.nn.Linear(2, 2)}, TypeError, r"Ring\(denoiser\): expected one such as"),
        ({"levels": ()}, ValueError, r"Ring\(levels\): expected falling numbers"),
        ({"levels": 0.5}, TypeError, r"Ring\(levels\): expected numbers between 0 and 1"),
        ({"levels": (0.5, 0.7)}, ValueError, r"Ring\(levels\)"),
        ({"levels": (1.2, 0.7)}, ValueError, r"Ring\(levels\)"),
        ({"levels": (0.5, 0.0)}, ValueError, r"Ring\(levels\)"),
        ({"levels": (float("nan"),)}, ValueError, r"Ring\(levels\)"),
        ({"depth": 0}, ValueError, r"Ring\(depth\): expected 1 or more, got 0"),
        ({"depth": True}, TypeError, r"Ring\(depth\): expected a whole number, got True"),
        ({"span": 0}, ValueError, r"Ring\(span\): expected 1 or more, got 0"),
        ({"guidance": "cfg"}, ValueError, r"Ring\(guidance\): expected one of none, self, init"),
        ({"cache": "all"}, ValueError, r"Ring\(cache\): expected one of step, clean, got 'all'"),
        ({"memory": Window(None)}, ValueError, r"Ring\(memory\): expected a Window of some fram"),
        ({"memory": Sink(2)}, ValueError, r"wrap\(memory\): expected a Window among the regions"),
        ({"memory": Window(2), "together": True}, NotImplementedError, r"Ring\(together\)"),
        ({"swap": 0.2}, NotImplementedError, r"Ring\(swap\): expected one of a memory with cache"),
        ({"acts": {"speed": "tick"}}, ValueError, r"Ring\(acts\): expected names of guidance"),
        ({"acts": {"levels": "tick"}}, ValueError, r"Ring\(acts\): expected levels: frame, got"),
        ({"acts": {"delta": "now"}}, ValueError, r"Ring\(acts\): expected delta: tick or frame"),
        ({"knobs": {"delta": "much"}}, TypeError, r"Ring\(delta\): expected a number or a tensor"),
        ({"knobs": {"condition": 1.0}}, TypeError, r"Ring\(condition\): expected a tensor of 8"),
        ({"knobs": {"velocity": torch.ones(3)}}, ValueError, r"Ring\(velocity\): expected what br"),
    ],
)
def test_what_a_ring_cannot_be(options, error, line):
    with pytest.raises(error, match="^" + line) as told_so:
        ring(**options)
    assert "\n" not in str(told_so.value)


@pytest.mark.parametrize(
    ("frame", "more", "error", "line"),
    [
        (clip(1), {}, ValueError, r"Ring.tick\(frame\): expected a tensor \[16, 4\], got \[1, 16"),
        ("x", {}, ValueError, r"Ring.tick\(frame\): expected a tensor \[16, 4\], got str"),
        (None, {"condition": told()}, ValueError, r"Ring.tick\(frame\): expected a frame \[P, C\]"),
        (None, {"cut": 1}, ValueError, r"Ring.tick\(frame\)"),
        (FRAME, {"given": torch.zeros(16)}, ValueError, r"Ring.tick\(given\): expected torch.bool"),
        (FRAME, {"velocity": 1.0}, ValueError, r"Ring.tick\(velocity\): expected a knob that acts"),
        (FRAME, {"nonsense": 1.0}, ValueError, r"Ring.tick\(nonsense\): expected a knob that acts"),
        (FRAME, {"condition": torch.zeros(3)}, ValueError, r"Ring.tick\(condition\): expected wha"),
        (FRAME, {"cut": 1}, NotImplementedError, r"Ring.tick\(cut\): expected one of cache 'clean"),
    ],
)
def test_what_a_tick_cannot_take(frame, more, error, line):
    with ring() as made:
        made.tick(clip(2)[1])
        with pytest.raises(error, match="^" + line):
            made.tick(frame, **more)
        assert (made.now, len(made.flying)) == (1, 1)
        assert made.pool.live_pages == 0


def test_noise_must_fit():
    with ring(noise=lambda number, steps: torch.zeros(steps, 3, 4)) as made:  # noqa: SIM117
        with pytest.raises(ValueError, match=r"^Ring\(noise\): expected \[4, 16, 4\], got \[4, 3"):
            made.tick(FRAME)


def test_cuts_come_between_frames():
    with ring(depth=1, memory=Sink(1) + Window(2), cache="clean") as made:
        for cut, keep in ((-1, 0), (True, 0), (1, -1), (1, 0.5)):
            with pytest.raises(ValueError, match=r"^Ring.tick\((cut|keep)\): expected a whole num"):
                made.tick(FRAME, cut=cut, keep=keep)
        made.tick(FRAME)
        with pytest.raises(ValueError, match=r"^Ring.tick\(cut\): expected no frame in flight"):
            made.tick(FRAME, cut=1)


class Failing(Denoiser):
    """Breaks off in its second layer, in the calls of `at`."""

    at: tuple[int, ...] = ()
    count = 0

    def forward(self, x, level, place, condition, attend, **more):
        self.count += 1

        def checked(layer, *qkv):
            if layer == 1 and self.count in self.at:
                raise KeyboardInterrupt
            return attend(layer, *qkv)

        return super().forward(x, level, place, condition, checked, **more)


@pytest.mark.parametrize(
    "options",
    [{"memory": Sink(1) + Window(2), "swap": 0.5}, {"memory": Window(2), "cache": "clean"}],
)
def test_a_tick_that_fails_leaves_everything_as_it_was(options):
    with ring(**options) as made:
        want = stacked(played(made, clip()))
    failing = Failing(seed=1)
    failing.at = (4, 7, 8)
    failed, done, waiting = 0, [], list(clip())
    with ring(denoiser=failing, **options) as made:
        while waiting or made.flying:
            before = (made.now, made.calls, made.flying, made.pool.live_pages)
            try:
                done += made.tick(waiting[0] if waiting else None)
                waiting = waiting[1:]
            except KeyboardInterrupt:
                failed += 1
                assert (made.now, made.calls, made.flying, made.pool.live_pages) == before
    assert failed == 3
    assert torch.equal(stacked(done), want)


def test_closing():
    made = Ring(DENOISER, LEVELS, memory=Window(2))
    made.tick(FRAME)
    made.close()
    made.close()
    assert made.flying == ()
    assert made.pool.resident_bytes == 0
