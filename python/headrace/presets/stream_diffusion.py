# SPDX-License-Identifier: Apache-2.0
"""StreamDiffusion: a ring of solver steps, residual guidance, and frames that are not worth a call.

Kodaira et al., StreamDiffusion (2023), github.com/cumulo-autumn/StreamDiffusion; its pipeline and
its image filter were read. Frame i goes through its n steps while those behind it are at earlier
ones; noise is drawn once per step and the same for all frames. Defaults are those of its
image-to-image examples: steps 32 and 45 of 50 (timesteps 359 and 99 of the scaled-linear schedule
of Stable Diffusion), guidance "self" at 1.2, filter at 0.98 with at most 10 skips.

Chosen here: residual guidance by the paper's equation, in which the unconditional noise is what
leads from the noisy frame to the frame that came in, where the released code carries a stock of
noise from step to step and says that it would be redone; the clean estimate itself, where the code
has the boundary scalings of consistency models, which at these timesteps differ by less than 1e-5;
ten skips in a row, where the code counts them from one forced frame to the next; no sleeping.

Oracle: the frames that the filter lets through, one after the other, step by step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..streams import Diffusion, Ring
from ..streams.ring_noise import seeded
from ..streams.ring_oracle import unrolled
from .given import numbers
from .proof import Check, Preset
from .ring_loops import clip, directions, equality, gap, rows_of, small_denoiser

__all__ = ["SimilarFilter", "StreamDiffusion", "levels_of", "stream_diffusion"]

TIMESTEPS = (359, 99)
NAMES = ("none", "self", "initialize", "full")


def levels_of(timesteps: Sequence[int]) -> tuple[float, ...]:
    """sqrt(1 - alpha_bar) at timesteps of Stable Diffusion's scaled-linear schedule of 1000."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    noise = (1 - (1 - beta).cumprod(0)).sqrt()
    return tuple(float(noise[t]) for t in timesteps)


class SimilarFilter:
    """Whether a frame may be skipped: with probability max(0, 1 - (1 - c) / (1 - threshold)).

    c is the cosine with the last frame that was not skipped; at most `most` in a row are.
    """

    def __init__(self, threshold: float = 0.98, most: int = 10, seed: int = 0) -> None:
        self.threshold, self.most = threshold, most
        self._random = random.Random(seed)
        self._last: Tensor | None = None
        self._row = 0

    def __call__(self, frame: Tensor) -> bool:
        """Of the next frame; one that is not skipped is what later ones are compared with."""
        if self._last is not None:
            c = float(torch.cosine_similarity(frame.flatten(), self._last.flatten(), dim=0))
            chance = 0.0 if self.threshold >= 1 else 1 - (1 - c) / (1 - self.threshold)
            if self._random.random() <= max(0.0, chance) and self._row < self.most:
                self._row += 1
                return True
        self._last, self._row = frame.clone(), 0
        return False


class StreamDiffusion:
    """A ring behind a filter: `tick` gives the newest frame that is done, None before the first.

    ring: to turn knobs and to drain. skipped: frames that cost nothing.
    """

    def __init__(self, ring: Ring, similar: SimilarFilter | None) -> None:
        self.ring, self.similar, self.skipped = ring, similar, 0
        self._newest: Tensor | None = None

    def tick(self, frame: Tensor) -> Tensor | None:
        """The newest frame done after this one [P, C] came in; the last one again on a skip."""
        if self.similar is not None and self.similar(frame):
            self.skipped += 1
        else:
            for done in self.ring.tick(frame):
                self._newest = done.frame
        return self._newest

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()


def stream_diffusion(
    denoiser: Any,
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    guidance: str = "self",
    scale: float = 1.2,
    delta: float = 1.0,
    condition: Tensor | None = None,
    similar: SimilarFilter | bool = True,
    seed: int = 2,
    **options: Any,
) -> StreamDiffusion:
    """The system over a denoiser that predicts noise.

    timesteps: of Stable Diffusion's schedule of 1000, one for every step, falling. guidance:
    "none", "self", "initialize" or "full"; scale: how strong; delta: of the noise that "self" and
    "initialize" take for unconditional. condition [K]: what frames are conditioned on. similar:
    True for a `SimilarFilter()`, or one of yours; False to skip no frame. seed: of the noise.
    Options as in `headrace.Ring`, whose errors it raises.
    """
    numbers("stream_diffusion", least=float("-inf"), scale=scale, delta=delta)
    c = denoiser.config
    knobs: dict[str, Any] = {"guidance": scale, "delta": delta}
    if condition is not None:
        knobs["condition"] = condition
    ring = Ring(
        denoiser,
        levels_of(timesteps),
        guidance=guidance,
        solver=Diffusion(),
        noise=seeded(seed, c.tokens, c.channels, fixed=True),
        knobs=knobs,
        **options,
    )
    own = SimilarFilter() if similar is True else similar or None
    return StreamDiffusion(ring, own)


def _noise_at(timestep: int) -> float:
    """The level at a timestep, one product after the other."""
    left, first, last = 1.0, 0.00085**0.5, 0.012**0.5
    for t in range(timestep + 1):
        left *= 1 - (first + (last - first) * t / 999) ** 2
    return float((1 - left) ** 0.5)


def oracle(
    denoiser: Any,
    frames: Tensor,
    *,
    timesteps: Sequence[int] = (359, 99),
    guidance: str = "self",
    scale: float = 1.2,
    delta: float = 1.0,
    condition: Tensor | None = None,
    seed: int = 2,
) -> Tensor:
    """What becomes of frames [N, P, C], all let through: one after the other, step by step."""
    c = denoiser.config
    knobs: dict[str, Any] = {
        "levels": tuple(map(_noise_at, timesteps)),
        "guidance": scale,
        "delta": delta,
        "condition": torch.zeros(c.condition) if condition is None else condition,
    }
    noise = seeded(seed, c.tokens, c.channels, fixed=True)
    return unrolled(
        denoiser, frames, noise, lambda *_: knobs, guidance=guidance, solver=Diffusion()
    )


def check(denoiser: Any, *, timesteps: Sequence[int] = (700, 519, 359, 99)) -> list[Check]:
    """Equality for every guidance, its model rows, and the filter."""
    frames, checks = clip(denoiser, 7), []
    told: dict[str, Any] = {"timesteps": timesteps, "condition": directions(denoiser)}
    n = len(timesteps)
    for guidance, rows in zip(NAMES, (n, n, n + 1, 2 * n), strict=True):

        def opened(kind: str = guidance, **options: Any) -> Ring:
            return stream_diffusion(denoiser, guidance=kind, **told, **options).ring

        want = oracle(denoiser, frames, guidance=guidance, **told)
        for made in equality(opened, frames, want):
            checks.append(Check(f"{guidance}: {made.name}", made.figure, made.bound))
        got, calls = rows_of(opened, frames)
        checks.append(Check(f"{guidance}: model rows of a tick beside {rows}", abs(got - rows), 0))
        checks.append(Check(f"{guidance}: model calls of a tick beside one", abs(calls - 1), 0))
    return checks + _filter(denoiser, told)


def _filter(denoiser: Any, told: dict[str, Any]) -> list[Check]:
    frames = clip(denoiser, 12).repeat_interleave(3, 0)
    draw, kept, row = random.Random(5), [0], 0
    for i in range(1, len(frames)):  # its rule again, over the whole clip
        a, b = frames[i].flatten().double(), frames[kept[-1]].flatten().double()
        similar = 1 - (1 - float(a @ b / (a.norm() * b.norm()))) / 0.02
        if draw.random() <= max(0.0, similar) and row < 10:
            row += 1
        else:
            kept, row = [*kept, i], 0
    made = stream_diffusion(denoiser, similar=SimilarFilter(seed=5), **told)
    for frame in frames:
        made.tick(frame)
    skipped, calls = made.skipped, made.ring.calls
    last = made.ring.drain()[-1].frame
    made.close()
    want = oracle(denoiser, frames[kept], **told)[-1]
    return [
        Check(
            "filter: skips beside those of its rule", abs(skipped - (len(frames) - len(kept))), 0
        ),
        Check("filter: frames that cost a call, beside those kept", abs(calls - len(kept)), 0),
        Check("filter: last frame, max |value - oracle| over max |oracle|", gap(last, want), 1e-4),
        Check("filter: frames of 36 that cost a call", calls, 18),
    ]


PRESET = Preset(
    "stream_diffusion",
    "Kodaira et al., 2023; github.com/cumulo-autumn/StreamDiffusion",
    stream_diffusion,
    check,
    small_denoiser,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="ring",
)
