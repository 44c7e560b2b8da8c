# SPDX-License-Identifier: Apache-2.0
"""Streams: unbounded token sequences through a model, many of them in one step."""

from .engine import Engine, wrap
from .lane import Lane, Lanes
from .oracle import lanes_oracle, oracle, recompute
from .positions import Absolute, InCache, PerLane
from .report import Report
from .stream import Mark, Stream

__all__ = [
    "Absolute",
    "Engine",
    "InCache",
    "Lane",
    "Lanes",
    "Mark",
    "PerLane",
    "Report",
    "Stream",
    "lanes_oracle",
    "oracle",
    "recompute",
    "wrap",
]
