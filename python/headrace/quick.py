# SPDX-License-Identifier: Apache-2.0
"""The checks of a contract, written out for small calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from .contract import Arg, Out

LIMIT = 2**63
"""Of torch's integers."""


def check(args: Sequence[Arg]) -> Callable[[Mapping[str, Any]], dict[str, int] | None]:
    """A function that gives the axes of good arguments, or None for those to look at closer.

    Checking is a third of the cost of a small call when a loop over the contract does it; this is
    the same contract written out, once per op. It accepts less than the loop, never more.
    """
    if any("..." in a.axes for a in args):
        return lambda bound: None
    take = [f" given_{a.name} = b.get('{a.name}')" for a in args]
    checks, axes = _checks(args, alone=False)
    return _made("b", [*take, *checks, f" return {_table(axes)}"], args, ())


def entry(
    args: Sequence[Arg],
    results: Sequence[Out],
    parameters: Sequence[str],
    defaults: Mapping[str, Any],
    kinds: Mapping[str, tuple[type, bool]],
) -> Callable[..., tuple[dict[str, Any], dict[str, int], list[Tensor] | None] | None]:
    """A function of an op's arguments that gives them by name, the axes, and unwritten results, if
    these axes say how large they are; or None for what is to go through torch.

    It takes tensors of the CPU alone, none that autograd would record, none with a sign still to be
    turned, and other arguments of just these `kinds`: a type, and whether it may be None.
    """
    if any("..." in a.axes for a in args):
        return lambda *args, **kwargs: None
    lines = [f" given_{name} = {name}" for name in parameters]
    lines.append(" recorded = is_grad_enabled()")
    for name, (kind, optional) in kinds.items():
        good = f"type(given_{name}) is {kind.__name__}"
        good += f" and {-LIMIT} <= given_{name} < {LIMIT}" * (kind is int)
        lines.append(f" if not ({good}{f' or given_{name} is None' * optional}): return None")
    checks, axes = _checks(args, alone=True)
    made = []
    for i, out in enumerate(results):
        dtype = f"given_{out.dtype}.dtype" if isinstance(out.dtype, str) else f"kinds[{i}]"
        made.append(_empty([f"x_{axis}" for axis in out.axes.split()], dtype, i))
    bound = ", ".join(f"'{name}': given_{name}" for name in parameters)
    told = all(axis in axes for out in results for axis in out.axes.split())
    outs = f"[{', '.join(made)}]" if told else "None"
    lines += [*checks, f" return {{{bound}}}, {_table(axes)}, {outs}"]
    head = [f"{name}={defaults[name]!r}" if name in defaults else name for name in parameters]
    for i, name in enumerate(parameters):
        if name not in defaults and any("=" in earlier for earlier in head[:i]):
            head.insert(i, "*")  # it is one that is given by name alone
            break
    return _made(", ".join(head), lines, args, [out.dtype for out in results])


def outs(
    args: Sequence[Arg], results: Sequence[Out]
) -> Callable[[Mapping[str, Any], Mapping[str, int]], list[Tensor]]:
    """A function of arguments by name and of all axes, also those that the values of arguments say,
    that makes unwritten results on the CPU."""
    made = []
    for i, out in enumerate(results):
        dtype = f"b['{out.dtype}'].dtype" if isinstance(out.dtype, str) else f"kinds[{i}]"
        made.append(_empty([f"x['{axis}']" for axis in out.axes.split()], dtype, i))
    return _made("b, x", [f" return [{', '.join(made)}]"], args, [out.dtype for out in results])


def _empty(sizes: Sequence[str], dtype: str, i: int) -> str:
    """The quickest of torch's ways: sizes one by one and not as a tuple, a number as another."""
    if not sizes and dtype.startswith("kinds"):
        return f"empty_like(numbers[{i}])"
    return f"empty({', '.join(sizes) or '()'}, dtype={dtype})"


def _table(axes: Sequence[str]) -> str:
    return "{" + ", ".join(f"'{x}': x_{x}" for x in axes) + "}"


def _made(head: str, lines: Sequence[str], args: Sequence[Arg], kinds: Sequence[Any]) -> Any:
    scope: dict[str, Any] = {
        "Tensor": Tensor, "Parameter": Parameter, "is_grad_enabled": torch.is_grad_enabled,
        "empty": torch.empty, "empty_like": torch.empty_like,
        "numbers": [torch.empty((), dtype=None if isinstance(k, str) else k) for k in kinds],
        "dtypes": {a.name: a.dtypes for a in args}, "kinds": kinds,
    }  # fmt: skip
    exec("\n".join([f"def quick({head}):", *lines]), scope)
    return scope["quick"]


def _checks(args: Sequence[Arg], alone: bool) -> tuple[list[str], list[str]]:
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
        if alone:
            checks.append(f"{v}.is_cpu and not {v}.is_neg()")
            checks.append(f"not (recorded and {v}.requires_grad)")
        elif known:
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


WATCHERS = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._autograd._profiler_enabled,
    torch._C._get_tracing_state,
    torch._C._functorch.peek_interpreter_stack,
)
"""Functions of torch that give 0, False or None as long as nothing is to see every call."""

_modes, _functions, _profiled, _traced, _transformed = WATCHERS


def watched() -> bool:
    """Whether something of torch is to see every call: a mode, a transform, a trace, a profile."""
    return (
        _modes() > 0
        or _functions() > 0
        or _profiled()
        or _traced() is not None
        or _transformed() is not None
    )
