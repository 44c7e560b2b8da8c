# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ..errors import bad_value
from .proof import Preset
from .streaming_llm import PRESET as STREAMING_LLM

_PRESETS = {preset.name: preset for preset in (STREAMING_LLM,)}


def names() -> list[str]:
    """Every preset, in the order of the registry."""
    return list(_PRESETS)


def get(name: str) -> Preset:
    """A preset by name. ValueError, listing those there are, when it is unknown."""
    if name not in _PRESETS:
        raise bad_value("presets.get", "name", "one of " + ", ".join(_PRESETS), repr(name))
    return _PRESETS[name]
