# SPDX-License-Identifier: Apache-2.0
"""The checks of a contract, written out for small calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from .contract import Arg


def check(args: Sequence[Arg]) -> Callable[[Mapping[str, Any]], dict[str, int] | None]:
    """A function that gives the axes of good arguments, or None for those to look at closer.

    Checking is a third of the cost of a small call when a loop over the contract does it; this is
    the same contract written out, once per op. It accepts less than the loop, never more.
    """
    if any("..." in a.axes for a in args):
        return lambda bound: None
    take = [f" given_{a.name} = b.get('{a.name}')" for a in args]
    checks, axes = _checks(args)
    table = "{" + ", ".join(f"'{x}': x_{x}" for x in axes) + "}"
    return _made([*take, *checks, f" return {table}"], args)


def _made(lines: Sequence[str], args: Sequence[Arg]) -> Any:
    scope: dict[str, Any] = {
        "Tensor": Tensor, "Parameter": Parameter, "dtypes": {a.name: a.dtypes for a in args},
    }  # fmt: skip
    exec("\n".join(["def quick(b):", *lines]), scope)
    return scope["quick"]


def _checks(args: Sequence[Arg]) -> tuple[list[str], list[str]]:
    """Lines that check given_NAME of each argument and set x_AXIS, and the names of these axes."""
    lines, known, axes, loose = list[str](), set[str](), set[str](), set[str]()
    for a in args:
        v, pad = f"given_{a.name}", " "
        if a.optional:
            lines.append(f" if {v} is not None:")
            pad = "  "
        lines.append(f"{pad}if type({v}) is not Tensor and type({v}) is not Parameter: return None")
        names, checks = a.axes.split(), []
        last = names.pop()[:-1] if names and names[-1].endswith("?") else None
        targets = []
        for i, axis in enumerate(names):
            base = axis.removesuffix("+1")
            more = " - 1" if axis != base else ""
            if base[0].isdigit():
                targets.append(f"n{i}")
                checks.append(f"n{i} in ({base.replace('|', ', ')},)")
            elif base not in axes and not a.optional and not more:
                axes.add(base)
                targets.append(f"x_{base}")
            else:
                targets.append(f"n{i}")
                if base in axes:
                    checks.append(f"n{i}{more} == x_{base}")
                elif a.optional:  # an axis that only optional arguments have
                    loose.add(base)
                    checks.append(f"o_{base} in (None, o_{base} := n{i}{more})")
                else:
                    axes.add(base)
                    checks.append(f"((x_{base} := n{i}{more}) >= 0)")
        lines.append(f"{pad}shape = {v}.shape")
        if last:
            lines.append(f"{pad}if shape[{len(names)}:] == ({last},): shape = shape[:-1]")
        lines.append(f"{pad}if len(shape) != {len(names)}: return None")
        if targets:
            lines.append(f"{pad}{', '.join(targets)}{',' if len(targets) == 1 else ''} = shape")
        dtype = f"d_{a.name}"
        lines.append(f"{pad}{dtype} = {v}.dtype")
        checks.append(f"{dtype} is d_{a.like}" if a.like else f"{dtype} in dtypes['{a.name}']")
        if known:
            checks.append(f"{v}.device == device")
        else:
            lines.append(f"{pad}device = {v}.device")
        known.add(a.name)
        if a.contiguous == "all":
            checks.append(f"{v}.is_contiguous()")
        elif a.contiguous == "last":
            checks.append(f"{v}.stride(-1) == 1")
        lines.append(f"{pad}if not ({' and '.join(checks)}): return None")
    return [*(f" o_{axis} = None" for axis in sorted(loose)), *lines], sorted(axes)
