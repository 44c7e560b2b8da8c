# SPDX-License-Identifier: Apache-2.0
"""Streams: unbounded token sequences through a model, many of them in one step, and rings of
frames.
"""

from .engine import Engine, wrap
from .lane import Lane, Lanes
from .oracle import lanes_oracle, oracle, recompute
from .positions import Absolute, InCache, PerLane
from .report import Report
from .ring import Finished, Ring
from .ring_solver import Diffusion, Flow
from .stream import Mark, Stream

__all__ = [
    "Absolute",
    "Diffusion",
    "Engine",
    "Finished",
    "Flow",
    "InCache",
    "Lane",
    "Lanes",
    "Mark",
    "PerLane",
    "Report",
    "Ring",
    "Stream",
    "lanes_oracle",
    "oracle",
    "recompute",
    "wrap",
]
