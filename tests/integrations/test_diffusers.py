# SPDX-License-Identifier: Apache-2.0
"""Modules of diffusers' signature in a ring: as called one by one, and with a rolling cache."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headrace import Sink, Window
from headrace.integrations.diffusers import (
    Denoise,
    diffusion_timesteps,
    flow_timesteps,
    levels,
    ring,
)
from headrace.models.training.video_data import folder
from headrace.streams import Diffusion, Flow

SHAPE, PATCH, LEVELS = (3, 8, 12), 4, (1.0, 0.7, 0.3)


class Attention(nn.Module):
    """What diffusers' layers have, with their default processor."""

    def __init__(self, width, heads, context=None):
        super().__init__()
        self.heads, self.is_cross_attention = heads, context is not None
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context or width, width, bias=False) for _ in "kv")
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])
        self.processor = plain

    def set_processor(self, processor):
        self.processor = processor

    def forward(self, x, encoder_hidden_states=None, **more):
        return self.processor(self, x, encoder_hidden_states=encoder_hidden_states, **more)


def plain(attn, x, encoder_hidden_states=None, keys=None):
    told = x if encoder_hidden_states is None else encoder_hidden_states
    q, k, v = (
        to(y).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for to, y in ((attn.to_q, x), (attn.to_k, told), (attn.to_v, told))
    )
    return attn.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Small(nn.Module):
    """A transformer over patches of 4, with text."""

    def __init__(self, width=32, heads=2, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.input = nn.Linear(3 * PATCH**2, width)
        self.time = nn.Linear(8, width)
        self.places = nn.Parameter(torch.randn(6, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width, heads), Attention(width, heads, context=5)])
            for _ in range(layers)
        )
        self.output = nn.Linear(width, 3 * PATCH**2)
        self.calls = []

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True):
        self.calls.append((tuple(sample.shape), timestep.tolist()))
        x = F.unfold(sample, PATCH, stride=PATCH).transpose(1, 2)
        angle = timestep.float()[:, None] / 1000 * torch.arange(1.0, 9.0)
        x = self.input(x) + self.time(angle.sin())[:, None] + self.places
        for within, across in self.layers:
            x = x + within(x)
            if encoder_hidden_states is not None:
                x = x + across(x, encoder_hidden_states=encoder_hidden_states)
        y = self.output(x).transpose(1, 2)
        y = F.fold(y, sample.shape[-2:], PATCH, stride=PATCH)
        return {"sample": y} if return_dict else (y,)


@pytest.fixture
def module():
    return Small().eval()


@pytest.fixture(scope="module")
def clip():
    """Eight frames of a real clip, [8, 3, 8, 12] from -1 to 1."""
    import av

    with av.open(str(folder() / "carphone_pristine.mp4")) as file:
        frames = [
            torch.from_numpy(f.reformat(width=12, height=8, format="rgb24").to_ndarray())
            for f in file.decode(video=0)
        ][:24:3]
    return torch.stack(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def noise_of(denoise, clip):
    made = torch.Generator().manual_seed(3)
    noise = torch.randn(len(clip), len(LEVELS), *SHAPE, generator=made)
    return noise, lambda number, steps: denoise.pack(noise[number])


def ticked(made, denoise, clip):
    done = []
    for frame in clip:
        done += made.tick(denoise.pack(frame))
    done += made.drain()
    return torch.stack([denoise.unpack(f.frame) for f in done])


def test_frames_and_samples_are_one_another():
    denoise = Denoise(Small(), SHAPE, patch=PATCH)
    sample = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    frame = denoise.pack(sample)
    assert frame.shape == (2, 6, 48)
    assert torch.equal(frame[1], F.unfold(sample[1:], PATCH, stride=PATCH)[0].T)
    assert torch.equal(denoise.unpack(frame), sample)
    assert torch.equal(denoise.unpack(denoise.pack(sample[0])), sample[0])


@pytest.mark.parametrize("solver", [Flow(), Diffusion()])
def test_a_ring_gives_what_the_pipeline_gives(module, clip, solver):
    own = LEVELS if isinstance(solver, Flow) else (0.95, 0.7, 0.3)
    contexts = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    denoise = Denoise(module, SHAPE, patch=PATCH, contexts=contexts)
    noise, drawn = noise_of(denoise, clip)
    knobs = {"condition": torch.tensor([1.0])}
    with ring(denoise, own, solver=solver, noise=drawn, knobs=knobs) as made:
        got = ticked(made, denoise, clip)
        calls = made.calls
    assert calls == len(clip) + len(own) - 1
    steady = module.calls[4]
    assert steady[0][0] == 3
    assert len(set(steady[1])) == 3, "frames in flight are at timesteps of their own"
    want = pipeline(module, clip, noise, solver, own, contexts[1])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    other = pipeline(module, clip, noise, solver, own, contexts[0])
    assert float((got - other).abs().max()) > 1e-2


@torch.no_grad()
def pipeline(module, clip, noise, solver, own, context):
    """The few-step loop of a pipeline, a frame after the other."""
    out = []
    for i, frame in enumerate(clip):
        x = None
        clean = frame
        for step, level in enumerate(own):
            flow = isinstance(solver, Flow)
            a = 1 - level if flow else (1 - level * level) ** 0.5
            x = a * clean + level * noise[i, step]
            t = flow_timesteps(torch.tensor([level]))
            said = module(x[None], t, encoder_hidden_states=context[None], return_dict=False)
            clean = x - level * said[0][0] if flow else (x - level * said[0][0]) / a
        out.append(clean)
    return torch.stack(out)


@torch.no_grad()
@pytest.mark.parametrize("theta", [None, 100.0])
def test_a_rolling_cache_equals_attention_over_the_frames_alive(module, clip, theta):
    """Finished frames write at level 0; every frame sees the first one and the last two before."""
    denoise = Denoise(module, SHAPE, patch=PATCH, rolling=True, theta=theta)
    noise, drawn = noise_of(denoise, clip)
    memory = Sink(1) + Window(3)
    with ring(denoise, LEVELS, memory=memory, cache="clean", depth=1, noise=drawn) as made:
        got = ticked_alone(made, denoise, clip)
        held = made.pool.live_pages
    assert held <= made.most_pages
    assert all(layer[0].processor is plain for layer in module.layers)
    want = rolled(module, clip, noise, theta)
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)
    alone = rolled(module, clip, noise, theta, sees=lambda t: [])
    assert float((got[1:] - alone[1:]).abs().max()) > 1e-2
    without = rolled(module, clip, noise, theta, sees=lambda t: range(max(0, t - 2), t))
    assert float((got[4:] - without[4:]).abs().max()) > 1e-3, "the sink must count"
    if theta is not None:
        still = rolled(module, clip, noise, None)
        assert float((got - still).abs().max()) > 1e-3


def ticked_alone(made, denoise, clip):
    """One frame in flight."""
    done = []
    for frame in clip:
        done += made.tick(denoise.pack(frame)) + made.drain()
    return torch.stack([denoise.unpack(f.frame) for f in done])


def rolled(module, clip, noise, theta, sees=lambda t: sorted({0, t - 1, t - 2} & set(range(t)))):
    """By plain torch, with every key of every frame kept, un-turned."""
    store = {}

    def forward(x, level, t, seen, write):
        def processor(number):
            def attend(attn, x, encoder_hidden_states=None, **_):
                q, k, v = (
                    to(x)[0].unflatten(-1, (attn.heads, -1))
                    for to in (attn.to_q, attn.to_k, attn.to_v)
                )
                keys = [store[number, s] for s in seen] + [(k, v)]
                back = torch.tensor([t - s for s in seen] + [0]).repeat_interleave(len(k))
                if write:
                    store[number, t] = k, v
                k, v = (torch.cat([pair[i] for pair in keys]) for i in (0, 1))
                steps = torch.arange(0, 16, 2, dtype=torch.float64) / 16
                freq = torch.zeros(8) if theta is None else (theta**-steps).float()
                angle = back[:, None].float() * freq
                a, b = q[:, None].chunk(2, -1)
                cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
                q = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
                weight = ((q * k[None]).sum(-1) / 4).softmax(1)
                return attn.to_out[0](torch.einsum("qkh,khd->qhd", weight, v).flatten(1))[None]

            return attend

        for number, (within, _) in enumerate(module.layers):
            within.processor = processor(number)
        said = module(x[None], flow_timesteps(torch.tensor([level])), return_dict=False)[0][0]
        for within, _ in module.layers:
            within.processor = plain
        return said

    out = []
    for t, frame in enumerate(clip):
        clean = frame
        for step, level in enumerate(LEVELS):
            x = (1 - level) * clean + level * noise[t, step]
            clean = x - level * forward(x, level, t, sees(t), False)
        forward(clean, 0.0, t, sees(t), True)
        out.append(clean)
    return torch.stack(out)


def test_levels_and_timesteps_of_a_schedule():
    alphas = torch.linspace(0.9999, 0.98, 1000).double().cumprod(0)
    steps = [900, 500, 20]
    assert diffusion_timesteps(alphas)(torch.tensor(levels(alphas, steps))).tolist() == steps
    assert flow_timesteps(torch.tensor([0.25])).tolist() == [250.0]


def test_what_it_cannot_do_is_named_and_the_module_is_left_alone(module, clip):
    denoise = Denoise(module, SHAPE, patch=PATCH)
    with pytest.raises(ValueError, match=r"ring\(memory\).*rolling=True"):
        ring(denoise, LEVELS, memory=Window(2))
    with pytest.raises(NotImplementedError, match="rolling"):
        Denoise(nn.Linear(2, 2), SHAPE, rolling=True)
    with pytest.raises(ValueError, match=r"Denoise\(patch\)"):
        Denoise(module, SHAPE, patch=5)
    with pytest.raises(TypeError, match=r"Denoise\(module\)"):
        Denoise(len, SHAPE)
    module.layers[0][0].group_norm = nn.Identity()
    broken = Denoise(module, SHAPE, patch=PATCH, rolling=True)
    with ring(broken, LEVELS, memory=Window(2)) as made:
        with pytest.raises(NotImplementedError, match="group_norm"):
            made.tick(broken.pack(clip[0]))
        assert (made.now, made.pool.live_pages) == (0, 0)
    assert all(layer[0].processor is plain for layer in module.layers)
    from headrace import Ring

    with Ring(denoise, LEVELS) as made, pytest.raises(NotImplementedError, match="exact"):
        made.tick(denoise.pack(clip[0]))
