# SPDX-License-Identifier: Apache-2.0
"""The ops that compare and move rows on a GPU: what the reference gives, and graphs that replay."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

import headrace
from headrace import ops
from tests.ops import compare, survivors

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "cases.py")))
DEVICE = "cuda"
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def run(op, call):
    with headrace.use_backend("triton"):
        out = compare.run(op, *cases.moved(call, DEVICE))
    torch.cuda.synchronize()
    return tuple(x.cpu() for x in out)


@pytest.mark.parametrize("metric", survivors.METRICS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
def test_similarity(dtype, metric):
    for i, against in enumerate(survivors.REFERENCES):
        call = survivors.similarity(i, 2, 9, 65, 1152, metric, dtype, against=against)
        compare.check("similarity", *call, got=run("similarity", call), floor=0.1)
    near = survivors.similarity(5, 2, 9, 13, 96, metric, dtype, radius=1)
    compare.check("similarity", *near, got=run("similarity", near), floor=0.1)
    for size in (0, 14):
        call = survivors.similarity(
            6, 2, 270, 480, 3, metric, dtype, patch_height=size, patch_width=size
        )
        compare.check("similarity", *call, got=run("similarity", call), floor=0.1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("merged", [False, True])
def test_compact(merged, dtype):
    for i, masked in enumerate((True, False)):
        call = survivors.compact(
            i, 2, 3, 5000, 700, dtype, masked, merged=merged, weighted=masked,
            capacity=1000 if masked else None,
        )  # fmt: skip
        compare.check("compact", *call, got=run("compact", call))


@pytest.mark.parametrize("op", ["compact_inplace", "scatter_back"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.int64], ids=str)
def test_moves(op, dtype):
    args, _ = getattr(survivors, op)(7, size=4000, depth=3000, dtype=dtype)
    want = args[0].clone()
    ops.specs()[op].reference(want, *args[1:])
    moved = [x.to(DEVICE) for x in args]
    with headrace.use_backend("triton"):
        getattr(torch.ops.headrace, op)(*moved)
    assert compare.same_bits(moved[0].cpu(), want)


def test_a_graph_of_the_whole_chain_replays():
    """Nothing waits for the device: other features, other counts, the same graph."""
    x, ref = (torch.randn(2000, 512, device=DEVICE) for _ in range(2))

    def step():
        score = ops.similarity(x, ref)
        return ops.compact(x, *ops.select(score, "threshold", threshold=0.0, lowest=True))

    with headrace.use_backend("triton"):
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = step()
        for _ in range(3):
            x.normal_()
            ref.copy_(torch.randn_like(ref) + x * torch.rand(2000, 1, device=DEVICE))
            graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(held, step(), strict=True))
