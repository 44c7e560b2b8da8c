# SPDX-License-Identifier: Apache-2.0
"""SFHand: what lay in the hands' boxes stays longest, within a fixed budget of tokens.

SFHand (2025), streaming forecasts of 3-D hands with a memory enhanced by regions of interest; read
in github.com/ut-vision/SFHand. Its memory is a cache of 1386 tokens, the default here, that is cut
to the newest, with a small learned bias in attention towards the patches of the new frame that lie
in a predicted box. Chosen here, as the composition that its name stands for: under the same budget,
the new frame among it, tokens inside a box outlive those outside, and newer ones older ones; there
is no bias. A patch is inside where its corner, in shares of the grid, lies in a box (centre, width,
height), as there.

Oracle: the rule over lists, and the dense forward in which query t sees what it keeps, at the
differences of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Keep
from ..streams import Engine, InCache, Piece, Report, Stream, oracle, wrap
from ..streams.engine import Model
from .proof import Check, Preset, random_tokens

__all__ = ["in_boxes", "see", "sf_hand"]

CAPACITY = 1386
INSIDE = 2.0**40
"""What a token in a box scores above any number of frames."""


def sf_hand(model: Model, *, capacity: int = CAPACITY, **options: Any) -> Engine:
    """An engine whose streams hold `capacity` tokens; `see` feeds a frame.

    Options as in `headrace.wrap`, whose errors it raises. ValueError or TypeError where capacity is
    no number of tokens.
    """
    return wrap(model, memory=Keep("given", capacity, room=True), positions=InCache(), **options)


def see(
    stream: Stream,
    frame: Tensor,
    boxes: Tensor,
    number: int,
    *,
    grid: tuple[int, int],
    logits: bool = False,
) -> Report:
    """Reads frame `number`: int64 [n], its patches row by row last, with boxes [m, 4] of hands."""
    inside = in_boxes(boxes, grid)
    scores = torch.full((len(frame),), float(number), dtype=torch.float64)
    scores[len(frame) - len(inside) :] += INSIDE * inside
    return stream.feed(frame, scores=scores, frame=number, logits=logits)


def in_boxes(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool [rows * columns]: whether a patch's corner lies in one of the boxes [m, 4], each centre
    x and y, width and height, in shares of the picture.
    """
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    centre_x, centre_y, width, height = (side[:, None, None] for side in boxes.cpu().unbind(-1))
    across = (x >= centre_x - width / 2) & (x <= centre_x + width / 2)
    down = (y >= centre_y - height / 2) & (y <= centre_y + height / 2)
    return (across & down).any(0).flatten()


def check(model: Model, *, frames: int = 16) -> list[Check]:
    """Survivors of every frame and logits, and that the budget holds."""
    grid, capacity = (3, 4), 60
    made = torch.Generator().manual_seed(0)
    shown = random_tokens(model, 13 * frames).split(13)  # one token, then the patches
    boxes = [0.2 + 0.6 * torch.rand(2, 4, generator=made) for _ in shown]
    wide = torch.tensor([1.0, 1.0, 0.5, 0.5])
    held: list[tuple[int, int, bool]] = []  # number, frame, whether in a box
    pieces, got, wrong, most, long = [], [], 0, 0, 0
    with sf_hand(model, capacity=capacity, page_size=16, pool_pages=64) as engine:
        stream = engine.open()
        for t, (frame, found) in enumerate(zip(shown, boxes, strict=True)):
            order = sorted(held, key=lambda x: (not x[2], -x[1], x[0]))
            held = sorted(order[: capacity - len(frame)])
            pieces.append(Piece(frame, keep=[number for number, _, _ in held]))
            report = see(stream, frame, found * wide, t, grid=grid, logits=True)
            got.append(report.logits)
            inside = [False, *_inside(found * wide, grid)]
            held += [(13 * t + i, t, hit) for i, hit in enumerate(inside)]
            wrong += stream.held.number.tolist() != [number for number, _, _ in held]
            most = max(most, stream.alive)
            long += held[0][0] < 13 * t + 13 - capacity
    want = oracle(model, pieces, Keep(), InCache())
    gap = float((torch.cat([x for x in got if x is not None]) - want).abs().max())
    return [
        Check("frames after which others survive than by the rule", wrong, 0),
        Check("max |logit - oracle|", gap, 1e-4),
        Check("tokens held at most, of the budget", most, capacity),
        Check("nothing in a box outlived a window of as many tokens", int(not long), 0),
    ]


def _inside(boxes: Tensor, grid: tuple[int, int]) -> Sequence[bool]:
    """Patch by patch."""
    rows, columns = grid
    return [
        any(
            abs(column / columns - x) <= w / 2 and abs(row / rows - y) <= h / 2
            for x, y, w, h in boxes.tolist()
        )
        for row in range(rows)
        for column in range(columns)
    ]


PRESET = Preset("sf_hand", "SFHand (2025); github.com/ut-vision/SFHand", sf_hand, check)
