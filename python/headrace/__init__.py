# SPDX-License-Identifier: Apache-2.0
"""Streaming inference: unbounded streams through a model at constant memory and time per step."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Absolute",
    "AdapterBank",
    "AdapterStore",
    "Archive",
    "Clock",
    "Engine",
    "Filter",
    "Fold",
    "Gate",
    "InCache",
    "InMemory",
    "Keep",
    "Keep3D",
    "Lane",
    "OnDisk",
    "PagePool",
    "PerLane",
    "Piece",
    "Relative",
    "Report",
    "Rest",
    "Ring",
    "Sink",
    "Stream",
    "Tagged",
    "Window",
    "adapters",
    "debug",
    "filters",
    "models",
    "ops",
    "oracle",
    "presets",
    "recompute",
    "use_backend",
    "use_isa",
    "wrap",
]

# Where names are that load at first use: who multiplies with the ops alone pays for these alone.
_LATER = {
    "adapters": ("AdapterBank", "AdapterStore"),
    "filters": ("Filter",),
    "memory": (
        "Archive",
        "Fold",
        "InMemory",
        "Keep",
        "OnDisk",
        "PagePool",
        "Rest",
        "Sink",
        "Tagged",
        "Window",
    ),
    "models": (),
    "presets": (),
    "recipes": (),
    "streams": (
        "Absolute",
        "Clock",
        "Engine",
        "Gate",
        "InCache",
        "Keep3D",
        "Lane",
        "PerLane",
        "Piece",
        "Relative",
        "Report",
        "Ring",
        "Stream",
        "oracle",
        "recompute",
        "wrap",
    ),
}
_HOME = {name: package for package, names in _LATER.items() for name in names}

if TYPE_CHECKING:
    from . import adapters, filters, models, presets
    from .adapters import AdapterBank, AdapterStore
    from .filters import Filter
    from .memory import Archive, Fold, InMemory, Keep, OnDisk, PagePool, Rest, Sink, Tagged, Window
    from .streams import (
        Absolute,
        Clock,
        Engine,
        Gate,
        InCache,
        Keep3D,
        Lane,
        PerLane,
        Piece,
        Relative,
        Report,
        Ring,
        Stream,
        recompute,
        wrap,
    )
    from .streams.oracle import oracle

# What went wrong when the package loaded. It is told at the first use of anything that needs it, so
# that `headrace info` can look at a broken installation.
load_error: Exception | None = None

try:
    import torch  # noqa: F401  (first: the extension shares torch's OpenMP runtime)

    from . import ops
    from .audit import debug
    from .backends import use_backend, use_isa
except Exception as error:
    load_error = error


def _unloaded(name: str, error: Exception) -> ImportError:
    got = f"{type(error).__name__}: {error}".splitlines()[0]
    return ImportError(
        f"headrace({name}): expected the package to load, got {got}; see `headrace info`"
    )


def __getattr__(name: str) -> Any:
    if load_error is not None and name in (*__all__, "_C"):
        raise _unloaded(name, load_error) from load_error
    package = name if name in _LATER else _HOME.get(name)
    if package is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{package}", __name__)
        found = module if name == package else getattr(module, name)
    except Exception as error:
        raise _unloaded(name, error) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
