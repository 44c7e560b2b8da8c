# SPDX-License-Identifier: Apache-2.0
"""What is timed, in order of value: each op's first shape, then the sequences that have an aim of
their own, then each op's second shape, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch

from headrace.bench.case import MODELS, Dims

from . import adapters, attention, chains, prompts, pruning, states
from .measure import Bench

SIZES = ("dry", "quick", "full")
SEQUENCES = ("prune", "recall", "site", "fetch")
"""Rows that are of no single op."""


@dataclass(frozen=True)
class Job:
    """One case at one shape; the name tells it from all others."""

    op: str
    name: str
    run: Callable[[Bench], None]


Cases = list[tuple[Callable[..., None], tuple[Any, ...]]]


def jobs(size: str) -> list[Job]:
    """Those of a dry run, of a quick one or of a full one."""
    dry, full = size == "dry", size == "full"
    ops = {**_attention(dry, full), **_adapters(dry, full), **_survivors(dry), **_states(dry)}
    rounds: Iterable[tuple[Job | None, ...]] = zip_longest(
        *([_job(op, case, given) for case, given in cases] for op, cases in ops.items())
    )
    whole = [job for job in chain.from_iterable(rounds) if job is not None]
    sequences = [_job(op, case, given) for op, (case, given) in _sequences(dry).items()]
    return [*whole[: len(ops)], *sequences, *whole[len(ops) :]]


def _attention(dry: bool, full: bool) -> dict[str, Cases]:
    contexts = [128] if dry else [2048, 32768] + [4096, 8192, 16384] * full
    batches = [1, 2] if dry else [64, 1, 8] + [2, 4, 16, 32] * full
    prompts_of = [96] if dry else [131072, 4096, 32768] + [8192, 65536] * full
    window = 32 if dry else 2048
    codes, coded = (torch.int8, torch.float8_e4m3fn), [(8, 32768), (1, 32768)]
    if dry:
        coded = [(1, 128)]
    others = [] if dry else [d for d in MODELS.values() if d != MODELS["llama-3-8b"]]
    return {
        "paged_attention": [
            *((attention.decode, (b, c, True)) for c in contexts for b in batches),
            (attention.decode, (batches[0], contexts[0], False)),
            *((attention.decode, (b, c, True, t)) for b, c in coded for t in codes),
            *((attention.decode, (8, contexts[0], True, None, d)) for d in others),
            (attention.shared, (3, 128, 64) if dry else (32, 4096, 320)),
        ],
        "attention": [
            *((prompts.prefill, (n, window)) for n in prompts_of),
            *((prompts.sparse, (n,)) for n in prompts_of if n <= 32768),
            *((prompts.prefill, (4096, window, d)) for d in others),
        ],
        "merge_states": [(attention.merge, (n,)) for n in _rows(dry)],
        "append": [(attention.append, (n,)) for n in _rows(dry)],
        "pooled_block_mask": [(prompts.pooled_block_mask, (n,)) for n in prompts_of if n <= 32768],
        "hstu_attention": [(attention.hstu, (64, 16) if dry else (8192, 1024))],
    }


def _adapters(dry: bool, full: bool) -> dict[str, Cases]:
    wide = 64 if dry else 4096
    mixes = [(2, 2, 4)] if dry else [(64, 64, 16), (1, 1, 16), (64, 1, 16), (2048, 8, 16)]
    sizes = [(3, 64, 48)] if dry else [(n, 4096, 4096) for n in _rows(dry)]
    if full:
        sizes += [(n, *shape) for d in MODELS.values() for shape in products(d) for n in (1, 256)]
    return {
        "lora_rows": [
            *((adapters.lora_rows, (*mix, wide)) for mix in mixes),
            *((adapters.lora_rows, (*mix, wide, bits)) for mix in mixes[:3] for bits in (4, 8)),
        ],
        "lora": [(adapters.lora, (*mix, wide)) for mix in mixes],
        "linear": [(adapters.linear, given) for given in dict.fromkeys(sizes)],
    }


def products(dims: Dims) -> list[tuple[int, int]]:
    """(outputs, inputs) of the projections of a decoder."""
    qkv = (dims.heads + 2 * dims.kv_heads) * dims.dim
    inner = dims.heads * dims.dim
    return [(qkv, dims.hidden), (dims.hidden, inner), (dims.wide, dims.hidden),
            (dims.hidden, dims.wide)]  # fmt: skip


def _survivors(dry: bool) -> dict[str, Cases]:
    tokens = 4096 if dry else 10**6
    features = (300, 64) if dry else (10_000, 3584)
    asked = [96] if dry else [4096, 32768]
    pairs = [(70, 30)] if dry else [(65536, 256), (10549, 5000)]
    return {
        "block_score": [(pruning.block_score, (tokens,))],
        "select": [(pruning.select, (tokens // 64, 16))],
        "similarity": [(pruning.similarity, features)],
        "compact": [(pruning.compact, features)],
        "segment_reduce": [(pruning.segment_reduce, (tokens // 8,))],
        "attention_mass": [(pruning.attention_mass, (n, 32)) for n in asked],
        "assign": [(pruning.assign, n) for n in pairs],
        "compact_inplace": [(pruning.move, ("compact_inplace", *features))],
        "scatter_back": [(pruning.move, ("scatter_back", *features))],
    }


def _states(dry: bool) -> dict[str, Cases]:
    recurrent = [(2, 70)] if dry else [(64, 1), (1, 4096), (16, 4096)]
    rings = [(2, 5)] if dry else [(64, 1), (8, 64), (256, 1)]
    clips = [(2, 2, 20)] if dry else [(1, 4, 880), (8, 4, 880)]
    chunks = [(9, 48)] if dry else [(4096, 4096), (1, 4096), (65536, 4096)]
    return {
        "gated_delta_rule": [(states.gated_delta, n) for n in recurrent],
        "linear_attention": [(states.linear_attention, n) for n in recurrent],
        "append_absorb": [(states.append_absorb, n) for n in rings],
        "frame_delta_rule": [(states.frame_delta, n) for n in clips],
        "causal_conv": [(states.causal_conv, n) for n in chunks],
    }


def _sequences(dry: bool) -> dict[str, tuple[Callable[..., None], tuple[Any, ...]]]:
    found: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
        "prune": (chains.prune, (300, 64) if dry else (10_000, 3584)),
        "recall": (chains.recall, (4096, 16) if dry else (10**6, 64)),
        "site": (chains.site, (2, 4, 64) if dry else (1, 16, 4096)),
        "fetch": (chains.fetch, (4,) if dry else (64,)),
    }
    assert tuple(found) == SEQUENCES
    return found


def _rows(dry: bool) -> list[int]:
    return [3] if dry else [1, 16, 256, 4096]


def _job(op: str, case: Callable[..., None], given: tuple[Any, ...]) -> Job:
    told = ", ".join(_told(x) for x in given)
    return Job(op, f"{op}: {case.__name__}({told})", lambda bench: case(bench, *given))


def _told(x: Any) -> str:
    if isinstance(x, Dims):
        return next(name for name, dims in MODELS.items() if dims == x)
    return str(x).removeprefix("torch.")
