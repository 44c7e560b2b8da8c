# SPDX-License-Identifier: Apache-2.0
"""What the kernels read of one linear layer of the base: a pool of rank rows, and small tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import audit
from ..buffers import huge
from ..errors import bad_value, unsupported
from .bank_rows import Extent
from .bank_tables import Tables
from .blob import Adapter
from .codes import quantize_rows
from .config import natural
from .route import LoraRoute
from .site import LoraSite

POOLS = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8)
_LOWER = int(sys.byteorder == "big")
PIECE = 1 << 15  # elements that torch copies without waking other threads


class Site:
    """One linear layer of the base, or several side by side (a fused projection), in all slots.

    a [C, J, K] and b [C, N] hold rank rows, of dtype float32, bfloat16, float16, int8, or uint8
    (pairs of 4-bit codes), with a_scale and b_scale for codes. scale fp32 [S] and ranks int32
    [S, J] (the bank's) are per slot. bias and gain fp32 [S, N] where the bank has room for them.
    Rows are not initialised.
    """

    def __init__(
        self,
        name: str,
        shapes: Mapping[str, tuple[int, int]],
        slots: int,
        rows: int,
        dtype: torch.dtype,
        group: int,
        extras: tuple[bool, bool],
        weights: Mapping[str, Tensor] | None,
        ranks: Tensor,
    ) -> None:
        device = ranks.device
        self.name, self.modules = name, tuple(shapes)
        self.layer = natural(self.modules[0])[0]
        inputs = {k for _, k in shapes.values()}
        if len(inputs) > 1 or len({natural(m)[0] for m in self.modules}) > 1:
            raise bad_value("AdapterBank", "fused", f"modules of one input in {name}", self.modules)
        self.inputs = inputs.pop()
        self.ends = [sum(n for n, _ in list(shapes.values())[: j + 1]) for j in range(len(shapes))]
        self.outputs = self.ends[-1]
        self._weights = weights
        self.codes = dtype in (torch.int8, torch.uint8)
        per_byte = 2 if dtype == torch.uint8 else 1
        slices, k, n = len(shapes), self.inputs, self.outputs
        if self.codes:
            self.groups = (
                _group("K", name, k, group, per_byte),
                _group("N", name, n, group, per_byte),
            )

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return huge(torch.empty(*shape, dtype=dtype, device=device))

        self.a = room(rows, slices, k // per_byte, dtype=dtype)
        self.b = room(rows, n // per_byte, dtype=dtype)
        self._words: tuple[np.ndarray, np.ndarray] | None = None  # the pools' bits, on the CPU
        if not self.codes and device.type == "cpu":
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            unsigned = np.uint32 if dtype == torch.float32 else np.uint16
            a, b = (pool.view(bits).numpy().view(unsigned) for pool in (self.a, self.b))
            self._words = a, b
        self.scale = room(slots)
        self.ranks = ranks
        self._call: tuple[Tensor | None, LoraSite | None] = None, None
        self.options: dict[str, Any] = {"ranks": self.ranks}
        if slices > 1:
            self.options["slice_ends"] = torch.tensor(self.ends, dtype=torch.int32, device=device)
        if self.codes:
            self.options["a_scale"] = room(rows, slices, k // self.groups[0])
            self.options["b_scale"] = room(rows, n // self.groups[1])
        for wanted, what in zip(extras, ("bias", "gain"), strict=True):
            if wanted:
                self.options[what] = room(slots, n)
        if any(extras):
            self.options["epilogue"] = torch.full((slots, 2), -1, dtype=torch.int32, device=device)
        if audit.on:
            self.poison([(0, rows)])

    def ranks_of(self, adapter: Adapter) -> list[int]:
        """Rank per slice, 0 where the adapter leaves one alone."""
        known = adapter.config.by_name
        return [known[m].rank if m in known else 0 for m in self.modules]

    def write(self, adapter: Adapter, slot: int, extents: Sequence[Extent]) -> None:
        """Puts an adapter's part in. Touches its rows and its slot only."""
        scales = [adapter.scale(m) if m in adapter.config.by_name else None for m in self.modules]
        there = [s for s in scales if s is not None]
        first = next((s for s in there if s), there[0])  # the slot's scale; B makes up the rest
        if self.codes:
            self._write_codes(adapter, scales, first, extents)
        else:
            begin = 0
            for j, (module, end) in enumerate(zip(self.modules, self.ends, strict=True)):
                if scales[j] is not None and not self._copied(adapter, j, begin, extents, first):
                    _spread(module, adapter.a(module), self.a[:, j], extents)
                    b = _rescaled(adapter.b_rows(module), scales[j], first)
                    _spread(module, b, self.b[:, begin:end], extents)
                begin = end
        self.scale[slot] = first
        self._epilogue(adapter, slot, scales, first)

    def _copied(
        self, adapter: Adapter, j: int, begin: int, extents: Sequence[Extent], first: float
    ) -> bool:
        """Copies slice j bit by bit, where that is all there is to do: many small copies, of which
        numpy makes less fuss than torch.
        """
        module = self.modules[j]
        kept = adapter.span(module, "a").dtype
        if self._words is None or adapter.scale(module) != first:
            return False
        widened = kept == torch.bfloat16 and self.a.dtype == torch.float32
        if kept != self.a.dtype and not widened:
            return False
        a, b = self._words
        for part, pool in (("a", a[:, j]), ("b", b[:, begin : self.ends[j]])):
            words, at = adapter.words(module, part), 0
            for row, count in extents:
                count = min(count, len(words) - at)
                if count <= 0:
                    break
                target = pool[row : row + count]
                if widened:  # bf16 is the upper half of fp32
                    halves = target.view(np.uint16)
                    halves[:, _LOWER::2] = 0
                    halves[:, 1 - _LOWER :: 2] = words[at : at + count]
                else:
                    target[...] = words[at : at + count]
                at += count
        return True

    def _write_codes(
        self,
        adapter: Adapter,
        scales: Sequence[float | None],
        first: float,
        extents: Sequence[Extent],
    ) -> None:
        bits = 4 if self.a.dtype == torch.uint8 else 8
        rank = sum(count for _, count in extents)
        whole = torch.zeros(rank, self.outputs)
        begin = 0
        for j, (module, end) in enumerate(zip(self.modules, self.ends, strict=True)):
            if scales[j] is not None:
                a = adapter.a(module)
                codes, steps = quantize_rows(a, bits, self.groups[0])
                _spread(module, codes, self.a[:, j], extents)
                _spread(module, steps, self.options["a_scale"][:, j], extents)
                b = _rescaled(adapter.b_rows(module), scales[j], first)
                whole[: len(b), begin:end] = b
            begin = end
        codes, steps = quantize_rows(whole, bits, self.groups[1])
        _spread(self.name, codes, self.b, extents)
        _spread(self.name, steps, self.options["b_scale"], extents)

    def _epilogue(
        self, adapter: Adapter, slot: int, scales: Sequence[float | None], first: float
    ) -> None:
        """LoRA's bias and DoRA's gain, whole rows: a slice without the adapter gets 0 and 1."""
        if "epilogue" not in self.options:
            return
        for at, (what, there, neutral) in enumerate(
            (("bias", adapter.config.bias, 0.0), ("gain", adapter.config.dora, 1.0))
        ):
            if there:
                row = self.options[what][slot]
                begin = 0
                for module, end, scale in zip(self.modules, self.ends, scales, strict=True):
                    if scale is None:
                        row[begin:end] = neutral
                    elif what == "bias":
                        bias = adapter.bias(module)
                        assert bias is not None
                        row[begin:end] = bias.float() * (scale / first)
                    else:
                        row[begin:end] = self._gain(adapter, module)
                    begin = end
            self.options["epilogue"][slot, at] = slot if there else -1

    def _gain(self, adapter: Adapter, module: str) -> Tensor:
        """DoRA's magnitude over the norm of what the weight has become, fp32 [N]."""
        magnitude = adapter.magnitude(module)
        assert magnitude is not None
        assert self._weights is not None
        weight, a = self._weights[module].detach(), adapter.a(module).double()
        b, norms = adapter.b(module).double() * adapter.scale(module), []
        for first in range(0, len(weight), 64):
            part = slice(first, first + 64)
            norms.append((weight[part].double().cpu() + b[part] @ a).norm(dim=1))
        return (magnitude.double() / torch.cat(norms)).float()

    def free(self, slot: int, extents: Sequence[Extent]) -> None:
        """The slot is nobody's. In debug mode what it held is made NaN, or codes of a NaN scale."""
        if "epilogue" in self.options:
            self.options["epilogue"][slot] = -1
        if audit.on:
            self.scale[slot] = torch.nan
            self.poison(extents)
            for what in ("bias", "gain"):
                if what in self.options:
                    self.options[what][slot] = torch.nan

    def poison(self, extents: Sequence[Extent]) -> None:
        """Makes rows such that a result that read one of them is NaN."""
        names = ("a_scale", "b_scale") if self.codes else ()
        targets = [self.options[n] for n in names] or [self.a, self.b]
        for first, count in extents:
            for target in targets:
                target[first : first + count] = torch.nan

    def add_to(
        self, x: Tensor, y: Tensor, tables: Tables, route: LoraRoute, bias: Tensor | None
    ) -> None:
        """y [T, N] += the update of each row's adapter on x [T, K]. bias [N]: what y has of it."""
        if "gain" not in self.options:
            bias = None  # only a gain asks what of y is the base's bias
        known, call = self._call
        if call is None or known is not bias or (bias is not None and bias.dtype != torch.float32):
            options = self.options if bias is None else {**self.options, "base_bias": bias.float()}
            pool = (self.a, self.b, tables.rows, tables.row_indptr, self.scale)
            call = LoraSite(*pool, **options)
            self._call = bias, call
        call(x, y, route)


def _group(axis: str, name: str, width: int, group: int, per_byte: int) -> int:
    """The group asked for, or the largest below it that divides the width."""
    step = 32 if per_byte == 2 else 1
    found = math.gcd(width, group)
    if found % step:
        raise unsupported(
            "AdapterBank", "dtype", "float32, bfloat16, float16, int8", "4-bit codes",
            f"{axis} of {name} is {width}, which no group of 32 weights divides",
        )  # fmt: skip
    return found


def _rescaled(b: Tensor, scale: float | None, first: float) -> Tensor:
    """B with what its module's scale has beyond that of its slot; exact when that is none, or a
    power of two.
    """
    return b if scale is None or scale == first else b.float() * (scale / first)


def _spread(name: str, source: Tensor, target: Tensor, extents: Sequence[Extent]) -> None:
    """Copies the rows of source [r, n] to the first r rows of `extents` in target [C, n]."""
    at, step = 0, max(1, PIECE // max(1, source.shape[1]))
    narrower = source.dtype != target.dtype and target.dtype != torch.float32
    for first, count in extents:
        end = min(at + count, len(source))
        while at < end:
            stop = min(at + step, end)
            piece = source[at:stop].to(target.dtype)
            if narrower and not piece.isfinite().all():
                raise bad_value(
                    "AdapterBank.load",
                    "adapter",
                    f"weights in the range of {str(target.dtype).removeprefix('torch.')}",
                    f"larger ones in {name}",
                )
            target[first : first + stop - at].copy_(piece)
            first, at = first + stop - at, stop
