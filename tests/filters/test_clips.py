# SPDX-License-Identifier: Apache-2.0
"""Real clips, where the packages that have and decode them are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from headrace.filters import BlockSummaries, GatedVideo, LastKept, PreviousFrame
from headrace.presets.small_vision import SmallVision
from headrace.recipes import timechat_online
from tests.filters.test_encoder import gated

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
MISSING = [name for name in ("av", "skvideo") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (group test has them)"
)


@pytest.fixture(scope="module")
def clips():
    import clips

    return clips


def test_the_bound_holds_on_a_real_clip(clips):
    """Within the threshold of what was last kept; by the frame before much further off."""
    frames = clips.whole(clips.decoded("carphone_pristine", 20))
    assert frames.shape == (20, 140, 168, 3)
    kept = clips.run(frames, "pixels", "last kept", 3.0)
    before = clips.run(frames, "pixels", "frame before", 3.0)
    assert kept["worst"] < 3.0 < before["worst"]
    assert 0.1 < sum(kept["dropped"]) / 19 < sum(before["dropped"]) / 19 < 0.99


def test_what_a_place_was_is_followed_by_hand(clips):
    frames = clips.whole(clips.decoded("carphone_pristine", 6))
    for reference, kind in (("last kept", LastKept), ("frame before", PreviousFrame)):
        made, gate = clips.run(frames, "pixels", reference, 5.0), kind(5.0, "l1", patch=14)
        shown, worst = frames[0].clone(), 0.0
        gate(frames[0])
        for frame, share in zip(frames[1:], made["dropped"], strict=True):
            mask = gate(frame).mask.view(10, 12)
            for y, x in mask.nonzero().tolist():
                at = slice(14 * y, 14 * y + 14), slice(14 * x, 14 * x + 14)
                shown[at] = frame[at]
            off = (frame.float() - shown.float()).abs()
            cells = off.view(10, 14, 12, 14, 3).mean((1, 3, 4))
            worst = max(worst, float(cells.max()))
            assert share == pytest.approx(1 - float(mask.float().mean()), abs=1e-6)
        assert made["worst"] == pytest.approx(worst, rel=1e-5)


def test_the_pipeline_on_a_few_frames(clips):
    """From pixels to tokens to summaries, against a model that computes all of every frame."""
    frames = clips.decoded("bikes", 4, size=(68, 160))
    model = SmallVision((17, 40))
    video, sums = GatedVideo(LastKept(4.0, "l1", patch=4), model), BlockSummaries(64)
    places, masks, inputs, seen = torch.arange(17 * 40), [], [], []
    for frame in frames:
        got = video(frame)
        sums.append(got.rows.unflatten(-1, (2, 16)), got.tokens.count)
        rows = frame.view(17, 4, 40, 4, 3).transpose(1, 2).reshape(17 * 40, -1)
        masks.append(got.patches.mask)
        inputs.append(model.embed(rows, places))
        seen.append(video.encoder.features[0].clone())
    share = torch.stack(masks[1:]).double().mean()
    assert 0.02 < share < 0.9
    dense = gated(model.layers, torch.stack(inputs), torch.stack(masks))
    for features, want in zip(seen, dense, strict=True):
        assert (features - want).abs().max() < 1e-3
    assert int(sums.count.sum()) == int(sums.tokens) < 4 * 9 * 20


def test_features_of_a_clip_are_dropped_by_the_papers_rule(clips):
    x = clips.features("carphone_pristine", 8)
    assert x.shape == (8, 5 * 6, 32)
    kept = timechat_online.keep(x, threshold=0.9)
    made = clips.run(x, "features", "frame before", 0.9)
    assert made["dropped"] == pytest.approx(timechat_online.dropped(kept, 30)[1:].tolist())
    assert 0 < sum(made["dropped"]) < 7


def test_rows_and_a_plot(clips, tmp_path, monkeypatch):
    few = {"pixels": (1, 5, 12), "features": (0.5, 0.9, 0.99)}
    monkeypatch.setattr(clips, "THRESHOLDS", few)
    rows = clips.measure("carphone_pristine", 11)
    assert len(rows) == 2 * 2 * 2 * 3
    for row in rows:
        if row["reference"] == "last kept":
            bound = row["threshold"] if row["form"] == "pixels" else 1 - row["threshold"]
            assert row["worst"] <= bound + 1e-3
    by = {(r["form"], r["stride"], r["reference"], r["threshold"]): r["dropped"] for r in rows}
    assert by["pixels", 1, "last kept", 1] < by["pixels", 1, "last kept", 12]
    assert by["features", 1, "last kept", 0.99] < by["features", 1, "last kept", 0.5]
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    clips.drawn.clips({"rows": rows}, tmp_path / "clips.png")
    assert (tmp_path / "clips.png").stat().st_size > 10_000


def test_gated_frames_are_measured_beside_all_of_them(clips):
    import gated_video

    with torch.no_grad():
        rows = gated_video.measure("carphone_pristine", [4.0, 20.0], 4)
    few, many = rows
    assert (few["frames"], few["patches"]) == (4, 120)
    assert 0 < many["kept_patches"] < few["kept_patches"] < few["kept_tokens"] < 1
    assert few["worst"] < 4 <= many["worst"] < 20
    assert min(few["times"], few["dropped_times"], many["gated_per_second"]) > 0
