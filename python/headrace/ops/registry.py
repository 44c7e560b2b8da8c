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

from .. import _C, audit, backends, compiled, quick
from ..contract import Axes, OpSpec
from ..errors import BackendError, bad_type, bad_value

# fn(bound arguments, axes, outputs to fill)
Kernel = Callable[[Mapping[str, Any], Axes, list[Tensor]], None]

DTYPE_CODE = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
}

_LIBRARY = torch.library.Library("headrace", "DEF")
_SPECS: dict[str, OpSpec] = {}
_DIRECT: dict[str, Callable[[Any, Any], Any]] = {}
UNUSUAL = object()
"""What a path past torch's dispatcher gives for a call that it leaves to the dispatcher."""
_KINDS_OF: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


_C.take_exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None), Tensor, Parameter)


def direct() -> bool:
    """Whether a call on plain tensors may go straight to a kernel: no backend was named, and
    neither the debug mode nor anything of torch is to see it."""
    named = backends.current() != "auto"
    return not (is_dynamo_compiling() or named or audit.on or quick.watched())


def wrote(*tensors: Tensor) -> None:
    """What autograd saved of these must not pass unnoticed."""
    torch.autograd.graph.increment_version([x for x in tensors if not x.is_inference()])


def specs() -> dict[str, OpSpec]:
    """Every registered op by name."""
    return dict(_SPECS)


def address(x: Tensor | None) -> int:
    """Where the data of a tensor starts; 0 for None."""
    return 0 if x is None else x.data_ptr()


def register(spec: OpSpec, cpu: Kernel | None = None) -> Callable[..., Any]:
    """Defines `torch.ops.headrace.<name>` with CPU and CUDA kernels and a fake function.

    Without a CPU kernel it is the one of `_C` that takes the arguments as they are, and small calls
    are read there too. Gives the way past torch's dispatcher, of all arguments of the schema in its
    order: not to be gone under torch.compile, and giving `UNUSUAL` for what is left to `call`.
    """
    _LIBRARY.define(spec.name + spec.schema)
    _SPECS[spec.name] = spec
    if cpu is None:
        cpu = _compiled(spec)
        by_name, in_order = compiled.direct(spec, _kinds(spec), UNUSUAL, wrote)
    else:
        by_name = _direct(spec, cpu)
        in_order = lambda *args: by_name(args, {})  # noqa: E731
    _DIRECT[spec.name] = by_name

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
            if device == "cuda" and backends.current() == "auto":
                chosen = _suited(spec, axes)
            if chosen == "reference":
                return _reference(spec, bound)
            outs = spec.empty_outs(bound, axes)
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
    return in_order


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


def _direct(spec: OpSpec, cpu: Kernel) -> Callable[[Any, Any], Any]:
    """The CPU kernel without torch's dispatcher, which takes as long as a small call itself.

    Gives `UNUSUAL`, having done nothing, where anything is out of the ordinary, or where torch or
    the debug mode is to see the call.
    """
    kinds = {
        name: (_KINDS_OF[kind], optional)
        for name, (kind, optional) in _kinds(spec).items()
        if kind != "Tensor"
    }
    entry = quick.entry(spec.args, spec.outs, spec.parameters, spec.defaults, kinds)
    late, values, scaled = quick.outs(spec.args, spec.outs), spec.values, "scale" in kinds

    def run(args: Any, kwargs: Any) -> Any:
        if backends.current() != "auto" or audit.on or quick.watched():
            return UNUSUAL
        found = entry(*args, **kwargs)
        if found is None:
            return UNUSUAL
        bound, axes, outs = found
        values(bound, axes)
        if scaled and bound["scale"] is None:
            bound["scale"] = axes["D"] ** -0.5
        if outs is None:
            outs = late(bound, axes)
        cpu(bound, axes, outs)
        if spec.mutates and torch.is_grad_enabled():  # what autograd saved must not pass unnoticed
            written = [bound[name] for name in spec.mutates if bound[name] is not None]
            torch.autograd.graph.increment_version([x for x in written if not x.is_inference()])
        return _returned(outs)

    return run


def _reference(spec: OpSpec, bound: Mapping[str, Any]) -> Any:
    skip = {"split"}  # how a kernel cuts its work is no part of what the op means
    outs = spec.reference(**{k: v for k, v in bound.items() if k not in skip})
    if outs is None:
        return None
    several = outs if isinstance(outs, tuple) else (outs,)
    cast = [
        o if isinstance(s.dtype, str) else o.to(s.dtype)
        for o, s in zip(several, spec.outs, strict=True)
    ]
    return cast[0] if len(cast) == 1 else tuple(cast)


def _suited(spec: OpSpec, axes: Axes) -> str:
    """The last GPU backend named that runs here and is made for these sizes; else the first."""
    for backend in reversed(spec.gpu[1:]):
        module = import_module(f"headrace.kernels.{spec.family}.{backend}")
        if module.suits(spec.name, axes):
            return backend
    return spec.gpu[0]


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


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Runs an op on tensors, or on numpy arrays (zero-copy; arrays come back).

    Raises ValueError when autograd would have to record it: the ops have no backward.
    """
    if not is_dynamo_compiling():
        out = _DIRECT[name](args, kwargs)
        if out is not UNUSUAL:
            return out
    if isinstance(args[0], np.ndarray):
        given = dict(zip(_SPECS[name].parameters, args, strict=False)) | kwargs
        for arg in _SPECS[name].mutates:
            if isinstance(x := given.get(arg), np.ndarray) and not x.flags.writeable:
                raise bad_value(name, arg, "an array that may be written", "one that is read-only")
        out = _checked(
            name, tuple(map(_as_tensor, args)), {k: _as_tensor(v) for k, v in kwargs.items()}
        )
        return tuple(o.numpy() for o in out) if isinstance(out, tuple) else _as_array(out)
    if torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (*args, *kwargs.values())
    ):
        raise bad_value(
            name,
            "inputs",
            "tensors without requires_grad",
            "one that requires grad",
            "the op has no backward; call it under torch.no_grad()",
        )
    return _checked(name, args, kwargs)


def _checked(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    op = getattr(torch.ops.headrace, name).default
    try:
        return op(*args, **kwargs)
    except RuntimeError:
        if (error := _mistyped(op._schema.arguments, name, args, kwargs)) is not None:
            raise error from None
        raise


_KINDS: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "a tensor"),
    "int": (int, "an integer"),
    "float": ((int, float), "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a string"),
}


def _mistyped(schema: Any, name: str, args: Any, kwargs: Any) -> Exception | None:
    """The error that names the first argument which torch's schema refuses; None when all fit."""
    given = dict(zip((a.name for a in schema), args, strict=False)) | kwargs
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
