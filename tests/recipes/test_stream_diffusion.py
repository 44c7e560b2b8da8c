# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch

from headrace.presets.stream_diffusion import SimilarFilter
from headrace.recipes import stream_diffusion as sd
from tests.recipes import plain


@pytest.mark.parametrize("shape", [(3, 7, 11, 3), (1, 4, 16), (5, 2, 3, 3), (2, 1, 1)])
@pytest.mark.parametrize("threshold", [0.98, 0.5, 1.0])
def test_the_chance(shape, threshold):
    gen = torch.Generator().manual_seed(0)
    ref = torch.randn(shape, generator=gen)
    off = torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=gen) * 0.4
    x = ref + off * torch.randn(shape, generator=gen)
    a, b = (plain.unit(t.flatten(1)) for t in (x, ref))
    c = (a * b).sum(-1)
    want = (1 - (1 - c) / (1 - threshold)).clamp(0, 1) if threshold < 1 else torch.zeros(shape[0])
    plain.near(sd.chance(x, ref, threshold=threshold), want.double(), 1e-4)


def test_pixels_zeros_and_what_is_no_number():
    x = torch.randint(0, 256, (2, 8, 9, 3)).byte()
    assert (sd.chance(x, x) > 0.999).all()
    zero = torch.zeros(1, 4, 5)
    assert sd.chance(zero, zero).tolist() == [0]
    assert sd.chance(zero * torch.nan, zero + 1).tolist() == [0]


def test_decisions_are_those_of_the_filter_with_the_same_draws():
    """Frame by frame, the reference being the last one that was not skipped."""
    gen = torch.Generator().manual_seed(1)
    frames = 3 + torch.randn(120, 6, 5, generator=gen).mul(0.06).cumsum(0)
    frames[40:70] = frames[40]
    plainly, draws = SimilarFilter(0.98, most=4, seed=5), random.Random(5)
    reference, skipped, seen = frames[:1], torch.zeros(1), []
    for t, frame in enumerate(frames):
        made = False
        if t:
            draw = torch.tensor([draws.random()])
            made = bool(sd.skip(sd.chance(frame[None], reference), draw, skipped, most=4))
        seen.append(made)
        assert plainly(frame) == made, t
        skipped = skipped + 1 if made else torch.zeros(1)
        reference = reference if made else frame[None]
    assert 20 < sum(seen) < 100
    assert not any(all(seen[t : t + 5]) for t in range(115))


def test_a_draw_and_the_row_decide():
    chance, draw = torch.tensor([0.5, 0.5, 0.0, 1.0]), torch.tensor([0.5, 0.6, 0.1, 0.99])
    assert sd.skip(chance, draw).tolist() == [True, False, False, True]
    row = torch.tensor([10, 0, 0, 9])
    assert sd.skip(chance, draw, row).tolist() == [False, False, False, True]
