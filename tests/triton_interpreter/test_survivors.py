# SPDX-License-Identifier: Apache-2.0
"""The ops that compare and move rows in Triton's interpreter, on small shapes; run with
TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from headrace import ops
from tests.ops import compare, samples, survivors

SOME = (torch.float32, torch.float16)


def same(op, args, kwargs, label=""):
    with headrace.use_backend("triton"):
        compare.check(op, args, kwargs, label, floor=0.1)


@pytest.mark.parametrize("metric", survivors.METRICS)
def test_similarity(metric):
    common = dict(frames=(1, 2), dtype=(*SOME, torch.uint8), layout=samples.LAYOUTS)
    rows = samples.cover(
        8, 6, height=(1, 5), width=(0, 1, 13), depth=(0, 1, 16, 65, 600),
        against=survivors.REFERENCES, wide_ref=(False, True), **common,
    )  # fmt: skip
    near = samples.cover(9, 3, height=(1, 4), width=(3, 5), depth=(17,), radius=(1, 2), **common)
    patches = samples.cover(
        10, 5, height=(1, 30), width=(1, 31), depth=(1, 3, 16), wide_ref=(False, True),
        against=("aligned", "frame", "row"), patch_height=(0, 1, 14), patch_width=(0, 2, 14),
        **common,
    )  # fmt: skip
    for i, case in enumerate((*rows, *near, *patches)):
        same("similarity", *survivors.similarity(i, metric=metric, **case), case)


@pytest.mark.parametrize("merged", [False, True])
def test_compact(merged):
    grid = samples.cover(
        11,
        10,
        batch=(1, 2),
        heads=(1, 2),
        size=(0, 1, 17, 40),
        depth=(1, 16, 37),
        dtype=SOME if merged else (*SOME, torch.uint8, torch.int64),
        masked=(False, True),
        share=(0.0, 0.4, 1.0),
        shared=(False, True),
        weighted=(False, True),
        layout=("plain", "rows"),
        capacity=(None, 0, 9, 50),
    )
    for i, case in enumerate(grid):
        same("compact", *survivors.compact(i, merged=merged, **case), case)


@pytest.mark.parametrize("op", ["compact_inplace", "scatter_back"])
def test_moves(op):
    grid = samples.cover(
        12,
        8,
        batch=(1, 2),
        heads=(1, 2),
        size=(0, 1, 17, 70),
        depth=(1, 16, 37),
        dtype=(*SOME, torch.uint8, torch.int64),
        share=(0.0, 0.4, 1.0),
        shared=(False, True),
        counted=(True, False),
        layout=("plain", "rows"),
    )
    for i, case in enumerate(grid):
        args, _ = getattr(survivors, op)(i, **case)
        want, got = args[0].clone(), survivors.same_place(args[0])
        missing = (4 if op == "scatter_back" else 3) - len(args)
        ops.specs()[op].reference(want, *args[1:], *[None] * missing)
        with headrace.use_backend("triton"):
            getattr(torch.ops.headrace, op)(got, *args[1:])
        assert compare.same_bits(got, want)
        if op == "scatter_back":
            ops.specs()[op].reference(want, want.flip(2), *args[2:], *[None] * missing, True)
            with headrace.use_backend("triton"):
                torch.ops.headrace.scatter_back(got, got.flip(2), *args[2:], aligned=True)
            assert compare.same_bits(got, want)


def test_rows_that_do_not_exist_are_left_out():
    """A GPU does not look before it moves."""
    x, index = torch.randn(9, 4), torch.tensor([1, 9, -1], dtype=torch.int32)
    with headrace.use_backend("triton"):
        y, sizes, kept, count = ops.compact(x, index)
        assert torch.equal(y[0], x[1])
        assert not y[1:].any()
        assert sizes.tolist() == [1.0, 0.0, 0.0]
        assert kept.tolist() == [1, -1, -1]
        assert count == 3
        moved, back = x.clone(), x.clone()
        ops.compact_inplace(moved, index)
        assert torch.equal(moved[1:], x[1:])
        assert torch.equal(moved[0], x[1])
        ops.scatter_back(back, torch.zeros(3, 4), index)
        assert torch.equal(back[[0, *range(2, 9)]], x[[0, *range(2, 9)]])
        assert not back[1].any()
