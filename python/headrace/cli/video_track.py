# SPDX-License-Identifier: Apache-2.0
"""What is kept of a run over video: a curve and a few pictures, however long it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..streams.watch import Glance
from .track import Histogram

BINS, PICTURES, EVENTS = 512, 12, 1000


@dataclass
class Stretch:
    """Sums over `frames` frames, the latest memory, and the longest step."""

    frames: int = 0
    changed: float = 0.0
    kept: float = 0.0
    seconds: float = 0.0
    longest: float = 0.0
    kv_bytes: int = 0

    def add(self, other: Stretch) -> None:
        self.frames += other.frames
        self.changed += other.changed
        self.kept += other.kept
        self.seconds += other.seconds
        self.longest = max(self.longest, other.longest)
        self.kv_bytes = other.kv_bytes


@dataclass(frozen=True)
class Picture:
    """A frame uint8 [H, W, 3] and what was computed and kept of it, bool [N]."""

    number: int
    seconds: float
    frame: Tensor
    changed: Tensor
    kept: Tensor


@dataclass
class VideoTrack:
    """A run so far. Shares are of all places; surprise is over the frames that have one."""

    total: Stretch = field(default_factory=Stretch)
    steps: Histogram = field(default_factory=Histogram)
    reads: float = 0.0
    surprise: float = 0.0
    surprised: int = 0
    scenes: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    bins: list[Stretch] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    _width: int = 1
    _every: int = 1

    def add(
        self, seconds: float, frame: Tensor, glance: Glance, step: float, read: float, kv: int
    ) -> None:
        """One frame at `seconds` of the video; step and read: how long it took and its reading."""
        places = len(glance.kept)
        changed, kept = (float(mask.sum()) / places for mask in (glance.changed, glance.kept))
        one = Stretch(1, changed, kept, step, step, kv)
        self.total.add(one)
        self.steps.add(step)
        self.reads += read
        if glance.surprise is not None:
            self.surprise, self.surprised = self.surprise + glance.surprise, self.surprised + 1
        if not self.bins or self.bins[-1].frames >= self._width:
            if len(self.bins) == BINS:
                self._halve()
            self.bins.append(Stretch())
        self.bins[-1].add(one)
        if glance.number % self._every == 0:
            if len(self.pictures) == PICTURES:
                self.pictures, self._every = self.pictures[::2], 2 * self._every
            if glance.number % self._every == 0:
                self.pictures.append(
                    Picture(
                        glance.number, seconds, frame.clone(), glance.changed.clone(),
                        glance.kept.clone(),
                    )
                )  # fmt: skip

    def tell(self, seconds: float, glance: Glance) -> None:
        """The gate said so."""
        self.scenes += 1
        self.events.append(
            {
                "frame": glance.number,
                "seconds": round(seconds, 3),
                "probability": round(glance.cut, 4),
            }
        )
        del self.events[:-EVENTS]

    def _halve(self) -> None:
        for one, two in zip(self.bins[::2], self.bins[1::2], strict=True):
            one.add(two)
        self.bins, self._width = self.bins[::2], 2 * self._width

    def share(self, name: str) -> float:
        """Mean share of a frame's places that were `changed` or `kept`."""
        return float(getattr(self.total, name)) / max(self.total.frames, 1)

    def series(self) -> dict[str, list[float]]:
        """The curve: frames up to the end of each stretch, and means over it."""
        ends = np.cumsum([s.frames for s in self.bins]).tolist()
        return {
            "end": ends,
            "changed": [round(s.changed / s.frames, 5) for s in self.bins],
            "kept": [round(s.kept / s.frames, 5) for s in self.bins],
            "step_ms": [round(1e3 * s.seconds / s.frames, 4) for s in self.bins],
            "step_ms_longest": [round(1e3 * s.longest, 4) for s in self.bins],
            "kv_bytes": [s.kv_bytes for s in self.bins],
        }


def shaded(picture: Picture, patch: int) -> Tensor:
    """The frame with what was not computed grey and dark, what the dropper took grey: uint8."""
    high, wide = picture.frame.shape[0] // patch, picture.frame.shape[1] // patch

    def wide_mask(mask: Tensor) -> Tensor:
        cells = mask.view(high, wide)
        return cells.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[..., None]

    x = picture.frame.float()
    grey = x.mean(-1, keepdim=True).expand_as(x)
    dim = torch.where(wide_mask(picture.changed), 0.75 * grey, 0.25 * grey)
    return torch.where(wide_mask(picture.kept), x, dim).byte()
