# SPDX-License-Identifier: Apache-2.0
"""SANA-Streaming: live video editing, most layers with a state, some with a window.

SANA-Streaming (2026), arXiv 2605.30409, github.com/NVlabs/Sana; its paper's overview was read, and
the formula of its delta rule. Most blocks of the transformer carry a gated delta state of one size
from latent frame to latent frame; softmax blocks in between, spread evenly, see the first chunk and
a local window; a chunk is made behind the states of those before it, conditioned on the source.

Chosen here: chunks of 3 latent frames, 4 steps; every fourth layer has softmax, over the first
chunk and the two newest, at their ranks; gates as `headrace.streams.ring_delta.FrameDelta` says,
for how the model makes them was not read; a chunk is conditioned on the tokens of the source.

Oracle: a masked forward over all chunks, in which the states are the recurrence, latent frame by
latent frame, from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..memory import Sink, Window
from ..models import Denoiser
from ..streams import InCache, Ring
from ..streams.ring_chained import chained
from ..streams.ring_delta import FrameDelta
from ..streams.ring_noise import seeded
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, FOUR, clip, gap, placed, play, small_denoiser, stacked
from .rolling_forcing import warped

__all__ = ["sana_streaming"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


def sana_streaming(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    every: int = 4,
    window: int = 2,
    chunk: int = 3,
    seed: int = 0,
    **options: Any,
) -> Ring:
    """A ring with one chunk in flight: `tick(chunk, condition=source)`, [P, K].

    levels: of noise, one for every step, falling. every: which layers have softmax, counted from 1.
    window: finished chunks that these see beside the first. chunk: latent frames of one. seed: of
    the noise. Options as in `headrace.Ring`, whose errors it raises. ValueError or TypeError where
    every is no whole number from 1 on.
    """
    counts("sana_streaming", least=0, window=window)
    counts("sana_streaming", every=every)
    linear = [i for i in range(denoiser.config.layers) if (i + 1) % every]
    return Ring(
        denoiser,
        levels,
        depth=1,
        memory=Sink(1) + Window(window + 1),
        cache="clean",
        positions=InCache(),
        span=chunk,
        mixer=FrameDelta(linear, chunk),
        noise=seed,
        **options,
    )


def oracle(
    denoiser: Any,
    frames: Tensor,
    sources: Sequence[Tensor],
    *,
    levels: Sequence[float] = FOUR,
    every: int = 4,
    window: int = 2,
    chunk: int = 3,
    seed: int = 0,
    afresh: bool = False,
) -> Tensor:
    """Finished chunks [N, P, C], each with its source [P, K]."""
    c = denoiser.config

    def context(number: int, done: Mapping[int, Tensor]) -> list[tuple[int, int]]:
        seen = sorted({*range(min(1, number)), *range(max(0, number - window), number)})
        return [(j, len(seen) - rank) for rank, j in enumerate(seen)]

    def mixed(model: Any, here: list[int], attend: Any, sight: Any) -> Callable[..., Tensor]:
        def attending(layer: int, q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
            if (layer + 1) % every == 0:
                dense: Tensor = attend(layer, q, k, v)
                return dense
            return _recurrent(model, here, q, k, v, gates, chunk)

        return attending

    return chained(
        denoiser,
        frames,
        seeded(seed, c.tokens, c.channels),
        lambda number, step: {"levels": tuple(levels), "condition": sources[number]},
        context=context,
        span=chunk,
        extra=mixed,
        whole=not afresh,
        afresh=afresh,
    )


def recompute(denoiser: Any, *inputs: Any, **options: Any) -> Tensor:
    """The same with what is seen encoded anew, states of it alone; arguments as `oracle`."""
    return oracle(denoiser, *inputs, afresh=True, **options)


def _recurrent(
    model: Any, here: Sequence[int], q: Tensor, k: Tensor, v: Tensor, gates: Tensor, chunk: int
) -> Tensor:
    """[T, H, D]: latent frame by latent frame over the chunks numbered `here`."""
    c = model.config
    size, heads = c.tokens // chunk, c.heads
    state = torch.zeros(heads, c.head_dim, c.head_dim, dtype=q.dtype)
    norm = torch.zeros(heads, c.head_dim, 1, dtype=q.dtype)
    out = []
    for f in range(len(here) * chunk):
        at = slice(f * size, (f + 1) * size)
        time = torch.full((size,), here[f // chunk] * chunk + f % chunk)
        asked, key = q[at].clamp(min=0), k[at].clamp(min=0) / (c.head_dim * size) ** 0.5
        asked_t, key_t = (placed(x, time, model.inv_freq).transpose(0, 1) for x in (asked, key))
        asked, key, value = (x.transpose(0, 1) for x in (asked, key, v[at]))
        beta = (0.5 + gates[at, :heads] / 6).clamp(0, 1).T[..., None]
        keep = torch.exp(-gates[at, heads:].mean(0).clamp(0, 1) / 2)[:, None, None]
        state, norm = keep * state, keep * norm
        state = state + key_t.mT @ (beta * (value - key_t @ state))
        norm = norm + key.mT @ (beta * (1 - key @ norm))
        out.append((asked_t @ state / (asked @ norm + 1e-6)).transpose(0, 1))
    return torch.cat(out)


def check(denoiser: Any) -> list[Check]:
    """Equality with the recurrence; chunked or frame by frame; states and pages of one size."""
    c, frames, checks = denoiser.config, clip(denoiser, 8), []
    made = torch.Generator().manual_seed(8)
    sources = list(torch.randn(8, c.tokens, c.condition, generator=made))
    want = oracle(denoiser, frames, sources)
    for exact in (True, False):
        with sana_streaming(denoiser, exact=exact) as ring:
            done = play(ring, frames, lambda number: {"condition": sources[number]})
            held, most, mixer = ring.pool.live_pages, ring.most_pages, ring.mixer
        kind = "exact mode" if exact else "torch's products"
        name = f"{kind}: max |value - oracle| over max |oracle|"
        checks.append(Check(name, gap(stacked(done), want), BOUND))
    assert isinstance(mixer, FrameDelta)
    read = abs(mixer.frames_read - 3 * 7)
    checks.append(Check("latent frames in the states beside those that are clean", read, 0))
    checks.append(Check("pages in use after all frames, of those planned", held, most))
    layers = c.layers - len(mixer.unpaged)
    checks.append(
        Check("pages beside those of the softmax layers alone", abs(held - 4 * layers), 0)
    )
    return [*checks, _chunked()]


def _chunked() -> Check:
    """The op over 12 latent frames, in one call and in calls of one and of three."""
    made = torch.Generator().manual_seed(9)
    q, k, v = (torch.randn(48, 2, 16, generator=made) for _ in range(3))
    q, k, beta = q.relu(), k.relu() / 8, torch.rand(48, 2, generator=made)
    decay, outs = -torch.rand(12, 2, generator=made), []
    for chunk in (12, 3, 1):
        state, norm, out = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16), []
        for f in range(0, 12, chunk):
            at = slice(4 * f, 4 * (f + chunk))
            ends = torch.tensor([0, chunk], dtype=torch.int32)
            frames = torch.arange(chunk + 1, dtype=torch.int32) * 4
            parts = (q[at], k[at], v[at], beta[at], state, norm, frames, ends, ends[:1])
            out.append(ops.frame_delta_rule(*parts, log_decay=decay[f : f + chunk]))
        outs.append(torch.cat([torch.cat(out).flatten(), state.flatten(), norm.flatten()]))
    differ = int((outs[0] != outs[1]).sum() + (outs[0] != outs[2]).sum())
    return Check("chunks of 12, of 3 or of 1 latent frames: values that differ", differ, 0)


def small_editor() -> Denoiser:
    """A random denoiser of chunks [12, 4], with gates, whose last of four layers has softmax."""
    return small_denoiser(tokens=12, layers=4, heads=2, kv_heads=2, gates=4)


PRESET = Preset(
    "sana_streaming",
    "SANA-Streaming, 2026; arXiv 2605.30409",
    sana_streaming,
    check,
    small_editor,
    oracle,
    recompute,
    kind="ring",
)
