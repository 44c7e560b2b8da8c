# SPDX-License-Identifier: Apache-2.0
"""Filters before a model: what of a frame is new, against what it is compared with, decided once.

A filter looks at one frame at a time and gives a `Decision`, whose mask then serves everything that
follows: which patches a vision encoder computes anew, which tokens go on, whose summaries change.
"""

from .decision import Decision
from .references import Filter, LastKept, PreviousFrame
from .whole import WholeFrame

__all__ = ["Decision", "Filter", "LastKept", "PreviousFrame", "WholeFrame"]
