# SPDX-License-Identifier: Apache-2.0
"""Registers ops with torch from their contracts, and the path by which every call goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from .. import _C, audit, backends, compiled, tables
from ..buffers import huge
from ..contract import HINTS, Axes, OpSpec
from ..errors import BackendError, bad_type, bad_value

# fn(bound arguments, axes, outputs to fill)
Kernel = Callable[[Mapping[str, Any], Axes, list[Tensor]], None]

_LIBRARY = torch.library.Library("headrace", "DEF")
_SPECS: dict[str, OpSpec] = {}
_LEAD: dict[str, int] = {}
"""Of ops of which a call may leave out leading axes, how many."""

_C.take_exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None), Tensor, Parameter)


def specs() -> dict[str, OpSpec]:
    """Every registered op by name."""
    return dict(_SPECS)


def register(spec: OpSpec, lead: int = 0) -> Callable[..., Any]:
    """Defines `torch.ops.headrace.<name>` with CPU and CUDA kernels and a fake function.

    The CPU kernel is the one of `_C` that takes the arguments as they are; small calls are read
    there too. Tensors may come to `call` without the last of their first `lead` axes, or without
    several, which are 1 then; results are without those that the first argument lacks.

    Gives a function that gives the way of a call, which takes arguments in the order of the schema:
    straight to the CPU kernel if it can go there, else as `call`.
    """
    _LIBRARY.define(spec.name + spec.schema)
    _SPECS[spec.name], _LEAD[spec.name] = spec, lead
    cpu = _compiled(spec)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Axes]:
        bound = spec.bind(*args, **kwargs)
        axes = spec.check(bound)
        if bound.get("scale", 0) is None:
            bound["scale"] = axes["D"] ** -0.5
        return bound, axes

    def on(device: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            bound, axes = bind(args, kwargs)
            if audit.on:
                audit.check(spec.name, bound)
            chosen = backends.resolve(device, spec.gpu)
            if chosen == "reference":
                tables.check(spec.name, bound)
                return _reference(spec, bound)
            outs = [huge(out) for out in spec.empty_outs(bound, axes)]
            if device == "cuda" and backends.current() == "auto":
                kernel = _suited(spec)
            else:
                kernel = cpu if chosen == "cpu" else _load(spec, chosen)
            kernel(bound, axes, outs)
            return _returned(outs)

        return run

    def fake(*args: Any, **kwargs: Any) -> Any:
        bound, axes = bind(args, kwargs)
        return _returned(spec.empty_outs(bound, axes))

    _LIBRARY.impl(spec.name, on("cpu"), "CPU")
    _LIBRARY.impl(spec.name, on("cuda"), "CUDA")
    torch.library.register_fake(f"headrace::{spec.name}", fake, lib=_LIBRARY)

    def long(*values: Any) -> Any:
        return call(spec.name, *values)

    short = compiled.direct(spec, _kinds(spec), long, lead)

    def way() -> Callable[..., Any]:
        return long if is_dynamo_compiling() else short

    return way


def _returned(outs: list[Tensor]) -> Any:
    return None if not outs else outs[0] if len(outs) == 1 else tuple(outs)


def _kinds(spec: OpSpec) -> dict[str, tuple[str, bool]]:
    """Of every argument its type, as torch's schema names it, and whether it may be None."""
    schema = getattr(torch.ops.headrace, spec.name).default._schema
    types = {a.name: str(a.type) for a in schema.arguments}
    return {
        name: (text.removeprefix("Optional[").removesuffix("]"), text.startswith("Optional["))
        for name, text in types.items()
    }


def _compiled(spec: OpSpec) -> Kernel:
    run = getattr(_C, spec.name)

    def cpu(bound: Mapping[str, Any], axes: Axes, outs: list[Tensor]) -> None:
        run([*(bound[name] for name in spec.parameters), *outs], torch.get_num_threads())

    return cpu


def _reference(spec: OpSpec, bound: Mapping[str, Any]) -> Any:
    outs = spec.reference(**{k: v for k, v in bound.items() if k not in HINTS})
    if outs is None:
        return None
    several = outs if isinstance(outs, tuple) else (outs,)
    cast = [
        o if isinstance(s.dtype, str) else o.to(s.dtype)
        for o, s in zip(several, spec.outs, strict=True)
    ]
    return cast[0] if len(cast) == 1 else tuple(cast)


def _suited(spec: OpSpec) -> Kernel:
    """What "auto" runs on a GPU: the choice of the last backend named that runs here.

    A choice of kernels goes by nothing that a row's neighbours bring, or its bits would, too.
    """
    for backend in reversed(spec.gpu[1:]):
        kernel: Kernel | None = import_module(f"headrace.kernels.{spec.family}.{backend}").auto(
            spec.name
        )
        if kernel is not None:
            return kernel
    return _load(spec, spec.gpu[0])


def _load(spec: OpSpec, backend: str) -> Kernel:
    if backend not in spec.gpu:
        have = ", ".join(("reference", "cpu", *spec.gpu))
        raise BackendError(f"{spec.name}(backend): expected one of {have}, got {backend}")
    try:
        return getattr(import_module(f"headrace.kernels.{spec.family}.{backend}"), spec.name)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{spec.name}(backend): expected backend {backend} to load, got: {error}"
        ) from error


def call(name: str, *values: Any) -> Any:
    """Runs an op through torch's dispatcher, on tensors, or on numpy arrays (zero-copy; arrays come
    back). Takes arguments in the order of the schema, but for the last ones that have its defaults.

    Raises ValueError when autograd would have to record it: the ops have no backward.
    """
    given = _SPECS[name].bind(*values)
    if isinstance(values[0], np.ndarray):
        for arg in _SPECS[name].mutates:
            if isinstance(x := given[arg], np.ndarray) and not x.flags.writeable:
                raise bad_value(name, arg, "an array that may be written", "one that is read-only")
        out = _checked(name, {n: _as_tensor(x) for n, x in given.items()})
        return tuple(o.numpy() for o in out) if isinstance(out, tuple) else _as_array(out)
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values):
        raise bad_value(
            name,
            "inputs",
            "tensors without requires_grad",
            "one that requires grad",
            "the op has no backward; call it under torch.no_grad()",
        )
    return _checked(name, given)


def _checked(name: str, given: dict[str, Any]) -> Any:
    spec, lead = _SPECS[name], _LEAD[name]
    kept = _spread(spec, given, lead) if lead else lead
    op = getattr(torch.ops.headrace, name).default
    try:
        out = op(**given)
    except RuntimeError:
        if (error := _mistyped(op._schema.arguments, name, given)) is not None:
            raise error from None
        raise
    if kept == lead or out is None:
        return out
    several = out if isinstance(out, tuple) else (out,)
    less = tuple(x.reshape((*x.shape[:kept], *x.shape[lead:])) for x in several)
    return less if isinstance(out, tuple) else less[0]


def _spread(spec: OpSpec, given: dict[str, Any], lead: int) -> int:
    """Puts axes of 1 where tensors lack some; how many leading ones the first argument has."""
    first = lead
    for arg in reversed(spec.args):
        x, axes = given[arg.name], arg.axes.split()
        if not isinstance(x, Tensor):
            continue
        missing = len(axes) - x.ndim
        if not 0 <= missing <= lead:
            forms = ["[" + ", ".join(axes[:i] + axes[lead:]) + "]" for i in range(lead + 1)]
            expected = ", ".join(forms[:-1]) + " or " + forms[-1]
            raise bad_value(spec.name, arg.name, expected, f"shape {tuple(x.shape)}")
        first = lead - missing
        if missing:
            given[arg.name] = x.reshape((*x.shape[:first], *(1,) * missing, *x.shape[first:]))
    return first


_KINDS: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "a tensor"),
    "int": (int, "an integer"),
    "float": ((int, float), "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a string"),
}


def _mistyped(schema: Any, name: str, given: Mapping[str, Any]) -> Exception | None:
    """The error that names the first argument which torch's schema refuses; None when all fit."""
    for a in schema:
        text = str(a.type)
        kind, wanted = _KINDS[text.removeprefix("Optional[").removesuffix("]")]
        value = given.get(a.name, a.default_value)
        if isinstance(value, kind):
            if kind is int and not -(2**63) <= value < 2**63:
                return bad_value(name, a.name, "an integer of 64 bits", value)
        elif value is not None or not text.startswith("Optional["):
            got = "None" if value is None else type(value).__name__
            return bad_type(name, a.name, wanted, got)
    return None


def _as_tensor(x: Any) -> Any:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def _as_array(x: Any) -> Any:
    return None if x is None else x.numpy()
