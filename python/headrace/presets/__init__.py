# SPDX-License-Identifier: Apache-2.0
"""Published systems, each a few lines over the nouns, each with the proof that it equals its
oracle.

`presets.rekv(model)` opens one: `presets.rekv` is the module, and a call of it is one of the
function of its name. What else a user of it needs lies there too: `presets.rekv.ask`, or `from
headrace.presets.rekv import ask`.

`get(name).open(model)` is the same call, `get(name).check(model)` the proof as a list of `Check`,
and `get(name).sample()`, where there is one, a small random model of the kind that it takes.
"""

from typing import TYPE_CHECKING, Any

from .door import opened
from .proof import Check, Preset
from .registry import get, names

__all__ = ["Check", "Preset", "get", "names"]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # a preset


for _name in names():
    opened(_name)
