# SPDX-License-Identifier: Apache-2.0
"""Other dtypes and sizes of the ops, beside those that their benchmarks are about."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from . import adapters, deltas, evictions, masses, scores, sequences, sparse, survivors
from .case import MODELS, Case

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
QWEN, WAN = MODELS["qwen2.5-vl-7b"], MODELS["wan-1.3b"]


def over_pages() -> dict[str, list[Callable[[], Case]]]:
    """Of the ops over pages and their states."""
    from .shapes import append, merge_states

    return {
        "append": [
            partial(append, n, d, dims)
            for d, dims in ((torch.float32, QWEN), (torch.float16, WAN))
            for n in (1, 16, 300)
        ],
        "merge_states": [
            *(partial(merge_states, n, d) for d in DTYPES[::2] for n in (1, 64, 256)),
            *(partial(merge_states, n, torch.float32, WAN) for n in (16, 2048)),
        ],
        "append_absorb": [
            partial(evictions.append_absorb, *shape, d)
            for d in DTYPES[1:]
            for shape in ((1, 1), (8, 16))
        ],
    }


def shapes() -> dict[str, list[Callable[[], Case]]]:
    """By op, what is measured when it is not to be quick."""
    f32, f16 = torch.float32, torch.float16
    few = [(196, 1152), (1000, 128), (8, 64)]
    return {
        **over_pages(),
        "causal_conv": [
            partial(sequences.causal_conv, n, 1536, d) for d in (f32, f16) for n in (1, 64, 1000)
        ],
        "linear_attention": [
            partial(sequences.linear_attention, n, d) for d in (f32, f16) for n in (1, 100, 1024)
        ],
        "gated_delta_rule": [
            partial(deltas.gated_delta_rule, n, d) for d in (f32, f16) for n in (1, 100)
        ],
        "frame_delta_rule": [
            partial(deltas.frame_delta_rule, 1, n, d) for d in (f32, f16) for n in (16, 220)
        ],
        "hstu_attention": [
            partial(sequences.hstu_attention, n, 256, None, d)
            for d in (f32, f16)
            for n in (100, 1024)
        ],
        "pooled_block_mask": [partial(sparse.pooled_block_mask, n, f16) for n in (1024, 4096)],
        "lora": [
            *(
                partial(adapters.stack, *mix, 16, d)
                for d in (f32, f16)
                for mix in ((1, 1, 4096), (8, 8, 3584), (64, 4, 1536), (256, 1, 4096))
            ),
            *(partial(adapters.stack, 512, 1, 4096, rank) for rank in (16, 64)),
            partial(adapters.stack, 512, 1, 4096, 64, exact=False),
        ],
        "block_score": [
            partial(scores.retrieve, n, 1, kind, d)
            for kind in scores.KINDS
            for d in DTYPES
            for n in (2**14, 2**17)
        ],
        "select": [
            *(
                partial(scores.select, *x, "top_k", d)
                for d in DTYPES[::2]
                for x in ((1, 15625, 64), (1024, 196, 60))
            ),
            *(
                partial(scores.select, *x)
                for x in ((1, 64, 8), (1, 1000, 64), (64, 64, 12), (256, 32, 8))
            ),
            *(partial(scores.select, *x, "mass") for x in ((64, 64, 0), (256, 32, 0))),
        ],
        "similarity": [
            partial(survivors.features, *x, d)
            for d in DTYPES
            for x in [*few, (333, 77), (1000, 33)]
        ],
        "compact": [
            partial(survivors.gather, *x, merged)
            for x in ((150, 128), (1000, 77))
            for merged in (False, True)
        ],
        "segment_reduce": [
            partial(masses.segment_reduce, n, kind, d)
            for n in (64, 256)
            for kind in masses.STATES
            for d in DTYPES[:2]
        ],
        "compact_inplace": [partial(survivors.compact_inplace, *x, d) for d in DTYPES for x in few],
        "scatter_back": [partial(survivors.scatter_back, *x, d) for d in DTYPES for x in few],
        "attention_mass": [
            partial(masses.attention_mass, *x, False, d)
            for d in DTYPES
            for x in ((500, 1), (4096, 1), (1000, 16), (4096, 32))
        ],
        "assign": [
            partial(masses.assign, *x, d)
            for d in DTYPES
            for x in (
                (196, 0, 64, "cos"),
                (2048, 64, 128, "dot"),
                (1000, 333, 1152, "cos"),
                (2048, 64, 128, "l2"),
                (196, 60, 1152, "l2"),
            )
        ],
    }
