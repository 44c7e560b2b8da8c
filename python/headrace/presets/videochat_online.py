# SPDX-License-Identifier: Apache-2.0
"""VideoChat-Online: a pyramid of frames, few in detail, many in outline, of constant size.

Huang et al., VideoChat-Online / OVBench (CVPR 2025); read in github.com/MCG-NJU/VideoChat-Online,
whose released code keeps features of the vision encoder. Every 8th frame comes in detail, 16 x 16,
every other 4th one at half the resolution, the rest at a quarter, by averaging. Each of the three
levels has room for 64 frames. A full level looks for the two frames one after the other in it whose
means are most alike (cosine), passes the earlier of the two on to the next level, scaled down to
its resolution (bilinear), and the last level forgets it. A question reads all levels in the order
of time: at most 64 * (256 + 64 + 16) = 21,504 tokens, however long the video is.

A bank of features here as there: it knows no cache, and is fed what an encoder gives. Oracle: the
rule over lists of numbers with plain loops; nothing is encoded, so recomputing is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .proof import Check, Preset

__all__ = ["Kept", "Pyramid", "videochat_online"]

SIDES, EVERY, ROOM = (16, 8, 4), (8, 4, 1), (64, 64, 64)


class Kept(NamedTuple):
    """A frame of a level: its number, and its features [C, side, side]."""

    number: int
    features: Tensor


class Pyramid:
    """Levels of frames [C, H, W] of an encoder; see `videochat_online`."""

    def __init__(self, sides: Sequence[int], every: Sequence[int], room: Sequence[int]) -> None:
        if not len(sides) == len(every) == len(room) or not sides:
            got = f"{len(sides)}, {len(every)} and {len(room)}"
            raise bad_value(
                "videochat_online", "sides", "as many as every and room, 1 or more", got
            )
        if every[-1] != 1 or min(*sides, *room) < 1:
            expected = "sides and room of 1 or more, and every frame in some level"
            raise bad_value("videochat_online", "every", expected, f"{sides}, {every}, {room}")
        self.sides, self.every, self.room = tuple(sides), tuple(every), tuple(room)
        self.levels: list[list[Kept]] = [[] for _ in sides]
        self.frames = 0

    @property
    def most(self) -> int:
        """Tokens that it ever holds."""
        return sum(n * side**2 for n, side in zip(self.room, self.sides, strict=True))

    def feed(self, features: Tensor) -> None:
        """The next frame, [C, H, W]; H and W as of the first level."""
        side = self.sides[0]
        if features.dim() != 3 or features.shape[1:] != (side, side):
            got = list(features.shape)
            raise bad_value("videochat_online", "features", f"[C, {side}, {side}]", got)
        level = next(i for i, every in enumerate(self.every) if self.frames % every == 0)
        if level:
            features = F.adaptive_avg_pool2d(features, self.sides[level])
        self._put(level, Kept(self.frames, features))
        self.frames += 1

    def tokens(self) -> tuple[Tensor, Tensor]:
        """What a question reads: features [N, C], and the numbers of their frames, int64 [N]."""
        frames = sorted((x for level in self.levels for x in level), key=lambda x: x.number)
        flat = [x.features.flatten(1).T for x in frames]
        counts = torch.tensor([len(x) for x in flat])
        numbers = torch.tensor([x.number for x in frames]).repeat_interleave(counts)
        return torch.cat(flat), numbers

    def _put(self, level: int, frame: Kept) -> None:
        held = self.levels[level]
        if len(held) == self.room[level]:
            out = held.pop(_most_alike(held))
            if level + 1 < len(self.levels):
                side = self.sides[level + 1]
                small = F.interpolate(
                    out.features[None], size=(side, side), mode="bilinear", align_corners=False
                )
                self._put(level + 1, Kept(out.number, small[0]))
        held.append(frame)


def _most_alike(held: Sequence[Kept]) -> int:
    """Place of the frame most like the one after it in the level, the first of equals."""
    if len(held) == 1:
        return 0
    means = torch.stack([x.features.float().mean((1, 2)) for x in held])
    alike: Tensor = ops.similarity(means[None, 1:], means[None, :-1], "cos")
    return int(alike[0].argmax())


def videochat_online(
    _: Any = None,
    *,
    sides: Sequence[int] = SIDES,
    every: Sequence[int] = EVERY,
    room: Sequence[int] = ROOM,
) -> Pyramid:
    """A pyramid memory of levels with frames of `sides`, the first in detail. It takes no model.

    every: a frame goes to the first level whose number divides its own. room: frames of each.
    ValueError where they are not as many, sides do not fall, or the last of every is not 1.
    """
    return Pyramid(sides, every, room)


def check(_: Any = None, *, frames: int = 90) -> list[Check]:
    """Frames and features of every level by the rule, at small sizes, and that the total stays."""
    sides, every, room, channels = (8, 4, 2), (8, 4, 1), (3, 4, 5), 6
    made = torch.Generator().manual_seed(0)
    shown, now = [], torch.randn(channels, sides[0], sides[0], generator=made)
    for _i in range(frames):
        now = 0.8 * now + 0.6 * torch.randn(now.shape, generator=made)
        shown.append(now)
    bank = videochat_online(sides=sides, every=every, room=room)
    rule: list[list[tuple[int, Tensor]]] = [[] for _ in sides]
    wrong, gap, most, order = 0, 0.0, 0, 0
    for t, features in enumerate(shown):
        bank.feed(features)
        level = 0 if t % 8 == 0 else 1 if t % 4 == 0 else 2
        _by_rule(rule, level, t, _averaged(features.double(), sides[level]), sides, room)
        for got, want in zip(bank.levels, rule, strict=True):
            wrong += [x.number for x in got] != [number for number, _ in want]
            for x, (_n, kept) in zip(got, want, strict=False):
                gap = max(gap, float((x.features - kept).abs().max()))
        tokens, numbers = bank.tokens()
        most = max(most, len(tokens))
        order += int((numbers.diff() < 0).sum())
    moved = sum(number % 4 == 0 for number, _ in rule[-1])
    return [
        Check("levels whose frames differ from the rule's", wrong, 0),
        Check("max |feature - rule's|", gap, 1e-5),
        Check("tokens at most, of the constant total", most, bank.most),
        Check("tokens out of the order of time", order, 0),
        Check("no frame in detail ever came down to the last level", int(not moved), 0),
    ]


def _by_rule(rule: list, level: int, number: int, x: Tensor, sides: tuple, room: tuple) -> None:
    held = rule[level]
    if len(held) == room[level]:
        best, place = -2.0, 0
        for i in range(len(held) - 1):
            a, b = (y.mean((1, 2)) for _, y in held[i : i + 2])
            cos = float(a @ b / (a.norm() * b.norm()))
            if cos > best:
                best, place = cos, i
        out, y = held.pop(place)
        if level + 1 < len(rule):
            _by_rule(rule, level + 1, out, _halved(y, sides[level + 1]), sides, room)
    held.append((number, x))


def _averaged(x: Tensor, side: int) -> Tensor:
    """[C, side, side]: means of squares."""
    return x.unflatten(2, (side, -1)).unflatten(1, (side, -1)).mean((2, 4))


def _halved(x: Tensor, side: int) -> Tensor:
    """Bilinear to half the side: a new point lies amid four old ones."""
    while x.shape[1] > side:
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return x


PRESET = Preset(
    "videochat_online",
    "Huang et al., VideoChat-Online (CVPR 2025); github.com/MCG-NJU/VideoChat-Online",
    videochat_online,
    check,
    sample=lambda: None,
    kind="pruning",
)
