# SPDX-License-Identifier: Apache-2.0
"""The contract of an op, as data.

An `OpSpec` says what an op takes and gives: its schema, the named axes and dtypes of every tensor,
how many operations and bytes it costs, the reference that defines it, and how far a kernel may be
from that reference. Registration, argument checks, fake functions, tests, benchmarks and the docs
table read it.
"""

from __future__ import annotations

import math
from ast import literal_eval
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import quick
from .errors import bad_type, bad_value

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
QUANTISED = (torch.int8, torch.float8_e4m3fn)
PAGES = FLOATS + QUANTISED
F32 = (torch.float32,)
F64 = (torch.float64,)
I32 = (torch.int32,)
I64 = (torch.int64,)

# Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# Arguments of ops that say how a kernel may go about its work, and are no part of what an op means.
HINTS = frozenset({"split", "max_rows"})

Axes = dict[str, int]


@dataclass(frozen=True)
class Arg:
    """A tensor argument: its axes by name (`"T Hq D"`, `"... D"`, `"B+1"`, or a number) and dtypes.

    A number may be one of several (`"E 7|11"`), and the last axis may be missing (`"T 3?"`).
    `like` names another argument whose dtype this one must have. An optional one may be None.
    `contiguous` is "last" (the last axis has stride 1), "all" or "any".
    """

    name: str
    axes: str
    dtypes: tuple[torch.dtype, ...] = FLOATS
    like: str | None = None
    optional: bool = False
    contiguous: str = "any"


@dataclass(frozen=True)
class Out:
    """A result: its axes, and a dtype or the name of the argument that it takes it from."""

    axes: str
    dtype: torch.dtype | str


@dataclass(frozen=True)
class OpSpec:
    """Everything the project knows of an op except its kernels. See the module's docstring.

    schema: torch schema without the name. values: extra checks without data, `f(bound, axes)`.
    flops, bytes: models over `(axes, bound)`. depth: length of the longest sum that one output adds
    up, from the same, from which the tolerance follows. gpu: implementations that a GPU would run.
    """

    name: str
    family: str
    schema: str
    args: tuple[Arg, ...]
    outs: tuple[Out, ...]
    reference: Callable[..., Any]
    flops: Callable[[Axes, Mapping[str, Any]], float]
    bytes: Callable[[Axes, Mapping[str, Any]], float]
    depth: Callable[[Axes, Mapping[str, Any]], float]
    values: Callable[[Mapping[str, Any], Axes], None] = lambda bound, axes: None
    mutates: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ("triton",)
    source: str = ""
    doc: str = ""
    parameters: tuple[str, ...] = field(init=False)
    defaults: Mapping[str, Any] = field(init=False)
    _quick: Callable[[Mapping[str, Any]], Axes | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parameters = _parameters(self.schema)
        defaults = {name: literal_eval(text) for name, text in parameters if text is not None}
        object.__setattr__(self, "parameters", tuple(name for name, _ in parameters))
        object.__setattr__(self, "defaults", defaults)
        object.__setattr__(self, "_quick", quick.check(self.args))

    def tolerance(self, dtype: torch.dtype, axes: Axes, bound: Mapping[str, Any]) -> float:
        """Largest RMS error, relative to the RMS of the reference in fp64, that a kernel may have.

        One rounding of the result to `dtype`, plus fp32 accumulation whose error grows with the
        square root of the number of terms; the factor 4 covers exponentials and angles.
        """
        return ROUNDOFF.get(dtype, 0.0) + 4 * ROUNDOFF[torch.float32] * math.sqrt(
            self.depth(axes, bound) + 1
        )

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments by the names of the schema, with its defaults."""
        return {**self.defaults, **dict(zip(self.parameters, args, strict=False)), **kwargs}

    def check(self, bound: Mapping[str, Any]) -> Axes:
        """Sizes of the named axes. Raises TypeError or ValueError naming the first bad argument."""
        quick = self._quick(bound)
        if quick is not None:
            self.values(bound, quick)
            return quick
        axes: Axes = {}
        device: torch.device | None = None
        for arg in self.args:
            value = bound.get(arg.name)
            if value is None:
                if arg.optional:
                    continue
                raise bad_type(self.name, arg.name, "a tensor", "None")
            if not isinstance(value, Tensor):
                raise bad_type(self.name, arg.name, "a tensor", type(value).__name__)
            if value.dtype not in arg.dtypes:
                raise bad_type(self.name, arg.name, _names(arg.dtypes), _name(value.dtype))
            if arg.like and value.dtype != bound[arg.like].dtype:
                wanted = f"{_name(bound[arg.like].dtype)}, as {arg.like}"
                raise bad_type(self.name, arg.name, wanted, _name(value.dtype))
            if device is None:
                device = value.device
            elif value.device != device:
                raise bad_value(self.name, arg.name, f"a tensor on {device}", value.device)
            _match(self.name, arg, value, axes)
        self.values(bound, axes)
        return axes

    def empty_outs(self, bound: Mapping[str, Any], axes: Axes) -> list[Tensor]:
        """Unwritten results of the right shapes and dtypes."""
        base = bound[self.args[0].name]
        made = []
        for out in self.outs:
            dtype = bound[out.dtype].dtype if isinstance(out.dtype, str) else out.dtype
            sizes: list[int] = []
            for axis in out.axes.split():
                if axis == "...":
                    sizes.extend(base.shape[: axes["..."]])
                else:
                    sizes.append(axes[axis])
            made.append(base.new_empty(sizes, dtype=dtype))
        return made


def _parameters(schema: str) -> list[tuple[str, str | None]]:
    """Names and default texts of a schema's parameters, in order."""
    inside = schema[schema.index("(") + 1 : schema.index(") ->")]
    depth, parts, start = 0, [], 0
    for i, c in enumerate(inside + ","):
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            parts.append(inside[start:i].strip())
            start = i + 1
    found = []
    for part in parts:
        if part and part != "*":
            head, _, default = part.partition("=")
            found.append((head.split()[-1], default or None))
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    names = [_name(d) for d in dtypes]
    return names[0] if len(names) == 1 else "one of " + ", ".join(names)


def _match(op: str, arg: Arg, value: Tensor, axes: Axes) -> None:
    names = arg.axes.split()
    if names and names[0] == "...":
        lead = value.dim() - (len(names) - 1)
        if lead < 0 or axes.setdefault("...", lead) != lead:
            raise bad_value(op, arg.name, f"axes [{arg.axes}]", f"shape {tuple(value.shape)}")
        names = names[1:]
    else:
        lead = 0
        if names[-1].endswith("?"):
            names = names[:-1] + [names[-1][:-1]] * (value.dim() == len(names))
        if value.dim() != len(names):
            raise bad_value(
                op, arg.name, f"{len(names)} axes [{arg.axes}]", f"shape {tuple(value.shape)}"
            )
    for axis, size in zip(names, value.shape[lead:], strict=True):
        if axis[0].isdigit():
            if not any(size == int(n) for n in axis.split("|")):  # sizes may be symbolic
                text = f"{' or '.join(axis.split('|'))} in [{arg.axes}]"
                raise bad_value(op, arg.name, text, f"shape {tuple(value.shape)}")
            continue
        elif axis.endswith("+1"):
            if size == 0:
                raise bad_value(op, arg.name, f"1 element or more in [{arg.axes}]", "shape (0,)")
            want = axes.setdefault(axis[:-2], size - 1) + 1
        else:
            want = axes.setdefault(axis, size)
        if want != size:
            raise bad_value(
                op, arg.name, f"{axis} = {want} in [{arg.axes}]", f"shape {tuple(value.shape)}"
            )
    if arg.contiguous == "all" and not value.is_contiguous():
        raise bad_value(op, arg.name, "a contiguous tensor", f"strides {value.stride()}")
    if (
        arg.contiguous == "last"
        and value.numel()
        and value.shape[-1] > 1
        and (value.stride(-1) != 1)
    ):
        raise bad_value(
            op,
            arg.name,
            "stride 1 along the last axis",
            f"strides {value.stride()}",
            "call .contiguous() first",
        )
