# SPDX-License-Identifier: Apache-2.0
"""One shape of one op, and what the cases of all ops share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64
RUN = 1_048_573  # a prime: rows of any size begin at other places of it


@dataclass(frozen=True)
class Dims:
    """What the shapes of a decoder follow from."""

    heads: int = HEADS
    kv_heads: int = KV_HEADS
    dim: int = DIM
    hidden: int = 4096
    wide: int = 14336
    dtype: torch.dtype = torch.bfloat16

    @property
    def group(self) -> int:
        """Query heads that share a head of keys."""
        return self.heads // self.kv_heads


LLAMA_8B = Dims()
MODELS = {
    "llama-3-8b": LLAMA_8B,
    "qwen2.5-vl-7b": Dims(28, 4, 128, 3584, 18944),
    "wan-1.3b": Dims(12, 12, 128, 1536, 8960),
    "smollm2-135m": Dims(9, 3, 64, 576, 1536),
}
"""Models by whose sizes `headrace bench --shapes` measures."""


@dataclass
class Case:
    """One shape of one op. `check` gives (error, tolerance); bytes and FLOPs are the least.

    product: the wider dtype of the two inputs of its products, by which the rate of multiply-adds
    goes. turns: after so many calls the memory of the first one comes again. again: bytes, of those
    that are counted, that are written where they were read; at most half. writes: those that are
    written elsewhere, at most half. reads: what holds most of the bytes, for the floor to read it
    where it lies; turns, again, writes and reads are not for one case together.
    peer is what people use today; rivals are other ways to the same result, and `more` makes those
    that take long to set up, with True those that need a compiler too. others are variants of ours.
    state: what the calls change; it is put back before results are compared. results: by name,
    `ours` among them, what to compare where a call gives nothing that is laid out as ours is.
    """

    op: str
    shape: str
    ours: Callable[[], object]
    check: Callable[[], tuple[float, float]]
    bytes: float
    flops: float
    peer: Callable[[], object] | None = None
    peer_name: str = ""
    others: dict[str, Callable[[], object]] = field(default_factory=dict)
    rivals: dict[str, Callable[[], object]] = field(default_factory=dict)
    more: Callable[[bool], dict[str, Callable[[], object]]] = lambda compile: {}
    state: tuple[Tensor, ...] = ()
    results: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    product: torch.dtype = torch.float32
    turns: int = 1
    again: float = 0.0
    writes: float = 0.0
    reads: Tensor | None = None


def after(run: Callable[[], object], result: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What there is once `run` was called, for a call that gives nothing."""

    def both() -> Tensor:
        run()
        return result()

    return both


def finite(found: Any) -> Any:
    """For JSON, which has no word for infinity: None in its place."""
    if isinstance(found, Mapping):
        return {key: finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers; of many, one run of them again and again, so that no two rows are alike."""
    count = math.prod(shape)
    run = torch.randn(min(count, RUN)).to(dtype)
    return run.repeat(-(-count // RUN))[:count].view(shape)


def rms_error(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float64) -> float:
    """RMS of the difference over the RMS of the reference; infinity for NaN, and for no elements.
    dtype: of the difference; its squares are summed in fp64."""
    gap, want = got.to(dtype) - want.to(dtype), want.to(dtype)
    norms = [torch.linalg.vector_norm(x, dtype=torch.float64).item() for x in (gap, want)]
    error = norms[0] / max(norms[1], 1e-30)
    return error if want.numel() and math.isfinite(error) else math.inf


def bound_call(op: str, *args: object, **kwargs: object) -> tuple[dict, dict]:
    """Arguments of a call by name, and the sizes of its axes."""
    spec = ops.specs()[op]
    bound = spec.bind(*args, **kwargs)
    return bound, spec.check(bound)


def frequencies(dim: int, theta: float = 10000.0) -> Tensor:
    """RoPE frequencies of a head dimension, fp64 [dim / 2]."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def dtype_name(dtype: torch.dtype) -> str:
    """As in the names of shapes."""
    kind = {torch.int8: "int", torch.bfloat16: "bf"}.get(dtype, "fp")
    return f"{kind}{8 * dtype.itemsize}"


def short(n: int) -> str:
    """A length, in k where it is whole."""
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)
