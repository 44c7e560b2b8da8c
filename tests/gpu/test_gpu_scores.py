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
from tests.ops import compare, masses, scores

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


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("dim", [16, 100, 3584])
def test_segment_reduce(dim, dtype):
    """Sums of runs and of scattered rows, on a device where states stay."""
    for i, order in enumerate(("any", "runs")):
        call = masses.segment_reduce(i, 700, 2, dim, 40, dtype, order=order)
        args, states = cases.moved(call, DEVICE)
        with headrace.use_backend("triton"):
            compare.run("segment_reduce", args, states)
        got = {name: s.cpu() for name, s in states.items()}
        masses.check_segments(*call, got=got)


@DTYPES
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_attention_mass(reduce, dtype):
    for i, options in enumerate(
        (dict(), dict(ragged=True, exclude=33, pool=5), dict(known=True, past=90, causal=False))
    ):
        call = masses.attention_mass(
            i, asked=33, keys=700, dim=(128, 80, 64)[i], dtype=dtype, reduce=reduce, **options
        )
        compare.check("attention_mass", *call, got=run("attention_mass", call), floor=1e-3)


@DTYPES
@pytest.mark.parametrize("metric", masses.METRICS)
def test_assign(metric, dtype):
    dim = 2 if metric == "hamming" else 80
    for i, values in enumerate(("normal", "ties")):
        for options in (dict(), dict(causal=True, ragged=True), dict(bipartite=True)):
            case = dict(candidates=None if "bipartite" in options else 130, values=values)
            call = masses.assign(i, 2, 131, dim=dim, metric=metric, dtype=dtype, **case, **options)
            masses.check_assign(*call, got=run("assign", call))


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
