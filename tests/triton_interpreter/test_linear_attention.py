# SPDX-License-Identifier: Apache-2.0
"""linear_attention in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import headrace
from tests.ops import compare, sequences


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        {"lengths": (0,)},
        {"rope": True, "raw": True},
        {"rope": True, "decay": True, "feature": 2},
        {"normed": False, "decay": True},
        {"keys": False},
    ],
    ids=str,
)
def test_linear_attention(case, dtype):
    args, kwargs = sequences.linear_attention(1, dtype=dtype, **case)
    name = "linear_attention"
    want = (*compare.reference_out(name, args, kwargs), *compare.reference(name, args, kwargs))
    with headrace.use_backend("triton"):
        out = compare.run(name, args, kwargs)
    got = (*out, *(x for x in args[3:5] if x is not None))
    compare.check(name, args, kwargs, got=got, want=want)
