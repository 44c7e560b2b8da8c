# SPDX-License-Identifier: Apache-2.0
"""What a ring must equal: the sequential schedule, by definitions alone.

No ring, no pages, no caches: dense forwards over all tokens of all frames, in fp64 by a copy of the
model, in which a mask over frames says who sees whom. `unrolled` is for frames that read nothing or
the frames before them at the same step: a forward per step, over all frames at once. `rolled` is
for frames that read finished ones, and maybe those in flight: a forward per tick, over the whole
history.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Region
from .oracle import _heads, _pairs, _softmax, _turn
from .positions import Absolute, Positions
from .ring_laws import law
from .ring_noise import Noise
from .ring_solver import Solver

Knobs = Callable[[int, int], Mapping[str, Any]]
"""(number of a frame, step) -> the values of the knobs for that step of it, by name."""


class _Frame:
    """A frame of the sequential schedule, and one step of it written out."""

    def __init__(
        self,
        number: int,
        frame: Tensor,
        noise: Tensor,
        solver: Solver | None,
        knobs: Knobs,
        given: Tensor | None,
    ) -> None:
        self.number, self.frame, self.anchor, self.given = number, frame, frame, given
        self.noise, self.law, self.knobs, self.step = noise, law(solver), knobs, 0
        self.levels: Sequence[float] = knobs(number, 0)["levels"]
        start = knobs(number, 0).get("start")
        start = self.levels[0] if start is None else start
        self.x = self._keep(self.law.mixed(frame, noise[0], start))

    @property
    def done(self) -> bool:
        return self.step == len(self.levels)

    def knob(self, name: str, other: float) -> Any:
        return self.knobs(self.number, self.step).get(name, other)

    def level(self) -> Tensor:
        level = torch.full(self.x.shape[:1], 0.0 if self.done else self.levels[self.step])
        if self.given is not None:
            level[self.given] = 0.0
        return level.to(self.x.dtype)

    def move(self, c: Tensor, u: Tensor, kind: str) -> None:
        x, level = self.x, self.levels[self.step]
        g, d = self.knob("guidance", 1.0), self.knob("delta", 1.0)
        if kind == "full":
            c = (1 - g) * u + g * c
        elif kind == "initialize" and self.step == 0:
            self.anchor, _ = self.law.parts(x, u, level)
            c = (1 - g) * d * u + g * c
        elif kind != "none":
            c = (1 - g) * d * self.law.leads(x, self.anchor, level) + g * c
        c = c * self.knob("velocity", 1.0)
        target, r = self.knob("target", 0.0), self.knob("renoise", 1.0)
        clean, noise = self.law.parts(x, c, level)
        x = clean * (1 - target) + target * self.frame
        self.step += 1
        if not self.done:
            noise = r * self.noise[self.step] + math.sqrt(1 - r * r) * noise
            x = self.law.mixed(x, noise, self.levels[self.step])
        self.x = self._keep(x)

    def _keep(self, x: Tensor) -> Tensor:
        return x if self.given is None else torch.where(self.given[:, None], self.frame, x)


@torch.inference_mode()
def unrolled(
    denoiser: Any,
    frames: Tensor,
    noise: Noise,
    knobs: Knobs,
    *,
    memory: Region | None = None,
    positions: Positions | None = None,
    span: int = 1,
    swap: float | None = None,
    guidance: str = "none",
    solver: Solver | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Finished frames [N, P, C] of frames [N, P, C], each alone or behind those before it.

    memory, positions, span, swap, guidance, solver, noise: as `Ring` takes them. All frames take
    the same number of steps.
    """
    model = copy.deepcopy(denoiser).to(dtype)
    made = _frames(frames, noise, solver, knobs, dtype)
    number = torch.arange(len(made))
    query, key = number[:, None], number[None, :]
    seen = query == key if memory is None else memory.keeps(query, key)
    place = positions or Absolute()
    for _ in made[0].levels:
        if swap is None:
            far = place.distance(query, key, seen)
            attend = dense(model, seen, far, span)
        else:
            assert memory is not None
            attend = _swapping(model, memory, place, span, swap, len(made))
        c = _predict(model, made, "condition", attend)
        u = _predict(model, made, "negative", attend) if guidance in ("full", "initialize") else c
        for i, f in enumerate(made):
            f.move(c[i], u[i], guidance)
    return torch.stack([f.x for f in made])


@torch.inference_mode()
def rolled(
    denoiser: Any,
    frames: Tensor,
    noise: Noise,
    knobs: Knobs,
    *,
    depth: int,
    memory: Region | None = None,
    positions: Positions | None = None,
    together: bool = False,
    span: int = 1,
    solver: Solver | None = None,
    given: Tensor | None = None,
    every: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Finished frames [N, P, C], where finished frames are read, clean, by those to come.

    A frame comes with every `every`-th tick that finds fewer than `depth` in flight. A finished
    frame i sees j where memory.keeps(i, j). One in flight sees of the finished ones what the next
    to finish will see, and those in flight, where they are `together`, else itself. Distances are
    by rank or number over all that are seen.
    """
    model = copy.deepcopy(denoiser).to(dtype)
    waiting = _frames(frames, noise, solver, knobs, dtype, given)
    place, done, flying = positions or Absolute(), list[_Frame](), list[_Frame]()
    ticks = 0
    while waiting or flying:
        if waiting and len(flying) < depth and ticks % every == 0:
            flying.append(waiting.pop(0))
        ticks += 1
        here = (done if memory is not None else []) + flying
        old, total = len(here) - len(flying), len(here)
        number = torch.tensor([f.number for f in here])
        seen = torch.eye(total, dtype=torch.bool)
        far = torch.zeros(total, total, dtype=torch.int64)
        if memory is not None and old:
            next_one = number[old] if flying else number[-1]
            keeps = memory.keeps(number[:, None], number[None, :old])
            seen[:old, :old] = keeps[:old]
            far[:old, :old] = place.distance(
                number[:old, None], number[None, :old], seen[:old, :old]
            )
            seen[old:, :old] = memory.keeps(next_one, number[None, :old])
        if flying:
            seen[old:, old:] |= together
            last = seen[-1:].clone()
            for i in range(old, total):  # by the distances of the newest, less its own
                line = seen[i : i + 1] if not together else last
                d = place.distance(number[-1 if together else i].view(1, 1), number[None], line)[0]
                far[i] = d - d[i]
        out = _predict(model, here, "condition", dense(model, seen, far, span))
        for i, f in enumerate(flying):
            f.move(out[old + i], out[old + i], "none")
        done += [f for f in flying if f.done]
        flying = [f for f in flying if not f.done]
    return torch.stack([f.x for f in sorted(done, key=lambda f: f.number)])


def _frames(
    frames: Tensor,
    noise: Noise,
    solver: Solver | None,
    knobs: Knobs,
    dtype: torch.dtype,
    given: Tensor | None = None,
) -> list[_Frame]:
    made = []
    for i, frame in enumerate(frames.to(dtype)):
        drawn = noise(i, len(knobs(i, 0)["levels"])).to(dtype)
        made.append(_Frame(i, frame, drawn, solver, knobs, given))
    return made


def _predict(model: Any, frames: Sequence[_Frame], branch: str, attend: Any) -> Tensor:
    """[N, P, C] from one dense forward over all frames."""
    tokens, k = frames[0].x.shape[0], model.config.condition
    blank = torch.zeros(k)
    told = [f.knob(branch, blank) for f in frames]  # type: ignore[arg-type]
    x = torch.cat([f.x for f in frames])
    condition = torch.cat([t.to(x.dtype).expand(tokens, k) for t in told]) if k else None
    place = torch.arange(tokens).repeat(len(frames))
    out: Tensor = model(x, torch.cat([f.level() for f in frames]), place, condition, attend)
    return out.view(len(frames), tokens, -1)


def dense(model: Any, seen: Tensor, far: Tensor, span: int) -> Callable[..., Tensor]:
    """Attention in which frame i sees frame j, every token of it, where seen[i, j], at far[i, j]
    frames of `span` positions. seen bool, far int64: [N, N], or by layer [L, N, N]."""
    tokens = model.config.tokens
    offset = torch.arange(tokens) * span // tokens
    shift = (offset[:, None] - offset[None, :]).repeat(seen.shape[-2], seen.shape[-1])
    inv_freq = model.inv_freq.double()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads(q, k, v)
        s, d = (x[layer] if x.dim() == 3 else x for x in (seen, far))
        s, d = (x.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1) for x in (s, d))
        turn = _turn(d * span + shift, inv_freq, q.dtype)
        scores = torch.einsum("hti,hji,tji->htj", _pairs(q), _pairs(k).conj(), turn).real
        return (_softmax(scores, s, None) @ v).transpose(0, 1)

    return attend


def _swapping(
    model: Any, memory: Region, positions: Positions, span: int, swap: float, frames: int
) -> Callable[..., Tensor]:
    """Attention in which a pinned frame that is no longer like the newest gives it its place.

    Walked frame by frame in every layer: the pinned are those that came while fewer than that were
    held, the window is the newest others; when both are full and the cosine of mean keys and of
    mean values with a pinned frame, averaged, is below `swap`, the least similar is replaced.
    """
    plan, tokens = memory.plan(), model.config.tokens

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (x.reshape(frames, tokens, -1).mean(1) for x in (k, v))
        pinned: list[int] = []
        window: list[int] = []
        seen = torch.zeros(frames, frames, dtype=torch.bool)
        far = torch.zeros(frames, frames, dtype=torch.int64)
        for t in range(frames):
            like = [
                float(sum(torch.cosine_similarity(x[j], x[t], dim=0) for x in (keys, values)) / 2)
                for j in pinned
            ]
            if len(pinned) < plan.pinned:
                pinned.append(t)
            elif len(window) == plan.reach and like and min(like) < swap:
                pinned[like.index(min(like))] = t
            else:
                window = [*window, t][-plan.reach :]
            alive = sorted(pinned + window)
            seen[t, alive] = True
            line = positions.distance(
                torch.tensor([[t]]), torch.tensor([alive]), torch.ones(1, len(alive)).bool()
            )
            far[t, alive] = line[0]
        return dense(model, seen, far, span)(layer, q, k, v)

    return attend
