# SPDX-License-Identifier: Apache-2.0
"""EchoAvatar: a body moved by a voice, chunk of motion by chunk, as the voice comes.

EchoAvatar; known here from its abstract alone: an incremental generator of motion from audio, in
real time.

Chosen here: features of audio come as frames, any number at a time, through a causal encoder that
keeps the last inputs of its convolutions; once it has a chunk of 16 frames, a denoiser makes the 16
poses of it in 4 steps, each conditioned on the encoding of its own frame, behind the 3 chunks
before, at their ranks.

Oracle: the encoder over the whole file, and a masked forward over all chunks, without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory import Window
from ..models import Denoiser
from ..streams import InCache, Ring
from .causal_net import CausalNet
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, Loop, gap, small_denoiser
from .rolling_forcing import warped
from .stream_fm import CausalNetIn64

__all__ = ["Avatar", "EchoAvatar", "echo_avatar"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


@dataclass(frozen=True)
class Avatar:
    """The two models: frames of audio [T, A] to encodings [T, K], and a denoiser of chunks of
    poses [P, C], conditioned on [P, K]."""

    encoder: CausalNet
    denoiser: Denoiser


def loop(poses: int, window: int = 3) -> Loop:
    """One chunk of `poses` in flight behind the newest `window`."""
    return Loop(LEVELS, 1, memory=Window(window + 1), positions=InCache(), span=poses)


class EchoAvatar:
    """`hear(audio)` gives the poses that are done. ring: what makes them."""

    def __init__(self, encoder: CausalNet, ring: Ring) -> None:
        self.encoder, self.ring = encoder, ring
        self._states = encoder.states()
        self._heard = torch.zeros(0, encoder.outputs)

    def hear(self, audio: Tensor) -> Tensor:
        """Poses [m, C] for frames of audio fp32 [n, A], any number; those of whole chunks."""
        states, size = self._states.clone(), self.ring.shape[0]
        with torch.inference_mode():
            heard = torch.cat([self._heard, self.encoder.step(audio, states)])
        done = [torch.zeros(0, self.ring.shape[1])]
        self._states, self._heard = states, heard
        while len(self._heard) >= size:
            self.ring.tick(torch.zeros(self.ring.shape), condition=self._heard[:size])
            self._heard = self._heard[size:]
            done += [f.frame for f in self.ring.drain()]
        return torch.cat(done)

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()


def echo_avatar(models: Avatar, *, window: int = 3, **options: Any) -> EchoAvatar:
    """The system: `hear(audio)` gives the poses that are done.

    models: an encoder of audio and a denoiser of chunks of poses. window: chunks that are seen
    behind the one that is made. Options as in `headrace.Ring`, whose errors it raises.
    """
    counts("echo_avatar", least=0, window=window)
    made = loop(models.denoiser.config.tokens, window)
    return EchoAvatar(models.encoder, made.ring(models.denoiser, **options))


@torch.inference_mode()
def oracle(models: Avatar, audio: Tensor, *, window: int = 3, anew: bool = False) -> Tensor:
    """Poses [m, C] of a whole file [T, A]; `anew`: with what is seen encoded anew."""
    c = models.denoiser.config
    heard = CausalNetIn64(models.encoder)(audio.double(), 0.0)
    chunks = heard[: len(heard) // c.tokens * c.tokens].view(-1, c.tokens, heard.shape[1])
    made = loop(c.tokens, window)
    run = made.recompute if anew else made.oracle
    blank = torch.zeros(len(chunks), c.tokens, c.channels)
    return run(
        models.denoiser, blank, own=lambda number, step: {"condition": chunks[number]}
    ).flatten(0, 1)


def recompute(models: Avatar, audio: Tensor, *, window: int = 3) -> Tensor:
    """The same with what is seen encoded anew."""
    return oracle(models, audio, window=window, anew=True)


def check(models: Avatar) -> list[Check]:
    """Equality with the whole file; the same bits however the audio comes; its latency."""
    audio = torch.randn(115, 6, generator=torch.Generator().manual_seed(12))
    want, checks, size = oracle(models, audio), [], models.denoiser.config.tokens
    whole = want
    for exact in (False, True):
        system = echo_avatar(models, exact=exact)
        got = system.hear(audio)
        system.close()
        kind = "exact mode" if exact else "torch's products"
        name = f"{kind}: max |value - oracle| over max |oracle|"
        checks.append(Check(name, gap(got, want), BOUND))
        whole = got
    system, out, late = echo_avatar(models), [], 0
    for i, part in enumerate(audio.split(5)):
        out.append(system.hear(part))
        late = max(late, 5 * i + len(part) - sum(map(len, out)))
    pages, most = system.ring.pool.live_pages, system.ring.most_pages
    system.close()
    differ = int((torch.cat(out) != whole).sum())
    checks.append(Check("audio at once or 5 frames at a time: values that differ", differ, 0))
    checks.append(Check("frames of audio that are heard and not yet moved to", late, size - 1))
    checks.append(Check("pages in use after all frames, of those planned", pages, most))
    return checks


def small_avatar() -> Avatar:
    """Random models: 6 numbers a frame of audio, chunks of 16 poses of 4 numbers."""
    denoiser = small_denoiser()
    return Avatar(CausalNet(6, denoiser.config.condition, seed=2), denoiser)


PRESET = Preset(
    "echo_avatar",
    "EchoAvatar, abstract",
    echo_avatar,
    check,
    small_avatar,
    oracle,
    recompute,
    kind="ring",
)
