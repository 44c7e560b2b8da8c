# SPDX-License-Identifier: Apache-2.0
"""The ops that score and select on a GPU: what the reference gives, and graphs that replay."""

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
from tests.ops import compare, scores

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "cases.py")))
DEVICE = "cuda"


def run(op, call):
    with headrace.use_backend("triton"):
        out = compare.run(op, *cases.moved(call, DEVICE))
    torch.cuda.synchronize()
    return tuple(x.cpu() for x in out)


@pytest.mark.parametrize("size", [1, 65, 4097, 70_001])
@pytest.mark.parametrize("policy", scores.POLICIES)
def test_select(policy, size):
    for i, values in enumerate(("normal", "ties", "odd")):
        options = dict(ragged=i > 0, ends=i > 0, forced=i == 2, mass=0.7, share=0.3)
        call = scores.select(i, 2, 3, size, policy, values, **options)
        want = compare.reference("select", *call)
        for got, exact in zip(run("select", call), want, strict=True):
            assert torch.equal(got, exact.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mean", "bounds", "bits"])
def test_block_score(kind, dtype):
    dim = 1 if kind == "bits" else 128
    for i, heads in enumerate(scores.HEADS):
        for block_size in (1, 16):
            call = scores.block_score(
                i, kind=kind, dim=dim, rows=700, dtype=dtype, heads=heads, ragged=i > 1,
                queries=scores.QUERIES[i % 3], block_size=block_size,
            )  # fmt: skip
            compare.check("block_score", *call, got=run("block_score", call), floor=0.1)


def test_a_graph_of_scoring_and_selecting_replays():
    """Nothing waits for the device: other queries and keys, the same graph."""
    (q, keys), _ = cases.moved(scores.block_score(1, rows=700, dim=128), DEVICE)

    def step():
        return ops.select(ops.block_score(q, keys), k=32, first=1, last=2)

    with headrace.use_backend("triton"):
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            index, count = step()
        for seed in (2, 3):
            (other, rows), _ = scores.block_score(seed, rows=700, dim=128)
            q.copy_(other)
            keys.copy_(rows)
            graph.replay()
            torch.cuda.synchronize()
            want = step()
            assert torch.equal(index, want[0])
            assert torch.equal(count, want[1])
