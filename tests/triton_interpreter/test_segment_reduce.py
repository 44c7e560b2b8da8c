# SPDX-License-Identifier: Apache-2.0
"""segment_reduce in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from tests.ops import masses, samples


def test_segment_reduce(monkeypatch):
    from headrace.kernels.score import triton_segment

    grid = samples.cover(
        7,
        10,
        rows=(0, 1, 17, 40),
        heads=(1, 2),
        dim=(1, 16, 33, 64),
        segments=(0, 1, 5),
        dtype=(torch.float32, torch.float16),
        layout=("plain", "rows"),
        state_layout=("plain", "wide"),
        order=("any", "runs"),
        states=(masses.STATES, masses.STATES, ("unit",), ("count",), ("low",)),
        bounds=(None, torch.float32),
        fresh=(False, True),
        columns=(1024, 16),
    )
    for i, case in enumerate(grid):
        monkeypatch.setattr(triton_segment, "COLUMNS", case.pop("columns"))
        args, kwargs = masses.segment_reduce(i, **case)
        with headrace.use_backend("triton"):
            masses.check_segments(args, kwargs, case)
