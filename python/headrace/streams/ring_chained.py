# SPDX-License-Identifier: Apache-2.0
"""What a chain of frames must equal: each denoised behind finished ones that a rule names.

By definitions alone, as `headrace.streams.ring_oracle`: dense forwards in fp64 over the frame, the
finished frames that it sees, those that they saw, and so on as deep as the model has layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .ring_noise import Noise
from .ring_oracle import Knobs, _Frame, _predict, dense
from .ring_solver import Solver

Context = Callable[[int, Mapping[int, Tensor]], Iterable[tuple[int, int]]]
"""(number of a frame, finished frames by number) -> (number, how many frames before it) of each
finished frame that it sees, in flight and once it is clean."""


@torch.inference_mode()
def chained(
    denoiser: Any,
    frames: Tensor | Mapping[int, Tensor],
    noise: Noise,
    knobs: Knobs,
    *,
    context: Context,
    span: int = 1,
    solver: Solver | None = None,
    history: Mapping[int, Tensor] | None = None,
    extra: Callable[..., Callable[..., Tensor]] | None = None,
    whole: bool = False,
    afresh: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Finished frames [N, P, C] of frames, numbered from 0 unless said, one after the other.

    span: positions of a frame. history: finished frames that are there already. extra(model,
    numbers, attend, sight): what else attention does, for frames with these numbers, each of which
    sees others so many frames before it. whole: all finished frames are there, seen or not.
    afresh: the frames that one sees are encoded anew, causally, as if there were no others.
    """
    model = copy.deepcopy(denoiser).to(dtype)
    given = dict(enumerate(frames)) if isinstance(frames, Tensor) else dict(frames)
    past = history or {}
    made: dict[int, _Frame] = {}
    done: dict[int, Tensor] = {}
    sight: dict[int, dict[int, int]] = {}
    for number in sorted({*past, *given}):
        steps = len(knobs(number, 0)["levels"])
        frame = (given | dict(past))[number].to(dtype)
        drawn = noise(number, steps).to(dtype)
        one = _Frame(number, frame, drawn, solver, knobs, None)
        sight[number] = dict(context(number, done))
        if number in past:
            one.step, one.x = steps, frame
        while not one.done:
            here = _reached(number, sight, 1 if afresh else model.config.layers)
            here = [*done, number] if whole else here
            seen, far = _lines(here, sight, number if afresh else None)
            attend = dense(model, seen, far, span)
            if extra is not None:
                attend = extra(model, here, attend, sight)
            c = _predict(model, [made.get(n, one) for n in here], "condition", attend)[-1]
            one.move(c, c, "none")
        made[number], done[number] = one, one.x
    return torch.stack([done[number] for number in sorted(given)])


def _reached(number: int, sight: Mapping[int, Mapping[int, int]], depth: int) -> list[int]:
    reached = {number}
    for _ in range(depth):
        reached |= {j for i in reached for j in sight[i]}
    return sorted(reached)


def _lines(
    here: list[int], sight: Mapping[int, Mapping[int, int]], viewer: int | None
) -> tuple[Tensor, Tensor]:
    """Who sees whom, and how far before it: [N, N]. viewer: of all that are seen causally."""
    count = len(here)
    seen = torch.eye(count, dtype=torch.bool)
    far = torch.zeros(count, count, dtype=torch.int64)
    for a, i in enumerate(here):
        for b, j in enumerate(here):
            if viewer is not None and b < a:
                seen[a, b] = True
                far[a, b] = sight[viewer][j] - (0 if i == viewer else sight[viewer][i])
            elif viewer is None and j in sight[i]:
                seen[a, b], far[a, b] = True, sight[i][j]
    return seen, far
