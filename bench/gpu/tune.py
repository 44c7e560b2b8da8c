# SPDX-License-Identifier: Apache-2.0
"""Times a candidate of `kernels.common.tuned` at a shape that people run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.kernels.common import tuned

from . import adapters, attention
from .measure import Bench

GAIN = 0.97  # of the default's time: what is nearer is noise

Case = tuple[Callable[..., None], tuple[Any, ...]]
CASES: dict[str, tuple[Case, Case]] = {  # and that of a dry run
    "attention": ((attention.prefill, (8192, 2048)), (attention.prefill, (96, 32))),
    "paged_attention": ((attention.decode, (8, 32768, True)), (attention.decode, (1, 128, True))),
    "linear": ((adapters.linear, (256, 4096, 4096)), (adapters.linear, (3, 64, 48))),
    "lora": ((adapters.lora_rows, (64, 64, 16, 4096)), (adapters.lora_rows, (2, 2, 4, 64))),
}


def choices(kernel: str, size: str) -> list[tuned.Choice | None]:
    """The default, then every candidate; two of them in a dry run."""
    return [None, *tuned.combinations(kernel)][: 3 if size == "dry" else None]


def timed(bench: Bench, kernel: str, choice: tuned.Choice | None) -> dict[str, Any]:
    """{us, correct, key} of one candidate; us is the line that says why where it cannot run."""
    case, given = CASES[kernel][bench.dry]
    bench.alone = True
    with tuned.trial(kernel, choice) as asked:
        case(bench, *given)
    bench.alone = False
    row = bench.rows.pop()
    backend = bench.backends[0]
    key = asked[0] if asked else ""
    return {"us": row["us"][backend], "correct": row["correct"][backend], "key": key}
