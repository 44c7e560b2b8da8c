# SPDX-License-Identifier: Apache-2.0
"""A filter that skips whole frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from .. import ops
from ..errors import bad_value
from .references import METRICS


@dataclass
class WholeFrame:
    """Whether to look at a frame at all: not while it is close to the last one that was looked at.

    A frame is a tensor [N, ..., D] of one stream, pixels (uint8) or features, compared as one row
    by `ops.similarity`. It is skipped while its similarity (cos, dot, gauss) is above `threshold`,
    or its distance (l1, l2) below it; NaN is never close. The reference is the last frame that was
    not skipped, so that whatever is skipped is within the threshold of what the model last saw. At
    most `most` frames are skipped in a row. Sources: StreamDiffusion's similarity filter, of which
    this is the deterministic form with the same reference; here the first frame is never skipped.
    """

    threshold: float = 0.98
    metric: str = "cos"
    most: int | None = None
    alpha: float = 1.0
    reference: Tensor | None = field(default=None, init=False, repr=False)
    skipped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise bad_value("WholeFrame", "metric", "one of " + ", ".join(METRICS), self.metric)
        if not math.isfinite(self.threshold):
            raise bad_value("WholeFrame", "threshold", "a finite number", self.threshold)
        if self.most is not None and self.most < 0:
            raise bad_value("WholeFrame", "most", "0 or more, or None", self.most)

    def __call__(self, frame: Tensor) -> bool:
        """Whether the next frame is to be looked at. Waits for the device: the host must know.

        Raises ValueError for a frame unlike those before it.
        """
        if frame.ndim < 2 or frame.numel() == 0:
            got = f"shape {tuple(frame.shape)}"
            raise bad_value("WholeFrame", "frame", "[N, ..., D] that is not empty", got)
        x = frame.reshape(1, frame.shape[0], -1, frame.shape[-1])
        if self.reference is None:
            self.reference = x.clone()
            return True
        if (x.shape, x.dtype) != (self.reference.shape, self.reference.dtype):
            told = f"{tuple(self.reference.shape[1:])} {self.reference.dtype}, as before"
            got = f"{tuple(x.shape[1:])} {x.dtype}"
            raise bad_value("WholeFrame", "frame", told, got, "call reset() first")
        near = ops.similarity(
            x, self.reference, self.metric, alpha=self.alpha, patch_height=0, patch_width=0
        )
        close = near < self.threshold if self.metric in ("l1", "l2") else near > self.threshold
        if bool(close) and (self.most is None or self.skipped < self.most):
            self.skipped += 1
            return False
        self.reference.copy_(x)
        self.skipped = 0
        return True

    def reset(self) -> None:
        """Forgets the reference: the next frame is looked at."""
        self.reference, self.skipped = None, 0
