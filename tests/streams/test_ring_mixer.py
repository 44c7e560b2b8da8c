# SPDX-License-Identifier: Apache-2.0
"""Rings whose attention is mixed: what they carry is as safe as a cache."""

import pytest
import torch

from headrace import Fold, Ring, Sink, Window
from headrace.models import Denoiser, DenoiserConfig
from headrace.presets.hybrid_forcing import small_folder
from headrace.presets.sana_streaming import small_editor
from headrace.streams.ring_delta import FrameDelta
from headrace.streams.ring_fold import FoldedSparse, turned

from .rings import DENOISER, LEVELS

FOLD = Fold(raw=True, merge="add")
FOLDER, EDITOR = small_folder(), small_editor()


def folding(**options):
    memory = options.pop("memory", Sink(1) + Window(2) >> FOLD)
    told = {"depth": 1, "memory": memory, "cache": "clean", "mixer": FoldedSparse(0.4, 16)}
    return Ring(options.pop("denoiser", FOLDER), LEVELS, **{**told, **options})


def editing(**options):
    told = {"depth": 1, "memory": Sink(1) + Window(2), "cache": "clean", "span": 3}
    told["mixer"] = FrameDelta([0, 1, 2])
    return Ring(options.pop("denoiser", EDITOR), LEVELS, **{**told, **options})


def run(ring, count, seed=0):
    made = torch.Generator().manual_seed(seed)
    done = []
    for frame in torch.randn(count, *ring.shape, generator=made):
        done += [f.frame for f in [*ring.tick(frame), *ring.drain()]]
    return torch.stack(done)


@pytest.mark.parametrize("opened", [folding, editing])
def test_an_error_in_a_step_leaves_all_as_it_was(opened, monkeypatch):
    with opened() as ring, opened() as other:
        run(ring, 5)
        run(other, 5)
        kind = type(ring.denoiser)
        forward, pages = kind.forward, ring.pool.live_pages

        def fails(*args, **options):
            forward(*args, **options)
            raise RuntimeError("no")

        for _ in range(2):
            monkeypatch.setattr(kind, "forward", fails)
            with pytest.raises(RuntimeError, match="no"):
                ring.tick(torch.zeros(ring.shape))
            monkeypatch.undo()
            assert ring.pool.live_pages == pages
        assert torch.equal(run(ring, 3, seed=1), run(other, 3, seed=1))


def test_every_frame_that_leaves_is_folded_once():
    with folding() as ring:
        for number in range(7):
            run(ring, 1, seed=number)
            # Frame n is the first not to see frame n - 2, but frame 0 is pinned.
            assert ring.mixer.folds == max(0, number - 2)
        # 3 blocks a frame: a pinned one, one of the window, and itself, of which 40% are read.
        assert ring.mixer.read / ring.mixer.shown == pytest.approx(0.4, abs=0.08)


def test_layers_with_a_state_take_no_pages():
    with editing() as ring:
        run(ring, 5)
        assert ring.pool.live_pages == ring.most_pages == 3
        assert ring.mixer.frames_read == 3 * 4


def test_a_turn_and_back():
    x = torch.randn(5, 2, 16, dtype=torch.float64)
    angles, at = FOLDER.inv_freq, torch.tensor([0, 1, 7, 100, -3])
    assert (turned(turned(x, at, angles), -at, angles) - x).abs().max() < 1e-13
    assert torch.equal(turned(x, at, angles)[0], x[0])
    half = turned(x, at, angles[:4])
    assert torch.equal(half[..., 8:], x[..., 8:])
    first = x[1, 0, 0] * torch.cos(angles[0]) - x[1, 0, 4] * torch.sin(angles[0])
    assert half[1, 0, 0] == pytest.approx(float(first), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FoldedSparse(0.0), ValueError, r"FoldedSparse\(share\): expected above 0"),
        (lambda: FoldedSparse(1.5), ValueError, r"FoldedSparse\(share\): expected above 0"),
        (lambda: FoldedSparse(0.2, 24), ValueError, r"FoldedSparse\(block\): expected a multiple"),
        (lambda: folding(mixer=FoldedSparse(0.2, 32)), ValueError, r"FoldedSparse\(block\): exp"),
        (lambda: folding(denoiser=DENOISER), ValueError, r"Ring\(mixer\): expected a denoiser"),
        (lambda: folding(memory=None), ValueError, r"Ring\(mixer\): expected a denoiser"),
        (lambda: folding(memory=Sink(1) + Window(2)), ValueError, r"Ring\(memory\): .* >> Fold"),
        (lambda: folding(memory=Window(2) >> Fold()), ValueError, r"Ring\(memory\): .* >> Fold"),
        (
            lambda: editing(memory=Window(2) >> FOLD),
            NotImplementedError,
            r"wrap\(memory\): .*without a Fold here",
        ),
        (lambda: folding(depth=2), NotImplementedError, r"Ring\(mixer\): expected one of depth 1"),
        (lambda: folding(cache="step"), NotImplementedError, r"Ring\(mixer\): .* cache clean"),
        (lambda: folding(guidance="full"), NotImplementedError, r"Ring\(mixer\): .* guidance"),
        (lambda: editing(denoiser=DENOISER), ValueError, r"FrameDelta\(frames\): expected a div"),
        (lambda: editing(mixer=FrameDelta([4])), ValueError, r"FrameDelta\(layers\): .* below 4"),
        (
            lambda: editing(denoiser=Denoiser(DenoiserConfig(tokens=12, layers=3))),
            ValueError,
            r"Ring\(mixer\): expected a denoiser with 4 kv_heads and 8 gates, got 2 and 0",
        ),
    ],
)
def test_what_a_mixer_needs(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()
