# SPDX-License-Identifier: Apache-2.0
"""Views that no memory would write, and bits that know no neighbours, in Triton's interpreter; and
what "auto" makes of both kernels, the CUDA one in its emulation. See test_triton_interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 and a process of its own", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

from headrace.kernels.attention import cuda
from hypothesis import given, settings

import headrace
from tests.gpu_compile import emulation
from tests.ops import compare, samples, views
from tests.ops.paged import far, permuted, row_alone
from tests.ops.samples import StreamShape
from tests.ops.test_paged_attention import alone, random_calls

OP = "paged_attention"


def run(call, op=OP):
    with headrace.use_backend("triton"):
        return compare.run(op, *call)


def same(a, b):
    return all(map(compare.same_bits, a, b))


@settings(max_examples=15)
@given(random_calls(8, 4, (16, 48), 3, 100))
def test_random_tables(call):
    args, kwargs, label = call
    compare.check(OP, args, kwargs, label, got=run((args, kwargs)))


def test_far_orders_and_reaches():
    """Among them entries that begin behind the oldest row of a chunk."""
    args, kwargs = samples.paged(3, [StreamShape(40, 20)], page_size=16, dim=16, kv_heads=1)
    want = run((args, kwargs))
    for moved in far(args, kwargs):
        assert same(run(moved), want), moved[0][3]


@pytest.mark.parametrize(("fmt", "split"), [(None, 20), (torch.int8, 4096)], ids=str)
def test_a_permutation_of_the_pages_keeps_the_bits(fmt, split):
    streams = [StreamShape(60, 3, 40, 4), StreamShape(20, 1)]
    call = samples.paged(8, streams, page_size=16, dim=16, dtype=torch.float16, split=split)
    args, kwargs = call if fmt is None else views.quantised(call, fmt)
    turn = torch.randperm(args[1].shape[0], generator=samples.rng(8))
    assert same(run(permuted(args, kwargs, turn)), run((args, kwargs)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_row_of_a_chunk_has_the_bits_it_has_alone(dtype):
    """As long as no view is cut: a chunk's splits are those of all its rows together."""
    args, kwargs = samples.paged(9, [StreamShape(60, 9, 30, 3)], page_size=16, dim=16, dtype=dtype)
    o, lse = run((args, kwargs))
    for row in (0, 4, 8):
        one = run((row_alone(args, row), kwargs))
        assert same(one, (o[row : row + 1], lse[row : row + 1])), row


@pytest.mark.parametrize(("q_len", "dtype"), [(1, torch.float32), (40, torch.float16)], ids=str)
@pytest.mark.parametrize("blocks", [None, "batch heads"])
def test_dense_attention_has_the_same_bits_alone_and_in_a_batch(blocks, q_len, dtype):
    """A head of a batch alone: its queries, its keys, its part of the block mask."""
    more = dict(blocks=blocks, block_size=16, window=50, sinks=3, split=40, learned=True)
    args, kwargs = samples.dense(3, 2, 2, 2, q_len, 90, 16, dtype, **more)
    o, lse = run((args, kwargs), "attention")
    compare.check("attention", args, kwargs, got=(o, lse))
    for b, h in ((0, 1), (1, 0)):
        heads = slice(2 * h, 2 * h + 2)
        q, k, v = args[0][b : b + 1, heads], args[1][b : b + 1, [h]], args[2][b : b + 1, [h]]
        own = kwargs | {"sink_logits": kwargs["sink_logits"][heads].contiguous()}
        if blocks:
            own["block_mask"] = kwargs["block_mask"][b : b + 1, heads]
        got = run(((q, k, v), own), "attention")
        assert same(got, (o[b : b + 1, heads], lse[b : b + 1, heads])), (b, h)


needs_compiler = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler on PATH")
MIXED = [
    StreamShape(50, 1, 30, 4), StreamShape(40, 20), StreamShape(0, 0), StreamShape(30, 8, 20),
    StreamShape(31, 9), StreamShape(80, 3, 40, 2), StreamShape(1, 1),
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("form", ["plain", "codes", "lists"])
def test_auto_gives_a_stream_the_same_bits_alone_and_in_any_batch(form):
    """Streams of few rows and of many side by side: what serves a stream is its own affair."""
    args, kwargs = samples.paged(4, MIXED, page_size=16, dim=16, learned=True, split=20)
    if form == "codes":
        args, kwargs = views.quantised((args, kwargs), torch.int8)
    if form == "lists":
        args, kwargs = views.per_head(4, (args, kwargs), True)
    got = emulation.launch(OP, (args, kwargs), cuda.shared)
    compare.check(OP, args, kwargs, form, got=got)
    if form == "plain":
        for b in range(len(MIXED)):
            one, rows = alone(args, kwargs, b)
            if rows.stop > rows.start:
                mine = emulation.launch(OP, (one, kwargs), cuda.shared)
                assert same(mine, (got[0][rows], got[1][rows])), b
        hinted = emulation.launch(OP, (args, kwargs | {"max_rows": 20}), cuda.shared)
        assert same(hinted, got)
