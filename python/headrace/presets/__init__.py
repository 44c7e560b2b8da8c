# SPDX-License-Identifier: Apache-2.0
"""Published systems, each a few lines over the nouns, each with the proof that it equals its
oracle.

`get(name).open(model)` gives an engine, `get(name).check(model)` the proof as a list of `Check`;
`presets.<name>` is `get(name).open`.
"""

from typing import TYPE_CHECKING, Any

from .proof import Check, Preset
from .registry import get, names

__all__ = ["Check", "Preset", "get", "names"]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # a preset


# Over the modules of the same names, which their import has put here.
globals().update({name: get(name).open for name in names()})
