# SPDX-License-Identifier: Apache-2.0
"""Every module of this package that has a PRESET is one of them: a file more is a preset more."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from ..errors import bad_value
from .proof import Preset

KINDS = ("tokens", "archive", "pruning", "lanes", "gate", "scheduler", "ring", "net")
"""What a preset is mostly about; they are listed in this order."""


def _found() -> dict[str, Preset]:
    package = __name__.rpartition(".")[0]
    modules = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    imported = [
        importlib.import_module(f"{package}.{name}") for name in modules if name != "registry"
    ]
    presets = [module.PRESET for module in imported if hasattr(module, "PRESET")]
    presets.sort(key=lambda p: (p.name != "streaming_llm", KINDS.index(p.kind), p.name))
    return {preset.name: preset for preset in presets}


_PRESETS = _found()


def names() -> list[str]:
    """Every preset: StreamingLLM, then by kind and name."""
    return list(_PRESETS)


def get(name: str) -> Preset:
    """A preset by name. ValueError, listing those there are, when it is unknown."""
    if name not in _PRESETS:
        raise bad_value("presets.get", "name", "one of " + ", ".join(_PRESETS), repr(name))
    return _PRESETS[name]
