# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs: chosen per device by default, or by name. A name never falls back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import _C
from .errors import BackendError, bad_value

NAMES = ("auto", "reference", "cpu", "triton", "cuda")


def _valid(name: str, origin: str) -> str:
    if name not in NAMES:
        raise bad_value(origin, "name", "one of " + ", ".join(NAMES), repr(name))
    return name


_current = _valid(os.environ.get("HEADRACE_BACKEND", "auto"), "HEADRACE_BACKEND")


def current() -> str:
    """The backend in force: "auto" or a name."""
    return _current


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every op of the block on one backend: auto, reference, cpu, triton or cuda.

    Raises ValueError for an unknown name; an op that the backend lacks raises BackendError when
    called.
    """
    global _current
    before, _current = _current, _valid(name, "use_backend")
    try:
        yield
    finally:
        _current = before


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of the block at one level: scalar, avx2, avx512, avx512_vnni or
    avx512_bf16. An op that has nothing of its own there runs as at the level below.

    Raises ValueError when this machine lacks it. The level is the process's, not the thread's.
    """
    before = _C.active_isa()
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa(before)


def resolve(device: str, gpu: tuple[str, ...]) -> str:
    """The backend for tensors on `device` ("cpu" or "cuda") of an op with these GPU kernels."""
    if _current == "auto":
        return "cpu" if device == "cpu" else gpu[-1]
    if _current == "cuda" and device == "cpu":
        raise BackendError(
            "use_backend(name): expected CUDA tensors for backend cuda, got cpu tensors"
        )
    if _current == "cpu" and device != "cpu":
        raise BackendError(f"use_backend(name): expected cpu tensors for backend cpu, got {device}")
    return _current
