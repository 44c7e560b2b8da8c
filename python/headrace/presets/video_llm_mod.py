# SPDX-License-Identifier: Apache-2.0
"""VideoLLM-MoD: in every other layer four fifths of each frame's tokens pass unchanged.

Wu et al., NeurIPS 2024, arXiv 2408.16730: its abstract, figures and tables were read, code is not
published. Vision tokens are not dropped; a learned expert of a layer ranks those of each frame, the
best 20% are computed, the rest passes by the residual, without keys in that layer. Text is always
computed. The experts sit in every other layer, which did best in the paper's table.

Chosen here: the second, fourth... layer; see `recipes.video_llm_mod` for the count. Experts with
random weights, for they come with a trained model.

Oracle: all tokens in one masked forward in fp64, in which of each layer only those that the expert
ranks highest have keys and are replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..recipes import video_llm_mod as recipe
from . import pruning_oracle as plain
from .given import layers_of, shares
from .proof import BOUND, Check, Preset
from .small_reader import Reading, Run, SmallModel, SmallReader
from .small_vision import SmallVision

__all__ = ["VideoLLMMoD", "video_llm_mod"]

RATIO = 0.2


class VideoLLMMoD:
    """A stream of a reader. `see(tokens)` reads a frame's tokens, `hear(tokens)` those of text."""

    def __init__(self, model: Any, ratio: float, skipping: tuple[int, ...]) -> None:
        self.reader, self.ratio, self.skipping = model.reader, ratio, skipping
        self.reading = Reading(model.reader)
        self.kept: list[dict[int, Tensor]] = []

    def see(self, tokens: Tensor, at: Tensor) -> Tensor:
        """fp32 [P, W] of a frame's tokens [P, W] at positions [P, 3]. kept has then, by layer,
        which of them were computed."""
        self.kept.append({})
        return self.reading.feed(tokens, at, self._layer)

    def hear(self, tokens: Tensor, at: Tensor) -> Tensor:
        """fp32 [T, W] of text, of which every layer computes all."""
        return self.reading.feed(tokens, at)

    def _layer(self, i: int, x: Tensor, at: Tensor, run: Run) -> Tensor:
        if i not in self.skipping:
            return run(x, at)
        chosen = recipe.keep(recipe.score(x[None], self.reader.expert[i]), ratio=self.ratio)
        self.kept[-1][i] = chosen[0][0]

        def computed(rows: Tensor, places: Tensor) -> Tensor:
            return run(rows[0], at[places[0].long()])[None]

        return recipe.through(x[None], chosen, computed)[0]


def video_llm_mod(
    model: Any, *, ratio: float = RATIO, skipping: tuple[int, ...] | None = None
) -> VideoLLMMoD:
    """A stream over a model with `reader`, such as `headrace.presets.small_reader.SmallModel`.

    ratio: share of a frame's tokens that a layer that skips computes. skipping: those layers; every
    other one, from the second on, without it. ValueError where ratio is not from 0 to 1, or
    a layer not there.
    """
    shares("video_llm_mod", ratio=ratio)
    count = len(model.reader.layers)
    chosen = tuple(range(1, count, 2)) if skipping is None else skipping
    layers_of("video_llm_mod", "skipping", chosen, count)
    return VideoLLMMoD(model, ratio, chosen)


def by_rule(
    reader: Any, x: Tensor, at: Tensor, frames: list[slice], ratio: float, skipping: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """What every layer makes of all tokens, fp64 [layers, T, W], and which it computes."""
    made, chosen, now = [], [], x.double()
    for i, expert in enumerate(reader.expert.double()):
        on = torch.ones(len(x), dtype=torch.bool)
        for frame in frames if i in skipping else ():
            size = frame.stop - frame.start
            best = (now[frame] @ expert).argsort(stable=True, descending=True)
            on[frame] = False
            on[frame.start + best[: max(1, int(ratio * size))]] = True
        one = _Layer(reader, i)
        now = plain.read(one, now, at, on[None])
        made.append(now)
        chosen.append(on)
    return torch.stack(made), torch.stack(chosen)


class _Layer:
    """One layer of a reader as a reader."""

    def __init__(self, reader: Any, i: int) -> None:
        self.layers = reader.layers[i : i + 1]
        self.heads, self.head_dim = reader.heads, reader.head_dim
        self.inv_freq, self.freq_axis = reader.inv_freq, reader.freq_axis


def check(model: Any, *, frames: int = 7, grid: tuple[int, int] = (7, 9)) -> list[Check]:
    """Ratio, what passes, order and equality, on frames with text between them."""
    reader, count = model.reader, grid[0] * grid[1]
    made = torch.Generator().manual_seed(0)
    places = plain.positions(frames, grid).view(frames, count, 3)
    stream, parts = video_llm_mod(model), []
    tokens: list[Tensor] = []
    at: list[Tensor] = []
    got: list[Tensor] = []
    for frame in range(frames):
        vision = torch.randn(count, reader.width, generator=made)
        text = torch.randn(3, reader.width, generator=made)
        words = torch.full((3, 3), frame) + torch.tensor([20, 40, 60])[:, None]
        begin = sum(len(t) for t in tokens)
        parts.append(slice(begin, begin + count))
        tokens += [vision, text]
        at += [places[frame], words]
        got += [stream.see(vision, places[frame]), stream.hear(text, words)]
    x, where, out = torch.cat(tokens), torch.cat(at), torch.cat(got)
    want, on = by_rule(reader, x, where, parts, RATIO, stream.skipping)
    exact = sum(len(k) != int(RATIO * count) for kept in stream.kept for k in kept.values())
    asked = sum(len(k) for kept in stream.kept for k in kept.values())
    mine, differ = stream.skipping, 0
    for i in mine:
        for kept, part in zip(stream.kept, parts, strict=True):
            rule = on[i, part].nonzero()[:, 0].tolist()
            differ += len(set(rule) ^ set(kept[i].tolist()))
    first = video_llm_mod(model)
    before = [first.see(t, p) if len(t) == count else first.hear(t, p)
              for t, p in zip(tokens[:6], at[:6], strict=True)]  # fmt: skip
    changed = [first.see(tokens[6] + 1, at[6])]
    future = sum(int((a != b).sum()) for a, b in zip(before, got[:6], strict=True))
    passed = _passing(model, tokens[0], at[0], mine[-1])
    return [
        Check("frames of which another number than a fifth is computed", exact, 0),
        Check("keys of skipping layers beside a fifth and the text",
              max(abs(stream.reading.computed[i] - asked // len(mine) - 3 * frames) for i in mine),
              0),
        Check("tokens computed against the expert's ranking", differ, 0),
        Check("skipped tokens that do not have the bits they had", passed, 0),
        Check("max |read - masked forward over all|", float((out - want[-1]).abs().max()), BOUND),
        Check("what comes later changes what was read", future, 0),
        Check("another frame that changes nothing", int(torch.equal(changed[0], got[6])), 0),
    ]  # fmt: skip


def _passing(model: Any, tokens: Tensor, at: Tensor, layer: int) -> int:
    """Numbers of skipped rows that one layer changes."""
    stream, wrong = video_llm_mod(model, skipping=(layer,)), []

    def watched(i: int, x: Tensor, places: Tensor, run: Run) -> Tensor:
        y = stream._layer(i, x, places, run)
        if i == layer:
            skipped = torch.ones(len(x), dtype=torch.bool)
            skipped[stream.kept[-1][i].long()] = False
            wrong.append(int((x[skipped] != y[skipped]).sum()))
            wrong.append(int((x[~skipped] == y[~skipped]).all(-1).sum()))
        return y

    stream.kept.append({})
    stream.reading.feed(tokens, at, watched)
    return sum(wrong)


def sample() -> SmallModel:
    return SmallModel(SmallVision((8, 10)), SmallReader(layers=4))


PRESET = Preset(
    "video_llm_mod",
    "Wu et al., NeurIPS 2024; arXiv 2408.16730, in part",
    video_llm_mod,
    check,
    sample=sample,
    kind="pruning",
)
