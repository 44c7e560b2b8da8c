# SPDX-License-Identifier: Apache-2.0
"""attention_mass in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from tests.ops import compare, masses, samples


def test_attention_mass():
    grid = samples.cover(
        7,
        12,
        batch=(1, 2),
        kv_heads=(1, 2),
        group=(1, 3),
        asked=(1, 5, 33),
        keys=(0, 1, 40, 65),
        dim=(16, 48, 64),
        dtype=(torch.float32, torch.float16),
        layout=("plain", "wide"),
        ragged=(False, True),
        known=(False, False, True),
        past=(None, 20),
        sharp=(1.0, 12.0),
        causal=(True, False),
        reduce=("mean", "sum", "max"),
        exclude=(0, 7, 500),
        pool=(1, 3, 7),
        pooling=("mean", "max"),
        decay=(1.0, 0.9),
        scale=(None, 0.3),
    )
    for i, case in enumerate(grid):
        args, kwargs = masses.attention_mass(i, **case)
        with headrace.use_backend("triton"):
            compare.check("attention_mass", args, kwargs, case, floor=1e-3)
