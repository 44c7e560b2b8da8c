# SPDX-License-Identifier: Apache-2.0
"""How far a result is from the reference in fp64: RMS ratio, largest error, NaN and infinities."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

import headrace
from headrace import ops
from headrace.contract import HINTS
from tests import levels


@dataclass(frozen=True)
class Distance:
    """RMS error over the RMS of the reference, largest error over the largest value.

    Infinite where NaN or infinities differ.
    """

    rms: float
    peak: float
    max_abs: float


def distance(got: Tensor, want: Tensor, floor: float = 0.0) -> Distance:
    """Compares in fp64, relative to the reference, whose scale counts as `floor` at least."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, reference {tuple(want.shape)}"
    got, want = got.double(), want.double()
    finite = want.isfinite()
    same = torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isfinite(), finite)
    if not same or not torch.equal(got[want.isinf()], want[want.isinf()]):
        return Distance(torch.inf, torch.inf, torch.inf)
    if not finite.any():
        return Distance(0.0, 0.0, 0.0)
    got, want = got[finite], want[finite]
    error = (got - want).abs()
    scale = max(float(want.square().mean().sqrt()), floor)
    top = max(float(want.abs().max()), floor)
    rms, worst = float(error.square().mean().sqrt()), float(error.max())
    if worst == 0.0:
        return Distance(0.0, 0.0, 0.0)
    if scale == 0.0:
        return Distance(torch.inf, torch.inf, worst)
    return Distance(rms / scale, worst / top, worst)


def bind(name: str, args: tuple, kwargs: dict) -> tuple[dict, dict]:
    """All arguments of a call by name, defaults included, and the sizes of its axes."""
    spec = ops.specs()[name]
    schema = getattr(torch.ops.headrace, name).default._schema
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= spec.bind(*args, **kwargs)
    axes = spec.check(bound)
    if bound.get("scale", 0) is None:
        bound["scale"] = axes["D"] ** -0.5
    return bound, axes


def wide(x):
    """Floating tensors in fp64, but for the codes of quantised ones; everything else as it is."""
    floats = isinstance(x, Tensor) and x.is_floating_point() and x.itemsize > 1
    return x.double() if floats else x


def reference(name: str, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
    """The results of the reference in fp64 (for an op that mutates: of what it mutates)."""
    outs, changed = truth(name, args, kwargs)
    return changed if ops.specs()[name].mutates else outs


def reference_out(name: str, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
    """What the reference gives back in fp64, for an op that also mutates; nothing is changed."""
    return truth(name, args, kwargs)[0]


Truth = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
_known: OrderedDict[tuple, Truth] = OrderedDict()
KEPT = 128  # more than a grid has, in all dtypes


def truth(name: str, args: tuple, kwargs: dict) -> Truth:
    """What the reference gives back in fp64, and what it changes. The latest are kept: a grid asks
    for the same at every ISA level."""
    spec = ops.specs()[name]
    bound, _ = bind(name, args, kwargs)
    bound = {k: v for k, v in bound.items() if k not in HINTS}
    key = (spec.reference, *((k, told(v)) for k, v in sorted(bound.items())))
    if key in _known:
        _known.move_to_end(key)
    else:
        bound = {k: wide(v).clone() if isinstance(v, Tensor) else v for k, v in bound.items()}
        out = spec.reference(**bound)
        outs = out if isinstance(out, tuple) else () if out is None else (out,)
        _known[key] = outs, tuple(bound[k] for k in spec.mutates if bound[k] is not None)
        if len(_known) > KEPT:
            _known.popitem(last=False)
    outs, changed = _known[key]
    return tuple(x.clone() for x in outs), tuple(x.clone() for x in changed)


def told(value: object) -> object:
    """A value, or all that a tensor holds, as part of a key."""
    if not isinstance(value, Tensor):
        return repr(value)
    flat = value.detach().cpu().contiguous().reshape(-1)
    held = hashlib.blake2b(flat.view(torch.uint8).numpy(), digest_size=16).digest()
    return value.dtype, value.device, tuple(value.shape), held


def run(name: str, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
    """The results of the registered op."""
    out = getattr(torch.ops.headrace, name)(*args, **kwargs)
    return out if isinstance(out, tuple) else (out,)


def tolerances(name: str, args: tuple, kwargs: dict, outs: tuple[Tensor, ...]) -> list[float]:
    """Largest RMS ratio of every result, from the contract of the op."""
    bound, axes = bind(name, args, kwargs)
    return [ops.specs()[name].tolerance(o.dtype, axes, bound) for o in outs]


def check(
    name: str,
    args: tuple,
    kwargs: dict,
    label: object = "",
    *,
    got: tuple[Tensor, ...] | None = None,
    want: tuple[Tensor, ...] | None = None,
    floor: float = 0.0,
) -> None:
    """Runs the op (or takes what it gave) and holds it against the reference within its tolerance.

    Besides the RMS, which a single wrong row could hide from, no element may be off by more than
    eight tolerances of the largest value. The second result of an attention op is a logarithm: its
    absolute error is what counts, so its scale is 1 at least. `floor` is the least scale of the
    first: what its values would be by size, where there are so few that all may cancel.
    """
    got = run(name, args, kwargs) if got is None else got
    want = reference(name, args, kwargs) if want is None else want
    limits = tolerances(name, args, kwargs, got)
    for i, (g, w, limit) in enumerate(zip(got, want, limits, strict=True)):
        d = distance(g, w, floor=1.0 if i else floor)
        print(
            f"{name}[{i}] {label}: rms {d.rms:.2e} peak {d.peak:.2e} of {limit:.2e},"
            f" max abs {d.max_abs:.2e}"
        )
        far = max(d.rms, d.peak / 8)
        assert far <= limit, (
            f"{name}[{i}] {label}: rms {d.rms:.2e}, peak {d.peak:.2e}, tolerance {limit:.2e}"
        )


def check_levels(
    name: str, args: tuple, kwargs: dict, label: object = "", floor: float = 0.0
) -> None:
    """`check` at every ISA level that has code for the op, against one run of the reference."""
    want = reference(name, args, kwargs)
    for level in levels.of_op(name):
        with headrace.use_isa(level):
            check(name, args, kwargs, f"{level} {label}", want=want, floor=floor)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits (NaN equals NaN of the same bits)."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
