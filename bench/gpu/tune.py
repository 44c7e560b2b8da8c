# SPDX-License-Identifier: Apache-2.0
"""Times a candidate of `kernels.common.tuned` at shapes that people run: for every key that the
named models ask of a kernel, the most wanted first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from typing import Any

from headrace.kernels.common import tuned

from headrace.bench.case import MODELS, Dims

from . import adapters, attention, prompts
from .jobs import products
from .measure import DIM, HEADS, KV_HEADS, Bench

GAIN = 0.97  # of the default's time: what is nearer is noise
DIMS = (DIM, 64, 80, 96)  # of a head

Case = tuple[Callable[..., None], tuple[Any, ...]]


def cases(dry: bool) -> dict[str, Case]:
    """By the name that the report has of each: every kernel's first key, then each one's second,
    and so on."""
    kernels = {"paged_attention": _paged(dry), "attention": _prefill(dry), "linear": _linear(dry),
               "lora": _lora(dry)}  # fmt: skip
    rounds = zip_longest(*([(k, case) for case in found] for k, found in kernels.items()))
    order = [x for x in chain.from_iterable(rounds) if x is not None]
    made = {f"{kernel} {_told(case[1])}": case for kernel, case in order}
    assert len(made) == len(order)
    return made


def kernel_of(name: str) -> str:
    """The kernel that a case is of."""
    return name.split()[0]


def _heads(dim: int) -> Dims:
    return Dims(HEADS, KV_HEADS, dim)


def _paged(dry: bool) -> Iterator[Case]:
    for dim in DIMS[: 1 if dry else None]:
        given = (1, 128, True) if dry else (8, 32768, True)
        yield attention.decode, (*given, None, _heads(dim))


def _prefill(dry: bool) -> Iterator[Case]:
    for dim in DIMS[: 1 if dry else None]:
        yield prompts.prefill, (*((96, 32) if dry else (8192, 2048)), _heads(dim))


def _linear(dry: bool) -> Iterator[Case]:
    shapes = [(64, 48)] if dry else [s for d in MODELS.values() for s in products(d)]
    for outputs, inputs in dict.fromkeys(shapes):
        yield adapters.linear, (3 if dry else 256, outputs, inputs)


def _lora(dry: bool) -> Iterator[Case]:
    """By the width that goes in, and by what the codes have: the weights do not matter to it."""
    if dry:
        yield adapters.lora_rows, (2, 2, 4, 64, None)
        return
    widths = dict.fromkeys(n for d in MODELS.values() for n in (d.hidden, d.wide))
    for bits in (None, 4, 8):
        for width in widths:
            yield adapters.lora_rows, (64, 64, 16, width, bits)


def _told(given: tuple[Any, ...]) -> str:
    return " ".join(f"{x.heads}/{x.kv_heads}x{x.dim}" if isinstance(x, Dims) else str(x)
                    for x in given)  # fmt: skip


def choices(kernel: str, size: str) -> list[tuned.Choice | None]:
    """The default, then every candidate; two of them in a dry run."""
    return [None, *tuned.combinations(kernel)][: 3 if size == "dry" else None]


def timed(bench: Bench, name: str, choice: tuned.Choice | None) -> dict[str, Any]:
    """{us, correct, key} of one candidate; us is the line that says why where it cannot run."""
    case, given = cases(bench.dry)[name]
    bench.alone = True
    try:
        with tuned.trial(kernel_of(name), choice) as asked:
            case(bench, *given)
    finally:
        bench.alone = False
    (row,) = bench.rows[-1:]
    bench.rows.pop()
    backend = bench.backends[0]
    keys = set(asked)
    if len(keys) > 1:
        raise RuntimeError(f"expected {name} to ask for one key, got {sorted(keys)}")
    key = keys.pop() if keys else ""
    return {"us": row["us"][backend], "correct": row["correct"][backend], "key": key}
