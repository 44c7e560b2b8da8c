# SPDX-License-Identifier: Apache-2.0
"""frame_delta_rule in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

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
        {"frames": ((0,),)},
        {"frames": ((33, 1), (), (2, 0, 31))},
        {"rope": False, "layout": "rows"},
        {"decay": False, "update": False, "layout": "swapped"},
        {"dim": 16, "v_dim": 80, "heads": 1, "v_heads": 3},
    ],
    ids=str,
)
def test_frame_delta_rule(case, dtype):
    args, kwargs = sequences.frame_delta_rule(1, dtype=dtype, **case)
    name = "frame_delta_rule"
    want = (*compare.reference_out(name, args, kwargs), *compare.reference(name, args, kwargs))
    with headrace.use_backend("triton"):
        out = compare.run(name, args, kwargs)
    compare.check(name, args, kwargs, got=(*out, *args[4:6]), want=want)
