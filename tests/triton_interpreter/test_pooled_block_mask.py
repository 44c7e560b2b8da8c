# SPDX-License-Identifier: Apache-2.0
"""pooled_block_mask in Triton's interpreter, on small shapes; run with TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1 only", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed; pip install triton")

import headrace
from headrace import ops
from tests.ops import compare, samples
from tests.ops.masks import same_choice

SMALL = dict(batch=1, kv_heads=2, group=1, q_len=40, k_len=110, dim=32)
CASES = {
    "causal": dict(block_size=16, batch=2, group=2),
    "both-sides": dict(block_size=64, causal=False, share=0.5),
    "odd": dict(block_size=11, dim=80, q_len=33, k_len=70, kv_heads=1, group=3),
    "all-options": dict(blocks=3, block_size=16, sinks=3, local=20, window=90),
    "both-sides-window": dict(blocks=2, block_size=16, local=2, window=40, causal=False),
    "none": dict(blocks=0, block_size=32),
    "rows-that-see-nothing": dict(q_len=70, k_len=20, block_size=16, sinks=4, local=3),
    "no-queries": dict(q_len=0),
    "no-keys": dict(k_len=0),
    "larger-than-all": dict(block_size=2**40),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_pooled_block_mask(name, dtype):
    args, kwargs = samples.pooled_block_mask(1, dtype=dtype, **{**SMALL, **CASES[name]})
    with headrace.use_backend("triton"):
        same_choice(args, kwargs, ops.pooled_block_mask(*args, **kwargs))


@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_ties_and_bad_keys(blocks):
    gen = samples.rng(1)
    q, k = (torch.randint(-1, 2, (1, 2, n, 16), generator=gen).float() for n in (32, 128))
    kwargs = {"blocks": blocks, "block_size": 8, "causal": False}
    with headrace.use_backend("triton"):
        got = ops.pooled_block_mask(q, k, **kwargs)
        assert torch.equal(got, compare.reference("pooled_block_mask", (q, k), kwargs)[0])
        k[:, :, 50] = torch.nan
        got = ops.pooled_block_mask(q, k, **kwargs)
        same_choice((q, k), kwargs, got)
        assert not got[..., 6].any()


def test_a_row_longer_than_a_program_takes(monkeypatch):
    from headrace.kernels.pooled_block_mask import triton as kernels

    monkeypatch.setattr(kernels, "ROW", 16)
    args, kwargs = samples.pooled_block_mask(2, 1, 1, 1, 12, 200, 16, block_size=4, blocks=11)
    with headrace.use_backend("triton"):
        same_choice(args, kwargs, ops.pooled_block_mask(*args, **kwargs))
        q, k = torch.ones_like(args[0]), torch.ones_like(args[1])
        got = ops.pooled_block_mask(q, k, **kwargs)
        assert torch.equal(got, torch.arange(50).lt(11).expand_as(got))
