# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ attention on a CPU, as in test_cuda_emulated: views that no memory would write, bits
that know no neighbours, and which kernel "auto" leaves a stream to.
"""

from __future__ import annotations

import pytest
import torch
from headrace.kernels.attention import cuda
from headrace.kernels.common import cuda as device
from hypothesis import given, settings

from headrace import ops
from headrace.ops import registry
from tests.gpu_compile import emulation
from tests.gpu_compile.emulation import launch
from tests.ops import compare, samples, views
from tests.ops.paged import far, permuted, row_alone
from tests.ops.samples import StreamShape
from tests.ops.test_paged_attention import random_calls

OP = "paged_attention"
emulated = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler on PATH")


def same(a, b):
    return all(map(compare.same_bits, a, b))


@emulated
@settings(max_examples=15)
@given(random_calls(20, 6, (16, 48, 64), 4, 300))
def test_random_tables(call):
    args, kwargs, label = call
    compare.check(OP, args, kwargs, label, got=launch(OP, (args, kwargs)))


@emulated
def test_far_orders_and_reaches():
    """Among them entries that begin behind the oldest row of a chunk."""
    args, kwargs = samples.paged(3, [StreamShape(40, 20)], page_size=16)
    want = launch(OP, (args, kwargs))
    for moved in far(args, kwargs):
        assert same(launch(OP, moved), want), moved[0][3]


@emulated
@pytest.mark.parametrize("fmt", [None, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_a_permutation_of_the_pages_keeps_the_bits(dtype, fmt):
    streams = [StreamShape(257, 9, 100, 4), StreamShape(67, 1)]
    call = samples.paged(8, streams, page_size=32, dtype=dtype)
    args, kwargs = call if fmt is None else views.quantised(call, fmt)
    turn = torch.randperm(args[1].shape[0], generator=samples.rng(8))
    assert same(launch(OP, permuted(args, kwargs, turn)), launch(OP, (args, kwargs)))


@emulated
@pytest.mark.parametrize("split", [20, 4096])
@pytest.mark.parametrize("window", [None, 13, 40])
def test_a_row_of_a_chunk_has_the_bits_it_has_alone(window, split):
    args, kwargs = samples.paged(2, [StreamShape(90, 9, window, 3)], page_size=32, split=split)
    o, lse = launch(OP, (args, kwargs))
    for row in range(9):
        one = launch(OP, (row_alone(args, row), kwargs))
        assert same(one, (o[row : row + 1], lse[row : row + 1])), row


@emulated
@pytest.mark.parametrize("lists", [None, "pages"])
@pytest.mark.parametrize("workspace", [cuda.WORKSPACE, 30_000])
def test_streams_of_many_rows_may_be_left_to_another(workspace, lists, monkeypatch):
    """What is served has the bits of a launch that serves all; nothing else is written."""
    monkeypatch.setattr(cuda, "WORKSPACE", workspace)
    counts = [1, 9, 0, 3, 40, 8, 2] + 35 * [1] + [10, 1]
    streams = [StreamShape(n + 20, n, 17) for n in counts]
    args, kwargs = samples.paged(6, streams, page_size=16, dim=16, kv_heads=2, group=1)
    if lists is not None:
        args, kwargs = views.per_head(6, (args, kwargs), True)
    whole = launch(OP, (args, kwargs))
    few = launch(OP, (args, kwargs), lambda *a: cuda.paged_attention(*a, few=cuda.FEW))
    served = torch.tensor([n <= cuda.FEW for n in counts]).repeat_interleave(torch.tensor(counts))
    for some, every in zip(few, whole, strict=True):
        assert compare.same_bits(some[served], every[served])
        assert some[~served].isnan().all()


@pytest.fixture
def launched(monkeypatch):
    """What "auto" launches: names of backends, each with the rows beyond which it looks."""
    triton = pytest.importorskip("headrace.kernels.attention.triton", reason="no triton")
    made = []
    monkeypatch.setattr(
        cuda, "paged_attention", lambda b, a, o, library=None, few=0: made.append(("cuda", few))
    )
    monkeypatch.setattr(
        triton, "paged_attention", lambda b, a, o, few=0: made.append(("triton", few))
    )
    return made


@pytest.mark.parametrize(
    ("rows", "hint", "want"),
    [
        ([1], None, [("cuda", 0)]),
        ([8], None, [("cuda", 0)]),
        ([1] * 8, None, [("cuda", 0)]),
        ([9], None, [("triton", 0)]),
        ([500], 500, [("triton", 0)]),
        ([1] * 9, None, [("cuda", 8), ("triton", 8)]),  # the host does not know
        ([1] * 9, 1, [("cuda", 0)]),
        ([8] * 9, 8, [("cuda", 0)]),
        ([1, 500], None, [("cuda", 8), ("triton", 8)]),
        ([1, 500], 500, [("cuda", 8), ("triton", 8)]),
    ],
)
def test_what_auto_launches(rows, hint, want, launched):
    streams = [StreamShape(n, n) for n in rows]
    args, kwargs = samples.paged(1, streams, dim=16, page_size=16)
    bound, axes = compare.bind(OP, args, kwargs | {"max_rows": hint})
    cuda.shared(bound, axes, [])
    assert launched == want


def test_auto_goes_by_what_runs_here(monkeypatch):
    """And by nothing else: the sizes of a call are not asked."""
    for runs, module in ((True, "cuda"), (False, "triton")):
        monkeypatch.setattr(device, "available", lambda runs=runs: runs)
        for spec in ops.specs().values():
            if spec.gpu != ("triton", "cuda"):
                continue
            kernel = registry._suited(spec)
            assert f".{spec.family}.{module}" in kernel.__module__, spec.name
            shared = runs and spec.name == OP
            assert kernel.__name__ == ("shared" if shared else spec.name)
