# SPDX-License-Identifier: Apache-2.0
"""Layers of a ring that carry a gated delta state from frame to frame instead of a cache.

(SANA-Streaming, NVlabs/Sana, `headrace.ops.frame_delta_rule`.) The other layers stay as they are.
A chunk in flight reads the state with itself in it and leaves it as it was; once clean, it stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .ring_fold import turned
from .ring_mixer import Mixer

if TYPE_CHECKING:
    from .ring_cache import Caches
    from .ring_tick import Tick


class FrameDelta(Mixer):
    """layers: those with a state. frames: latent frames in a frame of the ring, each with as many
    of its tokens.

    For a model with as many key heads as query heads, H, and 2 H gates. Queries and keys are
    rectified, keys over sqrt(D n) for n tokens in a latent frame; in the numerator they are turned
    by the latent frame's place in time. beta = clamp(g / 6 + 1/2, 0, 1) of a token's first H gates;
    the decay of a latent frame is exp(-clamp(mean of the others, 0, 1) / 2).

    state fp32 [L, H, D, D] and norm [L, H, D]: of the layers in order. frames_read: latent frames
    in it.
    """

    def __init__(self, layers: Iterable[int], frames: int = 3) -> None:
        self.unpaged = frozenset(layers)
        self.frames, self.frames_read = frames, 0

    def open(self, caches: Caches, denoiser: Any) -> None:
        c, device = denoiser.config, caches.inv_freq.device
        if c.tokens % self.frames:
            raise bad_value("FrameDelta", "frames", f"a divisor of {c.tokens}", self.frames)
        if not self.unpaged <= set(range(c.layers)):
            raise bad_value("FrameDelta", "layers", f"below {c.layers}", sorted(self.unpaged))
        if c.heads != c.kv_heads or c.gates != 2 * c.heads:
            want = f"a denoiser with {c.heads} kv_heads and {2 * c.heads} gates"
            raise bad_value("Ring", "mixer", want, f"{c.kv_heads} and {c.gates}")
        self._row = {layer: i for i, layer in enumerate(sorted(self.unpaged))}
        self.state = torch.zeros(len(self._row), c.heads, c.head_dim, c.head_dim, device=device)
        self.norm = torch.zeros(len(self._row), c.heads, c.head_dim, device=device)
        self._mean = torch.full((1, c.tokens // self.frames), self.frames / c.tokens).to(device)

    def begin(self, rows: int) -> None:
        self._new, self._more = (self.state.clone(), self.norm.clone()), 0

    def commit(self) -> None:
        self.state, self.norm = self._new
        self.frames_read += self._more

    def attend(
        self, tick: Tick, layer: int, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor
    ) -> Tensor:
        if layer not in self._row:
            tick.write(layer, k, v)
            return tick.read(q, tick.seen(layer, k, v))
        tick.seen(layer, k, v)  # has no pages here, but lets go of frames as other layers do
        caches, out = tick.caches, []
        for row, *parts in zip(
            tick.rows, *(x.float().split(caches.tokens) for x in (q, k, v, gates[0])), strict=True
        ):
            out.append(self._read(caches, self._row[layer], row.at, row.writes, *parts))
        self._more = self.frames * sum(row.writes for row in tick.rows)
        return torch.cat(out).to(q.dtype)

    def _read(
        self,
        caches: Caches,
        at: int,
        chunk: int,
        update: bool,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
    ) -> Tensor:
        state, norm = self._new
        size, heads = caches.tokens // self.frames, q.shape[1]
        q, k = q.relu(), k.relu() * (q.shape[2] * size) ** -0.5
        step = (gates[:, :heads] / 6 + 0.5).clamp(0, 1)
        by_frame = gates[:, heads:].view(self.frames, size, heads).mT.reshape(-1, size)
        lose = ops.linear(by_frame, self._mean).view(self.frames, heads)
        place = chunk * caches.span + caches.offset
        one = torch.tensor([0], dtype=torch.int32, device=q.device)
        read: Tensor = ops.frame_delta_rule(
            q,
            k,
            v.contiguous(),
            step.contiguous(),
            state[at : at + 1],
            norm[at : at + 1],
            torch.arange(self.frames + 1, dtype=torch.int32, device=q.device) * size,
            torch.tensor([0, self.frames], dtype=torch.int32, device=q.device),
            one,
            log_decay=lose.clamp(0, 1) * -0.5,
            q_hat=turned(q, place, caches.inv_freq),
            k_hat=turned(k, place, caches.inv_freq),
            update=update,
        )
        return read
