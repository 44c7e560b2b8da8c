# SPDX-License-Identifier: Apache-2.0
"""What an adapter is: its modules, their ranks and scales, and the shapes of the base below."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_type, bad_value

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_RANK = 512
MAX_WIDTH = 1 << 24


def text(op: str, arg: str, value: object, limit: int = 200) -> str:
    """`value`, where it is a printable string of 1 to `limit` bytes of UTF-8."""
    if not isinstance(value, str):
        raise bad_type(op, arg, "a string", type(value).__name__)
    if not value.isprintable() or not 0 < len(value.encode()) <= limit:
        raise bad_value(op, arg, f"1 to {limit} printable bytes", repr(value[:40]))
    return value


def natural(name: str) -> tuple[Any, ...]:
    """Sorts module names by layer: numbers as numbers, names without one behind the others."""
    parts = re.split(r"(\d+)", name)
    first = int(parts[1]) if len(parts) > 1 else math.inf
    return (first, [int(p) if i % 2 else p for i, p in enumerate(parts)])


@dataclass(frozen=True)
class Module:
    """One adapted linear module: y += scale * B A x, A [rank, inputs] and B [outputs, rank]."""

    name: str
    rank: int
    inputs: int
    outputs: int
    alpha: float
    dtype: str = "F32"  # of A and B: F32, F16 or BF16
    bias: str | None = None  # dtype of LoRA's bias [outputs], None where there is none
    magnitude: str | None = None  # dtype of DoRA's magnitude [outputs]

    def __post_init__(self) -> None:
        op = "Module"
        text(op, "name", self.name, 400)
        for arg, top in (("rank", MAX_RANK), ("inputs", MAX_WIDTH), ("outputs", MAX_WIDTH)):
            value = getattr(self, arg)
            if not isinstance(value, int) or isinstance(value, bool):
                raise bad_type(op, arg, f"an int ({self.name})", type(value).__name__)
            if not 1 <= value <= top:
                raise bad_value(op, arg, f"1 to {top} in {self.name}", value)
        if not isinstance(self.alpha, (int, float)) or not math.isfinite(self.alpha):
            raise bad_value(op, "alpha", f"a finite number in {self.name}", self.alpha)
        object.__setattr__(self, "alpha", float(self.alpha))
        for arg in ("dtype", "bias", "magnitude"):
            code = getattr(self, arg)
            if code not in DTYPES and (arg == "dtype" or code is not None):
                raise bad_value(op, arg, f"one of {', '.join(DTYPES)} in {self.name}", code)


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter without its weights. Modules are kept in load order, the first layer first.

    base: name of the model below. rslora: scale alpha / sqrt(rank) in place of alpha / rank.
    fan_in_fan_out: the base keeps its weights [inputs, outputs]. invocation: tokens that switch the
    adapter on (activated LoRA), None for everywhere. Raises ValueError for no or double modules,
    and where only some modules have a bias or a magnitude.
    """

    base: str
    modules: tuple[Module, ...]
    rslora: bool = False
    fan_in_fan_out: bool = False
    invocation: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        op = "AdapterConfig"
        text(op, "base", self.base)
        ordered = tuple(sorted(self.modules, key=lambda m: natural(m.name)))
        object.__setattr__(self, "modules", ordered)
        names = [m.name for m in ordered]
        if not names:
            raise bad_value(op, "modules", "at least one module", "none")
        if len(set(names)) < len(names):
            raise bad_value(op, "modules", "each module once", "one twice")
        for what in ("bias", "magnitude"):
            if len({getattr(m, what) is None for m in ordered}) > 1:
                raise bad_value(op, "modules", f"a {what} in all or none", f"a {what} in some")
        if self.invocation is not None:
            tokens = tuple(self.invocation)
            if not tokens or not all(type(t) is int and t >= 0 for t in tokens):
                raise bad_value(op, "invocation", "token numbers, or None", self.invocation)
            object.__setattr__(self, "invocation", tokens)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.base, self.modules, self.rslora, self.fan_in_fan_out, self.invocation))

    @property
    def dora(self) -> bool:
        """Whether the modules have DoRA magnitudes."""
        return self.modules[0].magnitude is not None

    @property
    def bias(self) -> bool:
        """Whether the modules have a LoRA bias."""
        return self.modules[0].bias is not None

    @cached_property
    def rank(self) -> int:
        """The largest rank."""
        return max(m.rank for m in self.modules)

    @cached_property
    def by_name(self) -> dict[str, Module]:
        """Modules by name."""
        return {m.name: m for m in self.modules}

    def scale(self, name: str) -> float:
        """What B A x is multiplied by in module `name`."""
        m = self.by_name[name]
        return m.alpha / (math.sqrt(m.rank) if self.rslora else m.rank)

    def canonical(self) -> bytes:
        """The one spelling of this configuration, as UTF-8 JSON; part of an adapter's identity."""
        return json.dumps(
            {
                "base": self.base,
                "fan_in_fan_out": bool(self.fan_in_fan_out),
                "invocation": self.invocation,
                "modules": [
                    [m.name, m.rank, m.inputs, m.outputs, m.alpha, m.dtype, m.bias, m.magnitude]
                    for m in self.modules
                ],
                "rslora": bool(self.rslora),
            },
            separators=(",", ":"),
            sort_keys=True,
            allow_nan=False,
        ).encode()

    @classmethod
    def parse(cls, canonical: bytes) -> AdapterConfig:
        """The configuration that `canonical` spells."""
        got = json.loads(canonical)
        invocation = got["invocation"]
        return cls(
            base=got["base"],
            modules=tuple(Module(*fields) for fields in got["modules"]),
            rslora=got["rslora"],
            fan_in_fan_out=got["fan_in_fan_out"],
            invocation=None if invocation is None else tuple(invocation),
        )

    @classmethod
    def of(
        cls, base: str, tensors: Mapping[str, Tensor], alpha: float, **options: Any
    ) -> AdapterConfig:
        """The configuration of tensors named `MODULE.a` [r, K] and `MODULE.b` [N, r], with
        `MODULE.bias` and `MODULE.magnitude` [N] where there are any; one alpha for all.
        """
        modules = []
        for name in sorted({key.rpartition(".")[0] for key in tensors}):
            a, b = tensors.get(f"{name}.a"), tensors.get(f"{name}.b")
            if a is None or b is None or a.dim() != 2 or b.dim() != 2:
                raise bad_value("AdapterConfig.of", "tensors", "a [r, K] and b [N, r]", name)
            extras: dict[str, Any] = {
                what: CODES.get(tensors[f"{name}.{what}"].dtype, "another")
                for what in ("bias", "magnitude")
                if f"{name}.{what}" in tensors
            }
            dtype = CODES.get(a.dtype, str(a.dtype))
            rank, inputs = a.shape
            modules.append(Module(name, rank, inputs, b.shape[0], alpha, dtype, **extras))
        return cls(base, tuple(modules), **options)


@dataclass(frozen=True)
class Base:
    """A model that adapters are for: the weight's shape [outputs, inputs] of each linear module.

    known_as: other names that adapters' files may give it (a repository, a folder).
    """

    name: str
    modules: Mapping[str, tuple[int, int]]
    known_as: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        text("Base", "name", self.name)
        if not self.modules:
            raise bad_value("Base", "modules", "at least one module", "none")
        shapes = {str(k): (int(n), int(m)) for k, (n, m) in self.modules.items()}
        object.__setattr__(self, "modules", dict(sorted(shapes.items())))
        object.__setattr__(self, "known_as", tuple(sorted(set(self.known_as))))

    def check(self, op: str, config: AdapterConfig) -> None:
        """Raises ValueError where `config` is not an adapter of this base."""
        if config.base != self.name:
            raise bad_value(op, "base", self.name, config.base)
        strange = [m.name for m in config.modules if m.name not in self.modules]
        if len(strange) == len(config.modules):
            raise bad_value(
                op,
                "modules",
                f"modules of the base {self.name} such as {next(iter(self.modules))}",
                strange[0],
                "it would apply to no module",
            )
        if strange:
            raise bad_value(op, "modules", f"modules of the base {self.name}", few(strange))
        for m in config.modules:
            n, k = self.modules[m.name]
            if config.fan_in_fan_out:
                n, k = k, n
            if (m.outputs, m.inputs) != (n, k):
                raise bad_value(
                    op, m.name, f"[{n}, {k}] as in the base {self.name}", [m.outputs, m.inputs]
                )


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
