# SPDX-License-Identifier: Apache-2.0
"""Filters before a model: what of a frame is new, against what it is compared with, decided once.

A filter looks at one frame at a time and gives a `Decision`, whose mask then serves everything that
follows: which patches a vision encoder computes anew (`GatedEncoder`), which tokens go on
(`GatedVideo`), whose summaries change (`BlockSummaries`).
"""

from .carry import BlockSummaries, Carried, GatedVideo, VisionModel, patchify, places
from .decision import Decision
from .encoder import EncoderLayer, GatedEncoder, TokenCacher, encode
from .references import Filter, LastKept, PreviousFrame
from .whole import WholeFrame

__all__ = [
    "BlockSummaries",
    "Carried",
    "Decision",
    "EncoderLayer",
    "Filter",
    "GatedEncoder",
    "GatedVideo",
    "LastKept",
    "PreviousFrame",
    "TokenCacher",
    "VisionModel",
    "WholeFrame",
    "encode",
    "patchify",
    "places",
]
