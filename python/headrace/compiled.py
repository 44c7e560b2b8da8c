# SPDX-License-Identifier: Apache-2.0
"""Calls that go from Python's arguments to a kernel in compiled code, which reads contracts so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import _C, audit, backends
from .contract import OpSpec

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn,
    torch.uint8, torch.int32, torch.int64, torch.bool, torch.float64,
)  # fmt: skip
"""By the codes of the extension."""

WATCHERS = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._autograd._profiler_enabled,
    torch._C._get_tracing_state,
    torch._C._functorch.peek_interpreter_stack,
)
"""Functions of torch that give 0, False or None as long as nothing is to see every call."""

Axis = tuple[int, int, list[int]]


def direct(
    spec: OpSpec,
    kinds: Mapping[str, tuple[str, bool]],
    otherwise: Callable[..., Any],
    lead: int = 0,
) -> Callable[..., Any]:
    """A function of arguments in the order of the schema, but for the last ones that have its
    defaults, that runs the CPU kernel.

    What a closer look may refuse or torch is to convert goes to `otherwise`, with nothing done, and
    so does every call where a backend was named, or the debug mode or something of torch is to see
    it. Of the first `lead` axes a call may leave some out: see `registry.register`.
    """
    numbers: dict[str, int] = {}
    by_name = {a.name: a for a in spec.args}
    parameters = []
    for name in spec.parameters:
        kind, optional = kinds[name]
        axes, fewer, dtypes, like, dense = list[Axis](), False, 0, -1, "any"
        if (a := by_name.get(name)) is not None:
            axes = [_axis(text.removesuffix("?"), numbers) for text in a.axes.split()]
            fewer, dense = a.axes.endswith("?"), a.contiguous
            dtypes = sum(1 << DTYPES.index(dtype) for dtype in a.dtypes)
            like = -1 if a.like is None else spec.parameters.index(a.like)
        usual = spec.defaults.get(name)
        parameters.append(
            (name, kind[0].lower(), optional, usual, axes, fewer, dtypes, like, dense)
        )
    known = len(numbers)
    results = [
        (
            [numbers.setdefault(axis, len(numbers)) for axis in out.axes.split()],
            spec.parameters.index(out.dtype) if isinstance(out.dtype, str) else -1,
            -1 if isinstance(out.dtype, str) else DTYPES.index(out.dtype),
        )
        for out in spec.outs
    ]
    mutated = [spec.parameters.index(name) for name in spec.mutates]
    return _C.direct(
        spec.name, parameters, results, known, lead, mutated, _SHARED | {"otherwise": otherwise}
    )


def _axis(text: str, numbers: dict[str, int]) -> Axis:
    """Its number, what its size has beyond that of the axis, or the sizes that it may have."""
    if text[0].isdigit():
        return -1, 0, [int(n) for n in text.split("|")]
    name = text.removesuffix("+1")
    return numbers.setdefault(name, len(numbers)), int(name != text), []


_SHARED: dict[str, Any] = {
    "watchers": WATCHERS,
    "flags": [(vars(backends), "_current", "auto"), (vars(audit), "on", False)],
    "recording": torch.is_grad_enabled,
    "threads": torch.get_num_threads,
    "empty": torch.empty,
    "wrote": torch.autograd.graph.increment_version,
    "is_inference": "is_inference",
    "dtypes": DTYPES,
}
