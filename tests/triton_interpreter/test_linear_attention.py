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
        # From here on in chunks.
        {"lengths": (40,)},
        {"lengths": (67, 0, 1), "rope": True, "raw": True, "decay": True, "dim": 48},
        {"lengths": (33,), "rope": True, "feature": 2, "layout": "wide"},
        {"lengths": (50,), "normed": False, "decay": True, "feature": 0, "dim": 256},
        {"lengths": (41, 3), "keys": False, "rope": True, "decay": True},
        {"lengths": (600,), "keys": False, "heads": 1, "kv_heads": 1, "dim": 16},
        {"lengths": (9, 1100, 512, 70), "decay": True, "heads": 1, "kv_heads": 1, "dim": 16},
        {"lengths": (513,), "rope": True, "raw": True, "heads": 1, "kv_heads": 1, "dim": 16},
        {"lengths": (600,), "rope": True, "decay": True, "heads": 1, "kv_heads": 1, "dim": 48},
        {"lengths": (1025,), "normed": False, "heads": 1, "kv_heads": 1, "v_dim": 80},
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


def test_a_stream_is_the_same_alone_and_beside_others():
    """Bits of streams of one token, few tokens, chunks and segments, in a batch and alone."""
    lengths = (1, 70, 9, 600)
    args, kwargs = sequences.linear_attention(3, lengths, 1, 1, 16, 16, decay=True)
    state, norm, ends, rows = args[3:]
    alone = []
    with headrace.use_backend("triton"):
        for b, n in enumerate(lengths):
            one, at = [x[ends[b] : ends[b + 1]] for x in args[:3]], torch.tensor([0, n]).int()
            mine = [x[rows[b : b + 1].long()].clone() for x in (state, norm)]
            row = torch.zeros(1).int()
            alone.append((headrace.ops.linear_attention(*one, *mine, at, row, **kwargs), *mine))
        out = headrace.ops.linear_attention(*args, **kwargs)
    for b, (o, *kept) in enumerate(alone):
        assert compare.same_bits(out[ends[b] : ends[b + 1]], o), b
        for x, y in zip((state, norm), kept, strict=True):
            assert compare.same_bits(x[int(rows[b])], y[0]), b
