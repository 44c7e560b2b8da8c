# SPDX-License-Identifier: Apache-2.0
"""gated_delta_rule in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

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
        dict(),
        dict(lengths=(1,), dim=80),
        dict(lengths=(5, 2), group=1, scale=0.5),
        dict(lengths=()),
    ],
    ids=str,
)
def test_gated_delta_rule(case, dtype):
    args, kwargs = sequences.gated_delta_rule(1, dtype=dtype, **case)
    want = compare.reference_out("gated_delta_rule", args, kwargs)
    kept = compare.reference("gated_delta_rule", args, kwargs)[0]
    with headrace.use_backend("triton"):
        got = compare.run("gated_delta_rule", args, kwargs)
    compare.check("gated_delta_rule", args, kwargs, got=got, want=want)
    rows = args[7].long()
    assert compare.distance(args[5][rows], kept[rows]).rms < 1e-5
