# SPDX-License-Identifier: Apache-2.0
"""append_absorb in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import headrace
from headrace import ops
from tests.ops import compare, evictions, samples

NAME = "append_absorb"


@pytest.mark.parametrize(
    "case",
    [
        {"lengths": (0,)},
        {"lengths": (), "rotary": None},
        {"raw": True, "counted": True, "page_dtype": torch.float16},
        {"feature": 2, "decay": True, "axes": "turns"},
        {"feature": 0, "rotary": 6, "normed": False, "page_dtype": torch.int8},
        {"held": "all", "rotary": None, "each": False, "page_dtype": torch.float8_e4m3fn},
        {"held": "all", "raw": True, "decay": True, "dim": 80, "lengths": (17, 2)},
        {"dtype": torch.float16, "scattered": True, "layout": "wide", "page_layout": "sliced"},
    ],
    ids=str,
)
def test_append_absorb(case):
    args, kwargs = evictions.append_absorb(1, **case)
    spec = ops.specs()[NAME]
    bound, axes = compare.bind(NAME, args, kwargs)
    changed = [n for n in spec.mutates if bound[n] is not None]
    want = dict(zip(changed, compare.reference(NAME, args, kwargs), strict=True))
    with headrace.use_backend("triton"):
        compare.run(NAME, args, kwargs)
    rows = args[9].long()
    for name in ("state", "norm"):
        if bound[name] is not None:
            limit = spec.tolerance(torch.float32, axes, bound)
            far = compare.distance(bound[name][rows], want[name][rows], floor=1.0)
            assert max(far.rms, far.peak / 8) <= limit, name
    if bound["count"] is not None:
        assert torch.equal(bound["count"], want["count"])
    for name in ("k_pages", "v_pages"):
        got, exact = bound[name], want[name]
        if got.dtype in samples.DTYPES:
            limit = ops.specs()["append"].tolerance(got.dtype, {}, {})
            assert compare.distance(got, exact).rms <= limit, name
        else:  # a rounding of the angle may tip a tie
            far = (got.view(torch.int8).long() - exact.view(torch.int8).long()).abs()
            assert far.max() <= 1, name
            assert (far > 0).double().mean() < 0.02, name
    for name in ("k_scale", "v_scale"):
        if bound[name] is not None:
            torch.testing.assert_close(
                bound[name], want[name].float(), rtol=1e-5, atol=0, equal_nan=True
            )
