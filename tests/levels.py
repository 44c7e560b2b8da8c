# SPDX-License-Identifier: Apache-2.0
"""Levels of the CPU kernels that an op has code of its own for: the others run as those below."""

from __future__ import annotations

from pathlib import Path

from headrace import _C, ops

KERNELS = Path(__file__).resolve().parents[1] / "kernels"


def of_family(family: str) -> list[str]:
    """Those of this machine at which a family has a table."""
    folder = KERNELS / family
    return [name for name in _C.available_isas() if (folder / f"cpu_{name}.cpp").exists()]


def of_op(name: str) -> list[str]:
    """The same by the name of an op; all of them for another name."""
    spec = ops.specs().get(name)
    return of_family(spec.family) if spec else _C.available_isas()


def of_module(module) -> list[str]:
    """The same by the op that a test module says, or is named after."""
    return of_op(getattr(module, "OP", module.__name__.rpartition("test_")[2]))
