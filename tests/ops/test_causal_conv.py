# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, samples, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check(args, kwargs=None, label="", run=None):
    """Output within tolerance, state equal in every bit, other rows of the state untouched."""
    kwargs = kwargs or {}
    before = args[3].clone()
    want = compare.reference_out("causal_conv", args, kwargs)
    state = compare.reference("causal_conv", args, kwargs)[0]
    got = (run or compare.run)("causal_conv", args, kwargs)
    compare.check("causal_conv", args, kwargs, label, got=got, want=want)
    rows = args[5].long()
    assert compare.same_bits(args[3][rows], state[rows].to(before.dtype))
    rest = [i for i in range(before.shape[0]) if i not in rows.tolist()]
    assert compare.same_bits(args[3][rest], before[rest])


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(isa, dtype):
    grid = samples.cover(
        1,
        36,
        lengths=((0,), (1,), (2, 0, 1), (63,), (64, 65), (), (5, 257, 1)),
        channels=(0, 1, 7, 16, 63, 64, 65, 130),
        taps=(1, 2, 3, 4, 7, 16),
        bias=(True, False),
        silu=(True, False),
        layout=("plain", "rows", "wide"),
    )
    for i, case in enumerate(grid):
        silu = case.pop("silu")
        args, _ = sequences.causal_conv(i, dtype=dtype, **case)
        check(args, {"silu": silu}, case)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_bits_do_not_depend_on_the_chunks(isa, dtype, chunk):
    (x, weight, bias, state, _, rows), _ = sequences.causal_conv(4, (130,), 70, dtype=dtype)
    parts, rolling = [], state.clone()
    for t in range(0, 130, chunk):
        part = x[t : t + chunk]
        indptr = torch.tensor([0, part.shape[0]]).int()
        parts.append(ops.causal_conv(part, weight, bias, rolling, indptr, rows))
    whole = ops.causal_conv(x, weight, bias, state, torch.tensor([0, 130]).int(), rows)
    assert compare.same_bits(torch.cat(parts), whole)
    assert compare.same_bits(rolling, state)


@pytest.mark.parametrize("channels", [1023, 1024, 1025, 2065])
def test_strips_of_channels_and_blocks_of_tokens(isa, channels):
    for i, (taps, lengths) in enumerate(((4, (129, 1, 64, 2)), (7, (5, 128, 65)), (1, (66,)))):
        call = dict(lengths=lengths, channels=channels, taps=taps, dtype=samples.DTYPES[i])
        check(*sequences.causal_conv(i, **call), call)


@given(
    st.lists(st.integers(0, 150), max_size=4),
    st.integers(0, 140),
    st.integers(1, 16),
    st.sampled_from(samples.DTYPES),
    st.sampled_from(_C.available_isas()),
    st.booleans(),
    st.booleans(),
)
def test_random_streams(lengths, channels, taps, dtype, isa, bias, silu):
    args, _ = sequences.causal_conv(
        len(lengths), tuple(lengths), channels, taps=taps, bias=bias, dtype=dtype
    )
    with headrace.use_isa(isa):
        check(args, {"silu": silu}, (lengths, channels, taps, dtype, isa))


def test_an_output_of_many_megabytes():
    args, kwargs = sequences.causal_conv(6, (2100, 3), 1031)
    x, weight, bias, state, _, rows = args
    last, at = args[0][2097:2100].clone(), torch.tensor([0, 3]).int()
    check(args, kwargs)
    kept = torch.stack([x[n] for n in (2094, 2095, 2096)], 1)[None].clone()
    again = ops.causal_conv(last, weight, bias, kept, at, torch.zeros(1).int())
    whole = compare.run("causal_conv", args, kwargs)[0]
    assert compare.same_bits(again, whole[2097:2100])
    assert compare.same_bits(kept[0], state[int(rows[0])])


def test_nan_stays_in_its_channel_stream_and_time():
    args, _ = sequences.causal_conv(7, (9, 8), channels=70)
    want, kept = ops.causal_conv(*args[:3], args[3].clone(), *args[4:]), args[3].clone()
    x = args[0].clone()
    x[2, 33] = torch.nan
    got = ops.causal_conv(x, *args[1:3], kept, *args[4:])
    touched = torch.zeros(17, 70, dtype=torch.bool)
    touched[2:6, 33] = True  # four taps
    assert got[touched].isnan().all()
    assert compare.same_bits(got[~touched], want[~touched])


@pytest.mark.parametrize("part", ["weight", "bias", "state", "silu", "order"])
def test_every_term_counts(part):
    args, _ = sequences.causal_conv(5, (6, 9))
    want = compare.reference_out("causal_conv", args, {})
    x, weight, bias, state, indptr, rows = args
    kwargs = {}
    if part == "weight":
        weight = weight.flip(1)
    elif part == "bias":
        bias = None
    elif part == "state":
        state = torch.zeros_like(state)
    elif part == "order":
        rows = rows.flip(0)
    else:
        kwargs = {"silu": False}
    got = compare.run("causal_conv", (x, weight, bias, state, indptr, rows), kwargs)
    with pytest.raises(AssertionError):
        compare.check("causal_conv", args, {}, got=got, want=want)


def test_far_from_zero():
    x = torch.tensor([[-300.0], [300.0], [-80.0], [torch.nan]])
    one = torch.ones(1, 1)
    state, at = torch.zeros(1, 1, 0), (torch.tensor([0, 4]).int(), torch.zeros(1).int())
    y = ops.causal_conv(x, one, None, state, *at)
    torch.testing.assert_close(y, torch.nn.functional.silu(x), equal_nan=True)


def test_numpy_and_no_activation():
    x, state = np.ones((2, 5), dtype=np.float32), np.zeros((1, 5, 1), dtype=np.float32)
    weight = np.full((5, 2), 2, dtype=np.float32)
    at = np.array([0, 2], dtype=np.int32), np.zeros(1, dtype=np.int32)
    y = ops.causal_conv(x, weight, None, state, *at, activation=None)
    assert isinstance(y, np.ndarray)
    assert (y[0] == 2).all()
    assert (y[1] == 4).all()
    assert (state == 1).all()


I32 = torch.int32


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"x": torch.zeros(14, 67).double()}, TypeError, r"\(x\): expected one of float32"),
        (
            {"weight": torch.zeros(67, 17), "state": torch.zeros(6, 67, 16)},
            NotImplementedError,
            r"1 to 16 taps, got 17",
        ),
        ({"weight": torch.zeros(66, 4)}, ValueError, r"causal_conv\(weight\)"),
        ({"state": torch.zeros(6, 67, 3).half()}, TypeError, r"\(state\): expected float32, as x"),
        ({"indptr": torch.tensor([0, 3, 2, 14], dtype=I32)}, ValueError, "rise from 0 to 14"),
        ({"indptr": torch.tensor([0, 3, 3, 13], dtype=I32)}, ValueError, "rise from 0 to 14"),
        ({"rows": torch.tensor([0, 1, 6], dtype=I32)}, ValueError, r"in \[0, 6\), got 6 for stre"),
        ({"rows": torch.tensor([0, 1, -1], dtype=I32)}, ValueError, "distinct rows .* got -1"),
        ({"rows": torch.tensor([2, 1, 2], dtype=I32)}, ValueError, "got 2 for stream 2"),
        ({"activation": "gelu"}, ValueError, r"\(activation\): expected silu or None, got gelu"),
    ],
)
def test_mistakes(change, kind, told):
    names = ("x", "weight", "bias", "state", "indptr", "rows")
    given_ = dict(zip(names, sequences.causal_conv(1)[0], strict=True)) | change
    before = given_["state"].clone()
    with pytest.raises(kind, match=told):
        ops.causal_conv(**given_)
    assert compare.same_bits(given_["state"], before)
