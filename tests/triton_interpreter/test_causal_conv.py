# SPDX-License-Identifier: Apache-2.0
"""causal_conv in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import headrace
from tests.ops import compare, sequences


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [(0,), (1,), (2, 0, 21)])
@pytest.mark.parametrize(("taps", "silu"), [(1, False), (4, True)])
def test_causal_conv(lengths, taps, silu, dtype):
    args, _ = sequences.causal_conv(1, lengths, taps=taps, bias=silu, dtype=dtype)
    kwargs = {"silu": silu}
    want = compare.reference_out("causal_conv", args, kwargs)
    state = compare.reference("causal_conv", args, kwargs)[0].to(dtype)
    with headrace.use_backend("triton"):
        compare.check("causal_conv", args, kwargs, want=want)
    assert compare.same_bits(args[3], state)
