# SPDX-License-Identifier: Apache-2.0
"""Solvers against the equations that define them, and what a wrong one does to a ring."""

import pytest
import torch

from headrace.streams import Diffusion, Flow
from headrace.streams.ring_laws import law
from headrace.streams.ring_oracle import unrolled
from headrace.streams.ring_solver import Solver

from .rings import DENOISER, NOISE, clip, constant, played, ring, stacked, told

# Of clean and of noise in x, and of both in what the model predicts.
LITERAL = [
    (Flow(), 0.25, (0.75, 0.25), (-1.0, 1.0)),
    (Flow(), 0.9, (0.1, 0.9), (-1.0, 1.0)),
    (Flow(), 1.0, (0.0, 1.0), (-1.0, 1.0)),
    (Diffusion(), 0.6, (0.8, 0.6), (0.0, 1.0)),
    (Diffusion(), 0.28, (0.96, 0.28), (0.0, 1.0)),
]


def parts(mixed, said):
    """clean, noise, x and prediction [5, 3] that fit together."""
    made = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, generator=made, dtype=torch.float64)
    return clean, noise, *(c * clean + n * noise for c, n in (mixed, said))


@pytest.mark.parametrize(("solver", "level", "mixed", "said"), LITERAL)
def test_what_was_mixed_is_found_again(solver, level, mixed, said):
    clean, noise, x, prediction = parts(mixed, said)
    a, b = solver.mix(level)
    assert (a, b) == pytest.approx(mixed)
    torch.testing.assert_close(solver.clean(x, prediction, a, b), clean)
    torch.testing.assert_close(solver.noise(x, prediction, a, b), noise)
    torch.testing.assert_close(solver.toward(x, clean, a, b), prediction)


@pytest.mark.parametrize(("solver", "level", "mixed", "said"), LITERAL)
def test_the_law_of_an_oracle_finds_it_too(solver, level, mixed, said):
    clean, noise, x, prediction = parts(mixed, said)
    own = law(solver)
    torch.testing.assert_close(own.mixed(clean, noise, level), x)
    torch.testing.assert_close(own.leads(x, clean, level), prediction)
    for part, want in zip(own.parts(x, prediction, level), (clean, noise), strict=True):
        torch.testing.assert_close(part, want)


def other_a(self, level):
    return 1.0 - level * level, level


WRONG = {
    "mix": other_a,
    "clean": lambda self, x, p, a, b: x - 0.5 * b * p,
    "noise": lambda self, x, p, a, b: x,
    "toward": lambda self, x, clean, a, b: x - clean,
}


@pytest.mark.parametrize("solver", [Flow, Diffusion])
@pytest.mark.parametrize("part", WRONG)
def test_a_ring_with_a_wrong_solver_is_not_the_schedule(solver, part, monkeypatch):
    knobs = {"guidance": 1.2, "delta": 0.8, "condition": told(), "renoise": 0.3}
    options = {"guidance": "self", "solver": solver()}
    want = unrolled(DENOISER, clip(3), NOISE, constant(**knobs), **options)

    def off():
        with ring(knobs=knobs, **options) as made:
            return float((stacked(played(made, clip(3))) - want).abs().max() / want.abs().max())

    assert off() < 2e-5
    monkeypatch.setattr(solver, part, WRONG[part])
    assert off() > 1e-3


def test_an_oracle_knows_no_other_solver():
    with pytest.raises(NotImplementedError, match=r"^oracle\(solver\): expected one of Flow, Diff"):
        law(Solver())
    assert type(law(None)) is type(law(Flow()))
