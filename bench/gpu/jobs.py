# SPDX-License-Identifier: Apache-2.0
"""What is timed, in order of value: each op's first shape, then each one's second, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch

from . import adapters, attention, pruning, states
from .measure import Bench

SIZES = ("dry", "quick", "full")


@dataclass(frozen=True)
class Job:
    """One case at one shape; the name tells it from all others."""

    op: str
    name: str
    run: Callable[[Bench], None]


Cases = list[tuple[Callable[..., None], tuple[Any, ...]]]


def jobs(size: str) -> list[Job]:
    """Those of a dry run, of a quick one or of a full one."""
    dry, quick = size == "dry", size == "quick"
    contexts = [128] if dry else [32768, 2048] if quick else [32768, 2048, 4096, 8192, 16384]
    batches = [1, 2] if dry else [8, 1, 64] if quick else [8, 1, 64, 2, 4, 16, 32]
    prompts = [96] if dry else [4096, 32768] if quick else [32768, 4096, 8192, 65536, 131072]
    window = 32 if dry else 2048
    rows = [3] if dry else [1, 16, 256, 4096]
    wide, deep = (64, 48) if dry else (4096, 4096)
    mixes = [(2, 2, 4)] if dry else [(64, 64, 16), (1, 1, 16), (64, 1, 16), (2048, 8, 16)]
    tokens = 4096 if dry else 10**6
    features = (300, 64) if dry else (10_000, 3584)
    recurrent = [(2, 70)] if dry else [(64, 1), (1, 4096), (16, 4096)]
    codes = (torch.int8, torch.float8_e4m3fn)

    by_op: dict[str, Cases] = {
        "paged_attention": [
            *((attention.decode, (b, c, True)) for b in batches for c in contexts),
            (attention.decode, (batches[0], contexts[0], False)),
            *((attention.decode, (b, contexts[0], True, t)) for b in batches[:2] for t in codes),
        ],
        "attention": [
            *((attention.prefill, (n, window)) for n in prompts),
            *((attention.sparse, (n,)) for n in prompts if n <= 32768),
        ],
        "lora_rows": [(adapters.lora_rows, (*mix, wide)) for mix in mixes],
        "lora": [(adapters.lora, (*mix, wide)) for mix in mixes],
        "linear": [(adapters.linear, (n, wide, deep)) for n in rows],
        "append": [(attention.append, (n,)) for n in rows],
        "merge_states": [(attention.merge, (n,)) for n in rows],
        "block_score": [(pruning.block_score, (tokens,))],
        "select": [(pruning.select, (tokens // 64, 16))],
        "similarity": [(pruning.similarity, features)],
        "compact": [(pruning.compact, features)],
        "gated_delta_rule": [(states.gated_delta, n) for n in recurrent],
        "linear_attention": [(states.linear_attention, n) for n in recurrent],
        "append_absorb": [
            (states.append_absorb, n) for n in ([(2, 5)] if dry else [(64, 1), (8, 64), (256, 1)])
        ],
        "frame_delta_rule": [
            (states.frame_delta, n) for n in ([(2, 2, 20)] if dry else [(1, 4, 880), (8, 4, 880)])
        ],
        "causal_conv": [
            (states.causal_conv, n)
            for n in ([(9, 48)] if dry else [(4096, 4096), (1, 4096), (65536, 4096)])
        ],
        "hstu_attention": [(attention.hstu, (64, 16) if dry else (8192, 1024))],
        "segment_reduce": [(pruning.segment_reduce, (tokens // 8,))],
        "attention_mass": [(pruning.attention_mass, (n, 32)) for n in prompts],
        "assign": [
            (pruning.assign, n) for n in ([(70, 30)] if dry else [(65536, 256), (10549, 5000)])
        ],
        "compact_inplace": [(pruning.move, ("compact_inplace", *features))],
        "scatter_back": [(pruning.move, ("scatter_back", *features))],
        "pooled_block_mask": [(attention.pooled_block_mask, (n,)) for n in prompts],
    }
    rounds: Iterable[tuple[Job | None, ...]] = zip_longest(
        *([_job(op, case, given) for case, given in cases] for op, cases in by_op.items())
    )
    return [job for job in chain.from_iterable(rounds) if job is not None]


def _job(op: str, case: Callable[..., None], given: tuple[Any, ...]) -> Job:
    told = ", ".join(str(x).removeprefix("torch.") for x in given)
    return Job(op, f"{op}: {case.__name__}({told})", lambda bench: case(bench, *given))
