# SPDX-License-Identifier: Apache-2.0
"""select in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from tests.ops import compare, samples, scores


def same(args, kwargs):
    want = compare.reference("select", args, kwargs)
    with headrace.use_backend("triton"):
        got = compare.run("select", args, kwargs)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w.int()), kwargs


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("policy", scores.POLICIES)
def test_select(policy):
    grid = samples.cover(
        5,
        6,
        batch=(1, 2),
        heads=(1, 2),
        size=(0, 1, 17, 65, 40, 33),
        values=("normal", "ties", "odd"),
        dtype=(torch.float32, torch.float16),
        ragged=(False, True),
        ends=(False, True),
        forced=(False, True),
        limit=("none", "k", "budget"),
        lowest=(False, True),
        floor=(0, 0, 3),
        capacity=(None, None, 7, 90),
        threshold=(0.5, -1.0),
        share=(0.1, 0.5),
        mass=(0.3, 0.9, 1.0),
    )
    for i, case in enumerate(grid):
        same(*scores.select(i, policy=policy, **case))


@pytest.mark.parametrize("policy", ["top_k", "mass"])
def test_a_row_longer_than_a_program_takes(monkeypatch, policy):
    from headrace.kernels.select import triton as kernels

    monkeypatch.setattr(kernels, "ROW", 16)
    for values in ("normal", "ties"):
        same(*scores.select(3, 1, 1, 75, policy, values, mass=0.6, limit="k"))
