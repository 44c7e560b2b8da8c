# SPDX-License-Identifier: Apache-2.0
"""Streams: unbounded token sequences through a model, many of them in one step."""

from .engine import Engine, wrap
from .oracle import oracle, recompute
from .positions import Absolute, InCache
from .report import Report
from .stream import Mark, Stream

__all__ = [
    "Absolute",
    "Engine",
    "InCache",
    "Mark",
    "Report",
    "Stream",
    "oracle",
    "recompute",
    "wrap",
]
