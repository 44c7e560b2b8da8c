# SPDX-License-Identifier: Apache-2.0
"""Published systems, each a few lines over the nouns, each with the proof that it equals its
oracle.

`get(name).open(model)` gives an engine, `get(name).check(model)` the proof as a list of `Check`.
"""

from .proof import Check, Preset
from .registry import get, names
from .streaming_llm import streaming_llm

__all__ = ["Check", "Preset", "get", "names", "streaming_llm"]
