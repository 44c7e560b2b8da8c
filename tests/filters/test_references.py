# SPDX-License-Identifier: Apache-2.0
"""Filters against plain definitions; and what a bound on the reference is worth."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from headrace.filters import Decision, LastKept, PreviousFrame

BOTH = [LastKept, PreviousFrame]


def patches(frame, size):
    """Pixels [H, W, C] of every patch, row by row, as a list of fp64 tensors."""
    return [
        cell.double() for band in frame.split(size, 0) for cell in band.split(size, 1)
    ]  # fmt: skip


def fade(frames, height=30, width=45):
    """A picture that brightens by one level of 255 in every frame."""
    base = torch.randint(0, 100, (height, width, 3)).byte()
    return [base + t for t in range(frames)]


@pytest.mark.parametrize("threshold", [8.0, 1.5])
def test_a_slow_fade(threshold):
    """1/255 a frame: what is compared with what was last kept surfaces within the bound, every
    time; what is compared with the frame before never does."""
    kept = LastKept(threshold, "l1", patch=14)
    previous = PreviousFrame(threshold, "l1", patch=14)
    fired, shown = [], None
    for t, frame in enumerate(fade(60)):
        decision = kept(frame)
        assert previous(frame).count == (12 if t == 0 else 0)
        if decision.count:
            assert decision.count == 12
            fired.append(t)
            shown = frame
        off = (frame.double() - shown.double()).abs().mean()
        assert off < threshold
    step = -int(-threshold // 1)
    assert fired == list(range(0, 60, step))
    assert kept.reference is not None


def test_a_slow_turn_of_features():
    """Half a degree a frame, of 256 dimensions: 10 degrees are noticed after 20 frames."""
    a, b = torch.linalg.qr(torch.randn(256, 2))[0].T
    kept = LastKept(float(torch.tensor(9.75).deg2rad().cos()))
    previous = PreviousFrame(kept.threshold)
    fired = []
    for t in range(121):
        angle = torch.tensor(0.5 * t).deg2rad()
        frame = (angle.cos() * a + angle.sin() * b).expand(5, 256).clone()
        if kept(frame).count:
            fired.append(t)
        assert previous(frame).count == (5 if t == 0 else 0)
    assert fired == list(range(0, 121, 20))


@given(data=st.data())
def test_the_bound_holds_for_every_place(data):
    """Random walks of all speeds: what stands for a place is never as far off as the threshold."""
    draw = data.draw
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    places, threshold = draw(st.integers(1, 12)), draw(st.sampled_from((0.1, 0.5, 2.0)))
    speed = torch.rand(2, places, 1, generator=gen) * 0.3
    kept = LastKept(threshold, "l1")
    x = torch.randn(2, places, 6, generator=gen)
    shown = torch.full_like(x, torch.nan)
    for _ in range(12):
        decision = kept(x)
        shown = torch.where(decision.mask[..., None], x, shown)
        far = (x - shown).abs().double().mean(-1)
        assert (far[~decision.mask] < threshold + 1e-6).all()
        assert not far[decision.mask].any()
        assert not decision.waiting.any()
        x = x + speed * torch.randn(x.shape, generator=gen)


@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("kind", BOTH)
def test_pixels_as_they_are_defined(kind, size):
    """Short patches at both edges, and a reference of its own for each."""
    f = kind(20.0, "l1", patch=size)
    reference, frame = None, torch.randint(0, 256, (31, 45, 3)).byte()
    for t in range(6):
        decision = f(frame)
        cells = patches(frame, size)
        if reference is None:
            mask = torch.ones(len(cells), dtype=torch.bool)
        else:
            far = [float((c - r).abs().mean()) for c, r in zip(cells, reference, strict=True)]
            mask = torch.tensor(far) >= 20.0
        assert torch.equal(decision.mask, mask), t
        assert decision.index[: decision.count].tolist() == mask.nonzero()[:, 0].tolist()
        assert decision.grid == (-(-31 // size), -(-45 // size))
        old = cells if reference is None or kind is PreviousFrame else reference
        reference = [c if m else o for c, o, m in zip(cells, old, mask, strict=True)]
        change = torch.randint(-40, 41, frame.shape) * (torch.rand(31, 45, 1) < 0.7)
        frame = (frame.int() + change).clamp(0, 255).byte()


def test_previous_frame_is_the_published_rule():
    """TimeChat-Online: a token is dropped whose cosine with the frame before is above tau."""
    x = torch.randn(6, 40, 64).cumsum(0)
    f = PreviousFrame(0.8)
    assert f(x[0]).mask.all()
    for t in range(1, 6):
        assert torch.equal(f(x[t]).mask, ~(F.cosine_similarity(x[t], x[t - 1], -1) > 0.8))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("metric", ["cos", "l1", "l2", "dot", "gauss"])
def test_streams_know_nothing_of_one_another(kind, metric):
    x = torch.randn(3, 5, 20, 32).cumsum(1)
    together = kind(0.7, metric, alpha=32.0, capacity=9)
    alone = [copy.deepcopy(together) for _ in range(3)]
    for t in range(5):
        whole = together(x[:, t])
        for b in range(3):
            one = alone[b](x[b, t])
            for name in ("index", "count", "mask", "waiting"):
                assert torch.equal(getattr(one, name), getattr(whole, name)[b])


@pytest.mark.parametrize("kind", BOTH)
def test_frames_are_not_held_on_to(kind):
    """What the caller writes into a frame afterwards changes nothing."""
    f, frame = kind(0.5, "l1"), torch.zeros(4, 8)
    f(frame)
    frame.fill_(9.0)
    assert f(torch.zeros(4, 8)).count == 0


def test_a_capacity_lets_the_furthest_through_first():
    f = LastKept(1.0, "l1", capacity=3)
    first = f(torch.zeros(8, 4))
    assert first.index.tolist() == [0, 1, 2]
    assert first.waiting == 5
    assert f(torch.zeros(8, 4)).index.tolist() == [3, 4, 5]  # what was never kept comes first
    third = f(torch.zeros(8, 4))
    assert third.index.tolist() == [6, 7, -1]
    assert (third.count, third.waiting) == (2, 0)
    x = torch.tensor([0.0, 5, 2, 9, 0.5, 7, 1, 0])[:, None].repeat(1, 4)
    assert f(x).index.tolist() == [1, 3, 5]
    last = f(x)
    assert last.index.tolist() == [2, 6, -1]
    assert last.waiting == 0
    assert f(x).count == 0


def test_what_is_no_number_is_kept():
    x = torch.ones(3, 4)
    for metric in ("cos", "l1"):
        f = LastKept(0.5, metric)
        f(x)
        bad = x.clone()
        bad[1, 2] = torch.nan
        assert f(bad).mask.tolist() == [False, True, False]
        assert f(x).mask.tolist() == [False, True, False]  # and the reference is one no longer


@pytest.mark.parametrize("kind", BOTH)
def test_reset(kind):
    x = torch.randn(2, 5, 8)
    f = kind(0.5)
    assert f(x).mask.all()
    assert not f(x).mask.any()
    f.reset(1)
    assert f(x).mask.tolist() == [[False] * 5, [True] * 5]
    f.reset()
    assert f(x[:, :3]).mask.all()


def test_a_copy_goes_on_from_the_same_moment():
    x = torch.randn(8, 12, 16).cumsum(0)
    f = LastKept(0.9)
    for t in range(4):
        f(x[t])
    other = copy.deepcopy(f)
    want = [f(x[t]).mask for t in range(4, 8)]
    assert all(torch.equal(other(x[t]).mask, want[t - 4]) for t in range(4, 8))
    assert any(not m.all() and m.any() for m in want)


def test_one_mask_serves_all():
    """Pixels decide; tokens of 2 x 2 patches, an encoder's cached outputs and a dropper follow."""
    f = LastKept(20.0, "l1", patch=14)
    frame = torch.randint(0, 256, (70, 98, 3)).byte()
    f(frame)
    new = frame.clone()
    new[0:14, 28:42] = 255 - new[0:14, 28:42]
    new[60:, 90:] = 255 - new[60:, 90:]
    decision = f(new)
    assert decision.grid == (5, 7)
    assert decision.mask.nonzero()[:, 0].tolist() == [2, 34]
    assert decision.dropped() == pytest.approx(33 / 35)

    features = torch.randn(35, 8)
    cached = features.clone()
    cached[decision.mask] = torch.nan
    rows = decision.rows(features)
    assert torch.equal(rows[:2], features[[2, 34]])
    decision.put(cached, rows)
    assert torch.equal(cached, features)

    tokens = decision.merged(2, 2)
    assert tokens.grid == (3, 4)
    assert tokens.mask.nonzero()[:, 0].tolist() == [1, 11]
    assert torch.equal(tokens.rows(torch.arange(12)[:, None])[:2, 0], torch.tensor([1, 11]))
    few = decision.merged(2, 2, capacity=1)
    assert (few.count, few.waiting, few.mask.sum()) == (1, 1, 1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.data())
def test_groups_are_kept_for_any_of_their_places(rows, columns, high, wide, data):
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    mask = torch.rand(2, rows, columns, generator=gen) < 0.3
    zero = torch.zeros(2, dtype=torch.int32)
    one = Decision(zero[:, None], zero, mask.flatten(1), zero, (rows, columns))
    want = F.max_pool2d(mask.float(), (high, wide), ceil_mode=True).bool()
    assert torch.equal(one.merged(high, wide).mask.view(want.shape), want)


X = torch.zeros(2, 5, 8)
ERRORS = [
    (lambda: LastKept(0.5, "cosine"), "LastKept(metric): expected one of cos, dot, gauss, l1, l2"),
    (lambda: LastKept(float("nan")), "LastKept(threshold): expected a finite number, got nan"),
    (lambda: PreviousFrame(0.5, patch=0), "PreviousFrame(patch): expected 1 or more, or None"),
    (lambda: LastKept(0.5, capacity=0), "LastKept(capacity): expected 1 or more, or None, got 0"),
    (lambda: LastKept(0.5)(X[0, 0]), "LastKept(frame): expected [N, D] or [B, N, D], got"),
    (lambda: LastKept(0.5, patch=2)(X[0]), "LastKept(frame): expected [H, W, C] or [B, H, W, C]"),
    (lambda: LastKept(0.5)(X[0]).merged(2, 2), "merged(grid): expected a decision over a grid"),
    (lambda: LastKept(0.5, patch=2)(X).merged(0, 2), "merged(high): expected 1 or more, got 0"),
]


@pytest.mark.parametrize(("call", "told"), ERRORS)
def test_errors(call, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        call()


def test_another_frame_than_before_changes_nothing():
    f = LastKept(0.5)
    f(X + 1)
    for other in (X[:1] + 1, X.half() + 1, X[:, :4] + 1):
        with pytest.raises(ValueError, match=re.escape("as before, got")):
            f(other)
    assert not f(X + 1).mask.any()
