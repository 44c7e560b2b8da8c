# SPDX-License-Identifier: Apache-2.0
"""Every number that a preset takes is looked at: one that cannot be is told in a line."""

import inspect

import pytest
import torch

from headrace import presets
from headrace.presets import stream_diffusion, stream_diffusion_v2
from headrace.streams import Polynomial

from ..streams.tiny import TinyDecoder

MORE = {
    "ego_edit": lambda denoiser: (torch.zeros(4),),
    "save_mem": lambda model: (torch.randn(5, 16),),
    "stream_char": lambda denoiser: (torch.zeros(2, denoiser.config.condition), [3, 4]),
}
TAKEN = {("context_forcing", "below"), ("stream_diffusion_v2", "swap")}  # a cosine
TAKEN |= {("stream_diffusion", "scale"), ("stream_diffusion", "delta")}  # any number
NEEDED = {"thunder_agent": {"capacity": 100}}


def _numbers():
    for name in presets.names():
        for p in inspect.signature(presets.get(name).open).parameters.values():
            number = isinstance(p.default, (int, float)) and not isinstance(p.default, bool)
            if (number and p.name != "seed") or p.name in NEEDED.get(name, {}):
                yield name, p.name


def _refused(name, error, **options):
    preset = presets.get(name)
    model = TinyDecoder() if preset.sample is None else preset.sample()
    with pytest.raises(error, match=r"^[\w.]+\(\w+\): expected [^\n]+$"):
        preset.open(model, *MORE.get(name, lambda model: ())(model), **options)


@pytest.mark.parametrize(("name", "option"), sorted(_numbers()))
def test_what_is_no_number_is_refused(name, option):
    _refused(name, (TypeError, ValueError), **{**NEEDED.get(name, {}), option: "x"})


@pytest.mark.parametrize(("name", "option"), sorted(set(_numbers()) - TAKEN))
def test_what_is_less_than_nothing_is_refused(name, option):
    _refused(name, ValueError, **{**NEEDED.get(name, {}), option: -1})


def test_shares_end_at_one():
    for name, option in (("flex_mem", "share"), ("jitserve", "lower"), ("saga", "quantile")):
        _refused(name, ValueError, **{option: 1.01})


def test_layers_that_are_not_there():
    _refused("show_ui", ValueError, layers=(7,))
    _refused("video_llm_mod", ValueError, skipping=(-1,))


def test_near_pages_of_rekv_are_those_of_its_source():
    with presets.rekv(TinyDecoder(), window=40, frame=16, pool_pages=200) as engine:
        assert engine.archive.near().near_pages == 128
    with presets.rekv(TinyDecoder(), window=40, frame=16, top=7, near=3, pool_pages=32) as engine:
        assert engine.archive.near().near_pages == 7


def test_a_still_picture_is_skipped_unless_told_otherwise():
    denoiser = presets.get("stream_diffusion").sample()
    still = torch.ones(denoiser.config.tokens, denoiser.config.channels)
    skipped = {}
    for similar in (True, False, stream_diffusion.SimilarFilter(most=1)):
        video = presets.stream_diffusion(denoiser, similar=similar)
        for _ in range(12):
            video.tick(still)
        skipped[similar] = video.skipped
        video.close()
    assert list(skipped.values()) == [10, 0, 6]


def test_motion_chooses_the_noise_unless_told_otherwise():
    denoiser = presets.get("stream_diffusion_v2").sample()
    frames = [float(i) * torch.ones(denoiser.config.tokens, denoiser.config.channels)
              for i in range(4)]  # fmt: skip
    made = []
    for controller in (True, stream_diffusion_v2.NoiseController(), False):
        video = presets.stream_diffusion_v2(denoiser, controller=controller)
        done = [out.frame for frame in frames for out in video.feed(frame)]
        made.append(torch.stack(done + [out.frame for out in video.drain()]))
        video.close()
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_pixels_have_a_threshold_of_their_own():
    model = presets.get("timechat_online").sample()
    high, wide = (4 * n for n in model.vision.grid)
    frame = torch.full((high, wide, 3), 100, dtype=torch.uint8)
    for step, share in ((9, 1.0), (12, 0.0)):  # of 255, beside 0.04
        stream = presets.timechat_online(model, method="pixel")
        stream.feed(frame)
        assert stream.feed(frame + step).dropped == share


def test_costs_of_this_machine():
    read, copied = presets.stream2llm.costs(TinyDecoder(), lengths=(16, 64, 256), turns=2)
    assert (len(read), len(copied)) == (3, 2)
    server = presets.stream2llm(TinyDecoder(), recompute=read, swap=copied, pool_pages=16)
    assert (server.policy.recompute, server.policy.swap) == (read, copied)
    at = [Polynomial(read)(n) > 0 for n in (16, 64, 256)]
    assert all(at)
    with pytest.raises(ValueError, match=r"^Polynomial.fit\(counts\): expected more than 2"):
        presets.stream2llm.costs(TinyDecoder(), lengths=(16, 64), turns=1)
    _refused("stream2llm", ValueError, swap=())
    _refused("stream2llm", ValueError, recompute=(0.0, float("nan")))
