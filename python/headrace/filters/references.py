# SPDX-License-Identifier: Apache-2.0
"""Filters that compare every place of a frame with a reference that they keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .decision import Decision, decide

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
METRICS = ("cos", "dot", "gauss", "l1", "l2")


@dataclass
class Filter:
    """Keeps the places of a frame that are not close to their reference.

    A frame is features [N, D] of one stream or [B, N, D] of several (fp32, bf16 or fp16), or, with
    `patch`, pixels [H, W, C] or [B, H, W, C] (uint8, or floats), whose places are the patches of
    patch x patch pixels, row by row, short at the right and the lower edge. A place is dropped
    while its similarity (cos, dot, gauss) is above `threshold`, or its distance (l1, l2) below it,
    as `ops.similarity` has them; NaN is never close. A place without a reference is kept. At most
    `capacity` places are kept, the furthest first.

    What it remembers lies in its fields, so that a copy goes on from the same moment; it is written
    in place. Streams of a batch know nothing of one another. Nothing waits for the device.
    """

    threshold: float
    metric: str = "cos"
    patch: int | None = None
    capacity: int | None = None
    alpha: float = 1.0
    reference: Tensor | None = field(default=None, init=False, repr=False)
    seen: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.metric not in METRICS:
            raise bad_value(name, "metric", "one of " + ", ".join(METRICS), self.metric)
        if not math.isfinite(self.threshold):
            raise bad_value(name, "threshold", "a finite number", self.threshold)
        for argument, value in (("patch", self.patch), ("capacity", self.capacity)):
            if value is not None and value < 1:
                raise bad_value(name, argument, "1 or more, or None", value)

    def __call__(self, frame: Tensor) -> Decision:
        """What is kept of the next frame. Raises ValueError for a frame unlike those before it."""
        x, single = self._batched(frame)
        if self.reference is None or self.seen is None:
            self.reference = torch.zeros_like(x, memory_format=torch.contiguous_format)
            self.seen = torch.zeros(self._places(x), dtype=torch.bool, device=x.device)
        size = self.patch or 1
        near = ops.similarity(
            x, self.reference, self.metric, alpha=self.alpha,
            patch_height=size, patch_width=size,
        )  # fmt: skip
        grid = None if self.patch is None else (near.shape[1], near.shape[2])
        distance = self.metric in ("l1", "l2")
        worst = torch.inf if distance else -torch.inf
        score = (
            near.flatten(1).masked_fill(~self.seen, worst).nan_to_num(worst, torch.inf, -torch.inf)
        )
        decision = decide(score, self.threshold, not distance, self.capacity, grid)
        self._refresh(x, decision)
        if single:
            decision = Decision(
                decision.index[0], decision.count[0], decision.mask[0], decision.waiting[0], grid
            )
        return decision

    def reset(self, stream: int | None = None) -> None:
        """Forgets the reference of one stream of the batch, or of all, whatever comes next."""
        if stream is None:
            self.reference = self.seen = None
        elif self.seen is not None:
            self.seen[stream] = False

    def _refresh(self, x: Tensor, decision: Decision) -> None:
        """Brings the reference up to date with a frame [B, ...] and what was kept of it."""
        raise NotImplementedError

    def _batched(self, frame: Tensor) -> tuple[Tensor, bool]:
        name = type(self).__name__
        dims, wanted = (2, "[N, D] or [B, N, D]")
        if self.patch is not None:
            dims, wanted = (3, "[H, W, C] or [B, H, W, C]")
        if frame.ndim not in (dims, dims + 1):
            raise bad_value(name, "frame", wanted, f"shape {tuple(frame.shape)}")
        x = frame[None] if frame.ndim == dims else frame
        ref = self.reference
        if ref is not None and (x.shape, x.dtype, x.device) != (ref.shape, ref.dtype, ref.device):
            told = f"{tuple(ref.shape)} {ref.dtype} on {ref.device}, as before".replace(
                "torch.", ""
            )
            got = f"{tuple(x.shape)} {x.dtype} on {x.device}".replace("torch.", "")
            raise bad_value(name, "frame", told, got, "call reset() first")
        return x, frame.ndim == dims

    def _places(self, x: Tensor) -> tuple[int, int]:
        if self.patch is None:
            return x.shape[0], x.shape[1]
        return x.shape[0], -(-x.shape[1] // self.patch) * -(-x.shape[2] // self.patch)


@dataclass
class PreviousFrame(Filter):
    """Compares with the frame before, whether or not that was kept, as the papers do.

    What changes by less than the threshold from frame to frame is never kept, however far it goes:
    there is no bound on how old or how wrong what was last kept may be. Sources: TimeChat-Online's
    DTD (arXiv 2504.17343: cos of features, or l1 of pixels with patch 14), EVS, StreamingTOM.
    """

    def _refresh(self, x: Tensor, decision: Decision) -> None:
        assert self.reference is not None
        assert self.seen is not None
        self.reference.copy_(x)
        self.seen.fill_(True)


@dataclass
class LastKept(Filter):
    """Compares every place with what was last kept of it.

    The bound: whatever is dropped is, at that moment, within `threshold` of what was last kept in
    its place, for its similarity is above it or its distance below it. So a change surfaces no
    later than with the frame in which it reaches the threshold, however slowly it comes. Where
    more places reach it than `capacity` allows, the rest keeps its reference and waits: it comes
    first or by and by in the next frames, and `Decision.waiting` says how many the bound does not
    hold for.
    """

    def _refresh(self, x: Tensor, decision: Decision) -> None:
        assert self.reference is not None
        assert self.seen is not None
        self.seen |= decision.mask
        if self.patch is None:
            where = decision.index, decision.count
            ops.scatter_back(self.reference, x, *where, aligned=True)
        else:
            _put_patches(self.reference, x, decision.mask, self.patch)


def _put_patches(y: Tensor, x: Tensor, mask: Tensor, patch: int) -> None:
    """The patches of frames x [B, H, W, C] that a mask names, into y [B, H, W, C], contiguous.

    y ^= (y ^ x) & mask, bit by bit: three passes at the speed of memory, which a choice of elements
    by a broadcast mask is far from.
    """
    kind = _BITS[x.element_size()]
    batch, height, width, depth = x.shape
    row, whole = width * depth, height // patch * patch
    lines = mask.view(batch, -1, -(-width // patch)).to(kind).neg_()
    lines = lines.repeat_interleave(patch * depth, -1)[:, :, None, :row]
    bits = y.view(kind)
    change = (bits ^ x.view(kind)).reshape(batch, height, row)
    if whole:
        change[:, :whole].unflatten(1, (-1, patch)).bitwise_and_(lines[:, : whole // patch])
    if whole < height:
        change[:, whole:].bitwise_and_(lines[:, -1])
    bits ^= change.view(y.shape)
