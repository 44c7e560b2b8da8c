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
        # From here on in chunks.
        dict(lengths=(40,)),
        dict(lengths=(67, 0, 1), dim=48, group=1, scale=0.5),
        dict(lengths=(33,), normalize=False, layout="wide"),
        # Several slabs of the head dimension, the last of them not whole.
        dict(lengths=(40,), dim=80, heads=1),
        dict(lengths=(35,), dim=208, heads=1, group=1, v_dim=32),
    ],
    ids=str,
)
def test_gated_delta_rule(case, dtype):
    args, kwargs = sequences.gated_delta_rule(1, dtype=dtype, **case)
    if not case.get("normalize", True):  # longer keys would make the state grow without bound
        args[1].mul_(32**-0.5)
    want = compare.reference_out("gated_delta_rule", args, kwargs)
    kept = compare.reference("gated_delta_rule", args, kwargs)[0]
    with headrace.use_backend("triton"):
        got = compare.run("gated_delta_rule", args, kwargs)
    compare.check("gated_delta_rule", args, kwargs, got=got, want=want)
    rows = args[7].long()
    assert compare.distance(args[5][rows], kept[rows]).rms < 1e-5


def test_chunks_where_keys_repeat_and_the_state_is_forgotten():
    args, kwargs = sequences.gated_delta_rule(2, (64,), 1, 1, 32, 32)
    k, log_decay, beta = args[1], args[3], args[4]
    k[:] = k[:1].clone()  # what a key finds is all that came before it
    beta[:] = 1.0
    log_decay[:32] = 0.0
    log_decay[40] = -torch.inf
    want = compare.reference_out("gated_delta_rule", args, kwargs)
    with headrace.use_backend("triton"):
        got = compare.run("gated_delta_rule", args, kwargs)
    compare.check("gated_delta_rule", args, kwargs, got=got, want=want)


@pytest.mark.parametrize("wide", [False, True])
def test_a_stream_is_the_same_alone_and_beside_others(wide):
    """Bits of streams of one token, few tokens and several chunks, in a batch and alone."""
    lengths = (1, 70, 9, 24)
    args, kwargs = sequences.gated_delta_rule(3, lengths, 1, 1, 144 if wide else 32, 32)
    state, ends, rows = args[5], args[6], args[7]
    alone = []
    with headrace.use_backend("triton"):
        for b, n in enumerate(lengths):
            one, at = [x[ends[b] : ends[b + 1]] for x in args[:5]], torch.tensor([0, n]).int()
            row, mine = torch.zeros(1).int(), state[rows[b : b + 1].long()].clone()
            alone.append((headrace.ops.gated_delta_rule(*one, mine, at, row, **kwargs), mine[0]))
        out = headrace.ops.gated_delta_rule(*args, **kwargs)
    for b, (o, kept) in enumerate(alone):
        assert compare.same_bits(out[ends[b] : ends[b + 1]], o), b
        assert compare.same_bits(state[int(rows[b])], kept), b
