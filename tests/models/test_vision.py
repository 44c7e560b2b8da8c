# SPDX-License-Identifier: Apache-2.0
"""The vision model: its patches, its cache, its files, its training and the packaged weights."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from headrace.models import (
    VISION,
    TowerCache,
    Vision,
    VisionConfig,
    load_vision,
    motion,
    save_vision,
)
from headrace.models.training.video import Clip, codebook, gated, sample
from headrace.models.training.video_data import clips
from headrace.models.training.video_loop import Run, changes, loss_of, score, train, unexplained
from headrace.models.vision import reduced, usual
from tests.videos import model as small


@pytest.fixture(scope="module")
def model():
    return small()


def clip(frames=8, high=48, wide=64):
    made = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1, high, wide, 3), generator=made).repeat(frames, 1, 1, 1)
    for t in range(frames):
        x[t, 16:32, 8 * t % 48 : 8 * t % 48 + 16] = 255
    return x.byte()


@torch.no_grad()
def test_patches_and_thumbs_are_those_of_unfold(model):
    frames = clip()
    x = frames.movedim(-1, 1).float() / 127.5 - 1
    want = F.unfold(x, 16, stride=16).transpose(1, 2).unflatten(-1, (3, 16, 16))
    got = model.patches(frames)
    torch.testing.assert_close(got, want.movedim(2, -1).flatten(-3))
    index = torch.tensor([0, 5, 11])
    assert torch.equal(model.patches(frames[3], index), got[3, index])
    thumbs = F.avg_pool2d(want.flatten(0, 1), 8).movedim(1, -1).flatten(1).view(8, 12, -1)
    torch.testing.assert_close(model.thumbs(got), thumbs)
    small_frames = F.avg_pool2d(frames.movedim(-1, 1).float(), 8).round().byte().movedim(1, -1)
    assert torch.equal(reduced(frames, 8), small_frames)


@torch.no_grad()
def test_codes_are_the_nearest(model):
    thumbs = model.thumbs(model.patches(clip()))
    far = (thumbs[..., None, :] - model.book).square().sum(-1)
    got = model.coded(thumbs)
    assert torch.allclose(far.gather(-1, got[..., None])[..., 0], far.min(-1).values)


@torch.no_grad()
def test_a_tower_cache_of_all_places_is_the_tower(model):
    frame = clip()[0]
    cache = TowerCache(model, 3, 4)
    got = cache(model.patches(frame), torch.arange(12))

    def whole(layer, q, k, v):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)

    want = model.encode(model.patches(frame), model.turns(3, 4), whole)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    again = cache(model.patches(frame, torch.tensor([2, 7])), torch.tensor([2, 7]))
    torch.testing.assert_close(again, want[[2, 7]], atol=1e-5, rtol=1e-4)
    other = clip()[5]
    moved = cache(model.patches(other, torch.tensor([6])), torch.tensor([6]))
    assert float((moved - want[6]).abs().max()) > 1e-2
    assert torch.equal(cache.tokens[0], got[0]), "what is not named stays"
    cache.reset()
    with pytest.raises(ValueError, match=r"TowerCache\(index\): expected all 12 places at first"):
        cache(model.patches(other, torch.tensor([6])), torch.tensor([6]))
    with pytest.raises(ValueError, match=r"TowerCache\(grid\)"):
        TowerCache(model, 0, 4)


@torch.no_grad()
def test_a_new_scene_is_what_stirs_more_than_usual(model):
    change = torch.zeros(4, 12)
    change[0], change[1] = 0.5, -0.1
    stir = model.stir(change, 8)
    torch.testing.assert_close(stir, torch.tensor([0.6 / 8, 1 / 8]))
    assert torch.equal(usual(None, stir), stir)
    torch.testing.assert_close(usual(stir, 2 * stir), 1.2 * stir)
    quiet = Vision(model.config)
    quiet.signs.copy_(torch.tensor([1.0, 0, 0, 0]))
    said = torch.zeros(1, model.config.width)
    calm, wild = (quiet.new_scene(said, stir[None], stir[None] * k) for k in (1.0, 0.1))
    assert float(wild) > float(calm) == pytest.approx(-2.0)


def test_files_keep_everything_and_say_what_is_wrong(model, tmp_path):
    file, folder = tmp_path / "a.safetensors", tmp_path / "a"
    for path in (file, folder):
        save_vision(model, path, {"note": "x"})
        back = load_vision(path)
        assert back.config == model.config
        assert not back.training
        for name, p in model.state_dict().items():
            assert torch.equal(back.state_dict()[name], p.bfloat16().float())
    whole = load_file(file)
    config = json.dumps(json.loads((folder / "config.json").read_text()) | {"codes": 9})
    older = Vision(dataclasses.replace(model.config, reach=0))
    save_vision(older, tmp_path / "b")
    told = json.loads((tmp_path / "b" / "config.json").read_text())
    del told["reach"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(told))
    assert load_vision(tmp_path / "b").config == older.config
    for change, told in (
        ({"embed": None}, "tensor 'embed' is missing"),
        ({"extra": torch.zeros(1)}, "tensor 'extra' is not of this model"),
        ({"norm": torch.zeros(3)}, "expected tensor 'norm' of shape \\[24\\], got \\[3\\]"),
        ({"norm": torch.full((24,), torch.nan)}, "expected finite numbers in tensor 'norm'"),
    ):
        tensors = {k: v for k, v in (whole | change).items() if v is not None}
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ValueError, match=told):
            load_vision(folder)
    save_file(whole, folder / "model.safetensors")
    for text, told in (
        (config, "expected tensor 'book' of shape"),
        ("{", "not JSON"),
        ("[]", "expected format"),
        ('{"format": "headrace.vision.1", "patch": 16}', "bad configuration"),
        (
            config.replace('"patch": 16', '"patch": 15'),
            "bad configuration: VisionConfig\\(patch\\)",
        ),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=told):
            load_vision(folder)
    file.write_bytes(file.read_bytes()[:1000])
    for path, told in ((file, "whole safetensors file"), ("nothing", "expected video-patches")):
        with pytest.raises(ValueError, match=told):
            load_vision(path)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="bad configuration"):
        load_vision(file)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [("reach", -1, ValueError),
     ("width", 1, ValueError), ("heads", True, TypeError), ("heads", 5, ValueError),
     ("head_dim", 18, ValueError), ("rope_theta", 1.0, ValueError), ("threshold", "a", TypeError)],
)  # fmt: skip
def test_configurations_that_cannot_be(field, value, kind):
    with pytest.raises(kind, match=rf"VisionConfig\({field}\)"):
        VisionConfig(**{"reach": 1, field: value})


def test_a_reach_needs_halves_of_cells():
    assert VisionConfig(thumb=16).reach == 0
    with pytest.raises(ValueError, match=r"VisionConfig\(patch\): expected a multiple of 32"):
        VisionConfig(thumb=16, reach=1)


@torch.no_grad()
@pytest.mark.parametrize("shift", [(0, 0), (-8, 4), (4, -8), (2, 2)])
def test_motion_finds_a_shift_and_goes_on_with_it(shift):
    """A ground that slides: the patches inside are foretold to slide on, to the pixel."""
    eyes = Vision(VisionConfig(width=6, heads=1, kv_heads=1, head_dim=8, reach=4))
    eyes.prior.zero_()
    eyes.prior[-4:] = 20.0
    wide = F.interpolate(torch.rand(1, 3, 64, 72), scale_factor=2)[0].mul(255).round().byte()
    frames = [
        wide[:, 32 - t * shift[0] :, 32 - t * shift[1] :][:, :64, :80].movedim(0, -1).contiguous()
        for t in range(4)
    ]
    x = motion.reduce(torch.stack(frames), eyes.step)
    thumbs = motion.thumbs(x, 8, 4)
    torch.testing.assert_close(thumbs, eyes.thumbs(eyes.patches(torch.stack(frames))))
    index = torch.tensor([6, 7, 8, 11, 12, 13])  # away from the edges
    said = torch.zeros(6, 6)
    costs = [eyes.costs(a, b) for a, b in ((None, x[0]), (x[0], x[1]), (x[1], x[2]))]
    assert costs[0] is None
    first = eyes.next_thumb(said, thumbs[0, index], eyes.moving(None, None, x[0], index))
    torch.testing.assert_close(first, thumbs[0, index], msg="nothing moves at the first frame")
    at = eyes.next_thumb(said, thumbs[2, index], eyes.moving(costs[2], costs[1], x[2], index))
    torch.testing.assert_close(at, thumbs[3, index], atol=2e-3, rtol=0)
    if shift != (0, 0):
        assert float((at - thumbs[2, index]).abs().mean()) > 0.05
    assert Vision(VisionConfig()).costs(x[0], x[1]) is None


def test_what_is_explained_of_patches_that_change():
    now = torch.zeros(2, 3, 12)
    after = now.clone()
    after[0, 1], after[1, 2] = 0.5, 0.01  # 64 levels of 255, and 1.3
    assert changes(now, after).tolist() == [[False, True, False], [False, False, False]]
    said = now.clone()
    said[0, 1], said[1, 0] = 0.25, 9.0
    left, whole = unexplained(said, now, after)
    assert (left, whole) == pytest.approx((12 * 0.25**2, 12 * 0.5**2))


def test_samples_have_scenes_where_shots_meet():
    torch.manual_seed(0)
    grey = [Clip(str(v), torch.full((9, 40, 40, 3), v, dtype=torch.uint8)) for v in (20, 230)]
    assert [c.name for c in Clip("a", clip(), (3, 5)).shots()] == ["a"] * 3
    assert [len(c.frames) for c in Clip("a", clip(), (3, 5)).shots()] == [3, 2, 3]
    seen = 0
    for _ in range(20):
        frames, begins, times = sample(grey, [1.0, 1.0], (2, 2), 16, 10)
        assert frames.shape == (10, 32, 32, 3)
        assert (times[1:] > times[:-1]).all()
        bright = frames.float().mean((1, 2, 3)) > 125
        assert torch.equal(begins[1:], bright[1:] != bright[:-1])
        seen += int(begins.sum())
    assert seen > 10


def test_training_learns_and_repeats_itself(model, tmp_path):
    run = Run(steps=3, clips=1, tokens=250, longest=4)
    shots = [Clip("a", clip(12, 192, 192)), Clip("b", 255 - clip(12, 192, 192))]
    first = train(run, shots, [0.5, 0.5], [], tmp_path / "a.safetensors")
    again = train(run, shots, [0.5, 0.5], [], tmp_path / "b.safetensors")
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert load_vision(tmp_path / "a.safetensors").config == first.config
    with pytest.raises(ValueError, match=r"Run\(minutes, steps\)"):
        Run()
    frames, begins = clip(6), torch.tensor([0, 0, 0, 1, 0, 0]).bool()
    kept, times = gated(model, frames, 6.0), torch.arange(6)
    made = small()
    made.book.data = codebook(made, [Clip("a", frames)], 3)
    best = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        loss = loss_of(made, frames, begins, kept, times)
        best.zero_grad()
        loss.backward()
        best.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_frozen_tower_stays(tmp_path):
    run = Run(steps=1, clips=1, tokens=120, longest=2, frozen_tower=True)
    shots = [Clip("a", clip(12, 192, 192)), Clip("b", 255 - clip(12, 192, 192))]
    begin = load_vision()
    got = train(run, shots, [0.5, 0.5], [], tmp_path / "a.safetensors", begin)
    assert torch.equal(got.embed, begin.embed)
    assert not torch.equal(got.blocks[0].query, begin.blocks[0].query)


def test_the_packaged_model_scores_on_held_out_frames():
    model = load_vision(VISION)
    assert sum(p.numel() for p in model.parameters()) == 3_495_836
    _, held = clips()
    (bikes,) = (c for c in held if c.name == "bikes")
    whole, pruned = (score(model, bikes.part(0, 10), t) for t in (0.0, model.config.threshold))
    assert whole["next"] > whole["stays"] - 1
    assert whole["moved"] > 10, "`it stays` explains nothing"
    assert pruned["next"] > whole["next"] - 1
    assert pruned["moved"] > whole["moved"] - 1
