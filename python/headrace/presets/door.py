# SPDX-License-Identifier: Apache-2.0
"""Modules of presets that can be called."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class Door(ModuleType):
    """The module of a preset; calling it calls the function of its name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.PRESET.open(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.PRESET.open)


def opened(name: str) -> None:
    """Makes the module of a preset one that can be called."""
    sys.modules[f"{__package__}.{name}"].__class__ = Door
