# SPDX-License-Identifier: Apache-2.0
"""block_score in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from tests.ops import compare, samples, scores


@pytest.mark.parametrize("kind", ["mean", "bounds", "bits"])
def test_block_score(kind):
    grid = samples.cover(
        7,
        10,
        batch=(1, 2),
        kv_heads=(1, 2),
        group=(1, 2, 3),
        asked=(1, 3),
        rows=(0, 1, 16, 65, 40),
        dim=(1, 3) if kind == "bits" else (16, 48, 80),
        dtype=(torch.float32, torch.float16),
        key_dtype=(None, torch.float16),
        layout=("plain", "pages"),
        shared=(False, True),
        ragged=(False, True),
        indexed=(None, 30),
        heads=scores.HEADS,
        queries=scores.QUERIES,
        block_size=(1, 1, 4, 20, 1000),
        scale=(1.0, 0.125),
    )
    for i, case in enumerate(grid):
        args, kwargs = scores.block_score(i, kind=kind, **case)
        with headrace.use_backend("triton"):
            compare.check("block_score", args, kwargs, case, floor=0.1)
