# SPDX-License-Identifier: Apache-2.0
"""Streaming inference: unbounded streams through a model at constant memory and time per step."""

from __future__ import annotations

from typing import Any

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

# What went wrong when the package loaded. It is told at the first use of anything that needs it, so
# that `headrace info` can look at a broken installation.
load_error: Exception | None = None

try:
    import torch  # noqa: F401  (first: the extension shares torch's OpenMP runtime)

    from . import adapters, filters, models, ops, presets
    from .adapters import AdapterBank, AdapterStore
    from .audit import debug
    from .backends import use_backend, use_isa
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
        oracle,
        recompute,
        wrap,
    )
except Exception as error:
    load_error = error


def __getattr__(name: str) -> Any:
    if load_error is not None and name in (*__all__, "_C"):
        got = f"{type(load_error).__name__}: {load_error}".splitlines()[0]
        raise ImportError(
            f"headrace({name}): expected the package to load, got {got}; see `headrace info`"
        ) from load_error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
