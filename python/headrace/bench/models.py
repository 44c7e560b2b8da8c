# SPDX-License-Identifier: Apache-2.0
"""What is measured by the sizes of a model: every op whose shapes follow from them, in its dtype.

Ops of other architectures (convolutions, recurrent states, HSTU) have no shapes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from . import adapters, evictions, masses, scores, sparse, survivors
from .attention import decode, prefill
from .case import Case, Dims
from .shapes import append, linear, merge_states

Makers = dict[str, list[Callable[[], Case]]]


def of_model(dims: Dims, op: str | None, quick: bool) -> Iterator[Case]:
    """Cases by the sizes of a model, made one at a time."""
    return (make() for make in to_make(dims, op, quick))


def to_make(dims: Dims, op: str | None, quick: bool) -> list[Callable[[], Case]]:
    """What makes each of them."""
    makers = _layers(dims, quick) | _cached(dims, quick) | _tokens(dims, quick)
    return [make for name, some in makers.items() if op in (None, name) for make in some]


def _layers(dims: Dims, quick: bool) -> Makers:
    """Attention, products and adapters of a layer."""
    dtype, width = dims.dtype, dims.hidden
    cached = [(1, 4096)] if quick else [(b, c) for c in (1024, 16384) for b in (1, 8)]
    lengths = [2048] if quick else [4096, 16384]
    fed = [1, 256] if quick else [1, 16, 256, 4096]
    rows = [1] if quick else [1, 64]
    heads = dims.heads * dims.dim
    qkv = heads + 2 * dims.kv_heads * dims.dim
    products = [(width, qkv), (heads, width), (width, dims.wide), (dims.wide, width)]
    return {
        "paged_attention": [partial(decode, b, c, dtype, None, dims) for b, c in cached],
        "attention": [
            *(partial(prefill, n, 512, dtype, not quick, dims) for n in lengths),
            partial(sparse.sparse, lengths[0], False, dtype, not quick, dims),
        ],
        "pooled_block_mask": [partial(sparse.pooled_block_mask, n, dtype, dims) for n in lengths],
        "append": [partial(append, n, dtype, dims) for n in fed],
        "append_absorb": [partial(evictions.append_absorb, n, 1, dtype, dims) for n in (1, 8)],
        "merge_states": [partial(merge_states, n, dtype, dims) for n in fed],
        "linear": [partial(linear, n, *product, dtype) for product in products for n in rows],
        "lora": [partial(adapters.stack, n, n, width, 16, dtype) for n in rows],
        "lora_rows": [partial(adapters.rows, n, n, width) for n in rows],
    }


def _cached(dims: Dims, quick: bool) -> Makers:
    """Scores, summaries and choices over the keys of a long stream."""
    dtype, tokens = dims.dtype, 2**14 if quick else 2**18
    prompts = [(4096, 1), (4096, 32)] if quick else [(4096, 1), (32768, 1), (32768, 32)]
    return {
        "block_score": [
            *(partial(scores.retrieve, tokens, 1, kind, dtype, dims) for kind in scores.KINDS),
            partial(scores.bits, tokens, 1, dims),
        ],
        "select": [
            partial(scores.select, dims.kv_heads, tokens // scores.SIZE, scores.KEPT),
            partial(scores.select, dims.kv_heads, tokens // scores.SIZE, 0, "mass"),
        ],
        "segment_reduce": [
            partial(masses.segment_reduce, n, kind, dtype, dims)
            for kind in masses.STATES
            for n in (256, tokens)
        ],
        "attention_mass": [
            partial(masses.attention_mass, *prompt, False, dtype, dims) for prompt in prompts
        ],
    }


def _tokens(dims: Dims, quick: bool) -> Makers:
    """Comparing, merging and moving tokens of a frame, or of as many frames as a prompt has."""
    dtype, width = dims.dtype, dims.hidden
    counts = [1000] if quick else [196, 10_000]
    both = [(n, width, dtype) for n in counts]
    return {
        "similarity": [partial(survivors.features, *shape) for shape in both],
        "compact": [
            *(partial(survivors.prune, n, width) for n in counts),
            *(partial(survivors.gather, n, width, m) for n in counts for m in (False, True)),
        ],
        "compact_inplace": [partial(survivors.compact_inplace, *shape) for shape in both],
        "scatter_back": [partial(survivors.scatter_back, *shape) for shape in both],
        "assign": [
            partial(masses.assign, n, 0, dims.dim, "cos", dtype)
            for n in ([576] if quick else [576, 2916])
        ],
    }
