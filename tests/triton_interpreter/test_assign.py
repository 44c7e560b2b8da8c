# SPDX-License-Identifier: Apache-2.0
"""assign in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from tests.ops import masses, samples


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("metric", masses.METRICS)
def test_assign(metric):
    grid = samples.cover(
        7,
        7,
        batch=(1, 2),
        rows=(0, 1, 33, 40),
        candidates=(0, 1, 32, 50),
        dim=(1, 3) if metric == "hamming" else (16, 48, 80),
        dtype=(torch.float32, torch.float16),
        layout=("plain", "wide"),
        shared=(False, True),
        ragged=(False, True),
        values=("normal", "ties"),
        causal=(False, True),
        threshold=(None, 0.3),
    )
    for i, case in enumerate(grid):
        args, kwargs = masses.assign(i, metric=metric, **case)
        with headrace.use_backend("triton"):
            masses.check_assign(args, kwargs, case)
    for values, rows, how in (("ties", 40, "causal"), ("normal", 35, "bipartite")):
        dim = 1 if metric == "hamming" else 16
        args, kwargs = masses.assign(
            9, rows=rows, candidates=None, dim=dim, metric=metric, values=values, **{how: True}
        )
        with headrace.use_backend("triton"):
            masses.check_assign(args, kwargs, how)
