# SPDX-License-Identifier: Apache-2.0
"""Re-encoding what is alive: what a ring with a cache gives up quality against, not its oracle.

A cached frame remembers those that it saw and that are gone by now. Here nothing is kept: for every
frame, the frames that it sees are run through the model afresh, as if no other had ever been.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..memory import Region
from .positions import Absolute, Positions
from .ring_noise import Noise
from .ring_oracle import Knobs, _Frame, _frames, _predict, dense
from .ring_solver import Solver


@torch.inference_mode()
def recompute_unrolled(
    denoiser: Any,
    frames: Tensor,
    noise: Noise,
    knobs: Knobs,
    *,
    memory: Region,
    positions: Positions | None = None,
    span: int = 1,
    solver: Solver | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Finished frames [N, P, C] where a frame reads those before it at the same step, and these
    read one another alone; arguments as in `headrace.streams.ring_oracle.unrolled`."""
    model = copy.deepcopy(denoiser).to(dtype)
    made = _frames(frames, noise, solver, knobs, dtype)
    for _ in made[0].levels:
        said = [
            _afresh(model, made[:t], [frame], memory, positions, span, together=False)[-1]
            for t, frame in enumerate(made)
        ]
        for frame, c in zip(made, said, strict=True):
            frame.move(c, c, "none")
    return torch.stack([frame.x for frame in made])


@torch.inference_mode()
def recompute_rolled(
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
    """Finished frames [N, P, C] where those in flight read finished ones, and these read one
    another alone; arguments as in `headrace.streams.ring_oracle.rolled`."""
    model = copy.deepcopy(denoiser).to(dtype)
    waiting = _frames(frames, noise, solver, knobs, dtype, given)
    done, flying = list[_Frame](), list[_Frame]()
    ticks = 0
    while waiting or flying:
        if waiting and len(flying) < depth and ticks % every == 0:
            flying.append(waiting.pop(0))
        ticks += 1
        if not flying:
            continue
        said = _afresh(model, done, flying, memory, positions, span, together)
        for frame, c in zip(flying, said, strict=True):
            frame.move(c, c, "none")
        done += [frame for frame in flying if frame.done]
        flying = [frame for frame in flying if not frame.done]
    return torch.stack([frame.x for frame in done])


def _afresh(
    model: Any,
    before: list[_Frame],
    flying: list[_Frame],
    memory: Region | None,
    positions: Positions | None,
    span: int,
    together: bool,
) -> Tensor:
    """[F, P, C] for those in flight, behind what the first of them sees of `before`, causally."""
    first = torch.tensor([[flying[0].number]])
    old = torch.tensor([frame.number for frame in before])
    keeps = torch.zeros(len(old)).bool() if memory is None else memory.keeps(first, old[None])[0]
    alive = [frame for frame, seen in zip(before, keeps.tolist(), strict=True) if seen]
    here = alive + flying
    number = torch.tensor([frame.number for frame in here])
    seen = torch.ones(len(here), len(here)).tril().bool()
    far = torch.zeros(len(here), len(here), dtype=torch.int64)
    cut = len(alive)
    seen[cut:, cut:] = together | torch.eye(len(flying)).bool()
    place = positions or Absolute()
    if together or len(flying) == 1:
        line = torch.ones(1, len(here)).bool()
        back = place.distance(number[-1].view(1, 1), number[None], line)[0]
        far = back[None] - back[:, None]
    else:
        for i in range(len(here)):
            line = seen[i : i + 1]
            back = place.distance(number[i].view(1, 1), number[None], line)[0]
            far[i] = back - back[i]
    return _predict(model, here, "condition", dense(model, seen, far, span))[cut:]
