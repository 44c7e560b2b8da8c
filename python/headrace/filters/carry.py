# SPDX-License-Identifier: Apache-2.0
"""One mask of a pixel gate, carried through encoder, token dropper and block summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import ops
from ..errors import bad_value
from .decision import Decision
from .encoder import EncoderLayer, GatedEncoder
from .references import Filter


class VisionModel(Protocol):
    """What turns patches into tokens: embeds them, encodes them, makes one token of each group."""

    layers: Sequence[EncoderLayer]

    def embed(self, patches: Tensor, places: Tensor) -> Tensor:
        """[.., K, W] of patches [.., K, patch * patch * C] (rows of pixels, then columns, then
        channels) at places int32 [.., K] of a frame, row by row; -1 stands for no patch."""

    def project(self, groups: Tensor) -> Tensor:
        """Tokens [.., K, D] of groups of features [.., K, high * wide * W], row by row."""


@dataclass(frozen=True)
class Carried:
    """What became of a frame. patches: which of them the gate keeps. tokens: which groups, each
    kept as soon as one of its patches is. rows [.., K, D]: tokens of these, then 0. positions int32
    [.., K, 3]: frame, row and column of each, as if nothing had been dropped; -1 behind them."""

    patches: Decision
    tokens: Decision
    rows: Tensor
    positions: Tensor


@dataclass
class GatedVideo:
    """A video of which a pixel gate decides, once a frame, what is computed at all.

    The mask of `gate` (a filter with patches) names the patches that are embedded and encoded (see
    `GatedEncoder`); the same mask over groups of `merge` patches names the tokens that are made and
    go on, with the positions they have in the whole video. What stands for the tokens that are
    dropped are those last made in their place. Frames are uint8 or float [H, W, C] of one stream or
    [B, H, W, C] of several, H and W multiples of the patch.

    frames: how many came.
    """

    gate: Filter
    model: VisionModel
    merge: tuple[int, int] = (2, 2)
    frames: int = field(default=0, init=False)
    encoder: GatedEncoder = field(init=False)

    def __post_init__(self) -> None:
        if self.gate.patch is None:
            raise bad_value("GatedVideo", "gate", "a filter with a patch", "patch=None")
        self.encoder = GatedEncoder(self.model.layers)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Carried:
        """What is kept of the next frame, and its tokens. Raises ValueError for a frame of another
        shape than those before, or of patches that are not whole."""
        patch = self.gate.patch or 1
        if frame.ndim not in (3, 4) or frame.shape[-3] % patch or frame.shape[-2] % patch:
            wanted = f"[H, W, C] or [B, H, W, C], whole patches of {patch}"
            raise bad_value("GatedVideo", "frame", wanted, f"shape {tuple(frame.shape)}")
        patches = self.gate(frame).fitted()
        kept = patches.rows(patchify(frame, patch))
        features = self.encoder(self.model.embed(kept, patches.index), patches)
        tokens = patches.merged(*self.merge).fitted()
        rows = self.model.project(tokens.rows(self._groups(features, patches)))
        there = tokens.index >= 0
        positions = places(tokens, self.frames)
        self.frames += 1
        return Carried(patches, tokens, rows * there[..., None], positions)

    def reset(self) -> None:
        """Forgets all frames; the next one is kept whole."""
        self.gate.reset()
        self.encoder.reset()
        self.frames = 0

    def _groups(self, features: Tensor, patches: Decision) -> Tensor:
        """[.., G, high * wide * W] of features [.., N, W]; 0 beyond the right and lower edge."""
        assert patches.grid is not None
        (rows, columns), (high, wide) = patches.grid, self.merge
        lead, width = features.shape[:-2], features.shape[-1]
        cells = features.reshape(*lead, rows, columns, width)
        cells = pad(cells, (0, 0, 0, -columns % wide, 0, -rows % high))
        down, across = cells.shape[-3] // high, cells.shape[-2] // wide
        cells = cells.reshape(*lead, down, high, across, wide, width).transpose(-4, -3)
        return cells.reshape(*lead, down * across, high * wide * width)


def patchify(frame: Tensor, patch: int) -> Tensor:
    """[.., N, patch * patch * C] of pixels [.., H, W, C], whole patches row by row."""
    *lead, height, width, depth = frame.shape
    cells = frame.reshape(*lead, height // patch, patch, width // patch, patch, depth)
    return cells.transpose(-4, -3).reshape(*lead, -1, patch * patch * depth)


def places(tokens: Decision, frame: int) -> Tensor:
    """int32 [.., K, 3]: frame, row and column of what a decision over a grid keeps, then -1."""
    if tokens.grid is None:
        raise bad_value("places", "tokens", "a decision over a grid", "None")
    at, columns = tokens.index, max(tokens.grid[1], 1)
    down = at.div(columns, rounding_mode="floor")
    return torch.stack([torch.full_like(at, frame), down, at - down * columns], -1).where(
        at[..., None] >= 0, -1
    )


@dataclass
class BlockSummaries:
    """Means and bounds of blocks of a memory to which only kept tokens are appended.

    A stream's tokens fill blocks of `block` in their order; each has the sum, the least and the
    largest of its vectors (`heads` of them a token), and how many. Only kept tokens are read and
    only blocks that get one change. Appending bit by bit gives the same bits as all at once.

    total, low, high: fp32 [B, M, heads, D]. count: int32 [B, M]. tokens: int32 [B], what came.
    """

    block: int
    total: Tensor | None = field(default=None, init=False, repr=False)
    low: Tensor | None = field(default=None, init=False, repr=False)
    high: Tensor | None = field(default=None, init=False, repr=False)
    count: Tensor | None = field(default=None, init=False, repr=False)
    tokens: Tensor | None = field(default=None, init=False, repr=False)
    _most: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.block < 1:
            raise bad_value("BlockSummaries", "block", "1 or more", self.block)

    def append(self, x: Tensor, count: Tensor) -> None:
        """Adds the first `count` (int32 [B] or []) vectors of x [B, K, heads, D] or [K, heads, D].

        Nothing waits for the device: room is made for K of them.
        """
        x, count = (x[None], count[None]) if x.ndim == 3 else (x, count)
        if x.ndim != 4 or count.shape != x.shape[:1]:
            got = f"{tuple(x.shape)} and {tuple(count.shape)}"
            raise bad_value("BlockSummaries", "x", "[B, K, heads, D] and counts [B]", got)
        batch, rows = x.shape[:2]
        if self.tokens is None:
            self.tokens = torch.zeros(batch, dtype=torch.int32, device=x.device)
        self._most += rows
        self._grow(x, -(-self._most // self.block))
        assert self.total is not None
        assert self.low is not None
        assert self.high is not None
        assert self.count is not None
        blocks = self.count.shape[1]
        nth = torch.arange(rows, device=x.device, dtype=torch.int32)
        stream = torch.arange(batch, device=x.device, dtype=torch.int32)[:, None]
        ids = stream * blocks + (self.tokens[:, None] + nth) // self.block
        ids = ids.where(nth < count[:, None], -1)
        states = (s.flatten(0, 1) for s in (self.total, self.low, self.high))
        total, low, high = states
        ops.segment_reduce(
            x.flatten(0, 1), ids.flatten(), total, low, high, count=self.count.view(-1)
        )
        self.tokens += count

    def _grow(self, x: Tensor, blocks: int) -> None:
        """Room for so many blocks; it doubles, so that a long stream seldom copies."""
        there = 0 if self.count is None else self.count.shape[1]
        if self.count is not None and blocks <= there:
            return
        more = max(blocks, 2 * there) - there
        shape = (x.shape[0], more, *x.shape[2:])
        made = [torch.full(shape, start, device=x.device) for start in (0.0, torch.inf, -torch.inf)]
        count = torch.zeros(shape[:2], dtype=torch.int32, device=x.device)
        old = self.total, self.low, self.high, self.count
        self.total, self.low, self.high, self.count = (
            new if was is None else torch.cat([was, new], 1)
            for was, new in zip(old, (*made, count), strict=True)
        )
