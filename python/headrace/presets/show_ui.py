# SPDX-License-Identifier: Apache-2.0
"""ShowUI: of a screenshot's even areas some of the tokens pass a layer, of the rest all.

Lin et al., CVPR 2025, arXiv 2411.17465, and its code (github.com/showlab/ShowUI), which were read:
neighbouring patches that look the same are one component (see `recipes.showui`); in the layers that
skip, a share of each component's tokens, at even distances, passes unchanged, and the others are
computed at the positions they have. The code's defaults skip nothing; its training takes half, in
every other layer, which is the default here.

Chosen here: components of the patches' pixels from 0 to 1, merged 2 x 2 as tokens are, for the
normalisation of a trained model is its own; each screenshot chooses once, as in the code.

Oracle: components by a walk from patch to patch, and a masked forward in fp64 over all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import recipes
from ..filters import patchify
from ..recipes import video_llm_mod as passing
from . import pruning_oracle as plain
from .given import layers_of, numbers, shares
from .proof import BOUND, Check, Preset
from .small_reader import Reading, Run, SmallModel, SmallReader
from .small_vision import PATCH, SmallVision

__all__ = ["ShowUI", "show_ui"]

SKIP, THRESHOLD = 0.5, 1.0


class ShowUI:
    """`look(screen, tokens)` chooses and reads. label, kept: of the newest screenshot."""

    def __init__(self, model: Any, skip: float, threshold: float, layers: tuple[int, ...]) -> None:
        self.skip, self.threshold, self.layers = skip, threshold, layers
        self.reading, self.looks = Reading(model.reader), 0
        self.label: Tensor | None = None
        self.kept: Tensor | None = None

    def look(self, screen: Tensor, tokens: Tensor) -> Tensor:
        """fp32 [P, W] of a screenshot uint8 [H, W, C] and its tokens [P, W], row by row."""
        side = 2 * PATCH
        high, wide = screen.shape[0] // side, screen.shape[1] // side
        rows = patchify(screen, side).float() / 255
        self.label = recipes.showui.components(rows.view(1, high, wide, -1),
                                               threshold=self.threshold)  # fmt: skip
        index, count = recipes.showui.keep(self.label, skip=self.skip)
        self.kept = index[: int(count)]
        place = torch.arange(high * wide)
        at = torch.stack([torch.full_like(place, self.looks), place // wide, place % wide], 1)
        self.looks += 1
        return self.reading.feed(tokens, at, self._layer)

    def _layer(self, i: int, x: Tensor, at: Tensor, run: Run) -> Tensor:
        if i not in self.layers:
            return run(x, at)
        assert self.kept is not None
        chosen = self.kept[None], torch.tensor([len(self.kept)], dtype=torch.int32)

        def computed(rows: Tensor, places: Tensor) -> Tensor:
            return run(rows[0], at[places[0].long()])[None]

        return passing.through(x[None], chosen, computed)[0]


def show_ui(
    model: Any,
    *,
    skip: float = SKIP,
    threshold: float = THRESHOLD,
    layers: tuple[int, ...] | None = None,
) -> ShowUI:
    """A stream over a model with `reader`, such as `headrace.presets.small_reader.SmallModel`.

    skip: share of a component's tokens that pass a layer that skips. threshold: distance of two
    patches that look the same. layers: those that skip, every other one without it. ValueError
    where skip is not from 0 to 1, threshold negative, or a layer not there.
    """
    shares("show_ui", skip=skip)
    numbers("show_ui", threshold=threshold)
    count = len(model.reader.layers)
    chosen = tuple(range(1, count, 2)) if layers is None else layers
    layers_of("show_ui", "layers", chosen, count)
    return ShowUI(model, skip, threshold, chosen)


def screenshot(grid: tuple[int, int], seed: int) -> Tensor:
    """uint8 [H, W, 3]: an even ground, even windows on it, and noise where there is text."""
    made = torch.Generator().manual_seed(seed)
    side = 2 * PATCH
    screen = torch.full((grid[0] * side, grid[1] * side, 3), 230)
    for _ in range(4):
        y, x = (int(torch.randint(0, n - 2, (), generator=made)) for n in grid)
        high, wide = (int(torch.randint(2, 7, (), generator=made)) for _ in range(2))
        area = screen[y * side : (y + high) * side, x * side : (x + wide) * side]
        area[:] = torch.randint(40, 200, (3,), generator=made)
        text = area[side : 2 * side]
        text[:] = torch.randint(0, 255, text.shape, generator=made)
    return screen.byte()


def walked(screen: Tensor, threshold: float) -> list[list[int]]:
    """Components of 8 x 8 pixels, from patch to patch, each a list of places."""
    side = 2 * PATCH
    high, wide = screen.shape[0] // side, screen.shape[1] // side
    cells = [screen[y * side : (y + 1) * side, x * side : (x + 1) * side].double() / 255
             for y in range(high) for x in range(wide)]  # fmt: skip
    seen: set[int] = set()
    found = []
    for start in range(high * wide):
        todo, members = [start], []
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            members.append(at)
            y, x = divmod(at, wide)
            near = [(y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)]
            todo += [b * wide + c for b, c in near if 0 <= b < high and 0 <= c < wide
                     and (cells[at] - cells[b * wide + c]).norm() < threshold]  # fmt: skip
        if members:
            found.append(sorted(members))
    return found


def check(model: Any, *, screens: int = 4, grid: tuple[int, int] = (11, 13)) -> list[Check]:
    """Masks against the walk, and what is read, over screenshots one after the other."""
    reader, count = model.reader, grid[0] * grid[1]
    made = torch.Generator().manual_seed(0)
    stream = show_ui(model)
    tokens = torch.randn(screens, count, reader.width, generator=made)
    on = torch.ones(len(reader.layers), screens, count, dtype=torch.bool)
    parted = other = 0
    got = []
    for t in range(screens):
        screen = screenshot(grid, t)
        got.append(stream.look(screen, tokens[t]))
        assert stream.label is not None
        assert stream.kept is not None
        flat = stream.label.flatten()
        stay = []
        for members in walked(screen, THRESHOLD):
            parted += int((flat[members] != members[0]).sum())
            n = len(members)
            m = n if n == 1 else max(1, n - round(SKIP * n))
            stay += [members[i * (n - 1) // (m - 1) if m > 1 else 0] for i in range(m)]
        other += len(set(stay) ^ set(stream.kept.tolist()))
        on[1::2, t] = False
        on[1::2, t, stay] = True
    at = plain.positions(screens, grid)
    want = plain.read(reader, tokens.flatten(0, 1), at, on.flatten(1))
    share = float(on[1].double().mean())
    whole = show_ui(model, skip=0.0)
    same = torch.equal(whole.look(screenshot(grid, 0), tokens[0]), Reading(reader).feed(
        tokens[0], at[:count]))  # fmt: skip
    return [
        Check("patches in another component than by the walk", parted, 0),
        Check("tokens that stay against the rule", other, 0),
        Check("max |read - masked forward over all|",
              float((torch.cat(got) - want).abs().max()), BOUND),
        Check("keys of skipping layers beside those that stay",
              abs(stream.reading.computed[1] - int(on[1].sum())), 0),
        Check("share computed in a layer that skips", share, 0.8),
        Check("skipping nothing: other bits than without", 1 - same, 0),
    ]  # fmt: skip


def sample() -> SmallModel:
    return SmallModel(SmallVision((8, 10)), SmallReader(layers=4))


PRESET = Preset(
    "show_ui",
    "Lin et al., CVPR 2025; arXiv 2411.17465, github.com/showlab/ShowUI",
    show_ui,
    check,
    sample=sample,
    kind="pruning",
)
