# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
NAME = "frame_delta_rule"
NAMES = ("q", "k", "v", "beta", "state", "norm", "frames", "indptr", "rows")
OF_TOKENS = ("q", "k", "v", "beta", "q_hat", "k_hat")


def check(args, kwargs, label=""):
    """Output and states within tolerance; rows of absent streams keep their bits."""
    before = [x.clone() for x in args[4:6]]
    want = (*compare.reference_out(NAME, args, kwargs), *compare.reference(NAME, args, kwargs))
    out = compare.run(NAME, args, kwargs)
    compare.check(NAME, args, kwargs, label, got=(*out, *args[4:6]), want=want)
    rest = [i for i in range(before[0].shape[0]) if i not in args[8].tolist()]
    for now, was in zip(args[4:6], before, strict=True):
        assert compare.same_bits(now[rest], was[rest])


def call_of(args, kwargs):
    return dict(zip(NAMES, args, strict=True)) | kwargs


def some_frames(call, first, last):
    """The call cut to frames [first, last) of one stream; states are shared."""
    t = slice(int(call["frames"][first]), int(call["frames"][last]))
    cut = {n: x[t] if n in OF_TOKENS else x for n, x in call.items()}
    cut["frames"] = call["frames"][first : last + 1] - call["frames"][first]
    cut["indptr"] = torch.tensor([0, last - first], dtype=torch.int32)
    if "log_decay" in call:
        cut["log_decay"] = call["log_decay"][first:last]
    return cut


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(isa, dtype):
    grid = samples.cover(
        1,
        16,
        frames=(((0,),), ((1,),), ((2, 0, 1), (), (7,)), ((63,), (65,)), ((131, 5), (64,))),
        heads=(1, 2),
        v_heads=(2, 4),
        dim=(16, 48, 112, 128),
        v_dim=(16, 64, 80, 144),
        layout=("plain", "swapped", "rows", "wide"),
        decay=(True, False),
        rope=(True, False),
        update=(True, True, False),
    )
    for i, case in enumerate(grid):
        args, kwargs = sequences.frame_delta_rule(i, dtype=dtype, **case)
        check(args, kwargs, case)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=4), max_size=4),
    st.sampled_from([16, 32, 80]),
    st.sampled_from([16, 48, 96]),
    st.booleans(),
    st.booleans(),
)
def test_any_streams(streams, dim, v_dim, decay, rope):
    frames = tuple(map(tuple, streams))
    args, kwargs = sequences.frame_delta_rule(
        len(streams), frames, dim=dim, v_dim=v_dim, decay=decay, rope=rope
    )
    check(args, kwargs, frames)


def test_frames_of_one_token_are_the_delta_rule():
    """Without decay or hats a frame of one token is the rule token after token."""
    args, kwargs = sequences.frame_delta_rule(
        5, ((1,) * 9,), heads=1, v_heads=1, decay=False, rope=False
    )
    call = call_of(args, kwargs)
    row = int(call["rows"][0])
    s, z = call["state"][row, 0].double(), call["norm"][row, 0].double()
    want = []
    for t in range(9):
        q, k, v = (call[x][t, 0].double() for x in "qkv")
        beta = float(call["beta"][t, 0])
        s = s + torch.outer(k, beta * (v - k @ s))
        z = z + beta * (1 - k @ z) * k
        want.append((q @ s) / (q @ z + 1e-6))
    got = ops.frame_delta_rule(**call)
    torch.testing.assert_close(got[:, 0].double(), torch.stack(want), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(call["state"][row, 0].double(), s, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_bits_do_not_depend_on_the_calls(isa, cut):
    args, kwargs = sequences.frame_delta_rule(4, ((5, 67, 0, 33),))
    call = call_of(args, kwargs)
    rolling = call | {n: call[n].clone() for n in ("state", "norm")}
    whole = ops.frame_delta_rule(**call)
    spans = [(f, min(f + cut, 4)) for f in range(0, 4, cut)]
    parts = [ops.frame_delta_rule(**some_frames(rolling, *span)) for span in spans]
    assert compare.same_bits(torch.cat(parts), whole)
    for name in ("state", "norm"):
        assert compare.same_bits(rolling[name], call[name])


def test_bits_do_not_depend_on_neighbours_or_threads(isa):
    args, kwargs = sequences.frame_delta_rule(6, ((70, 3), (2,), (65,)), v_dim=144, heads=1)
    call = call_of(args, kwargs)
    before = {n: call[n].clone() for n in ("state", "norm")}
    whole = ops.frame_delta_rule(**call)
    ends = call["indptr"].tolist()
    torch.set_num_threads(1)
    try:
        for b in range(3):
            alone = some_frames(call | {n: x.clone() for n, x in before.items()}, *ends[b : b + 2])
            alone["rows"] = call["rows"][b : b + 1]
            got, row = ops.frame_delta_rule(**alone), int(call["rows"][b])
            t = slice(int(call["frames"][ends[b]]), int(call["frames"][ends[b + 1]]))
            assert compare.same_bits(got, whole[t])
            for name in ("state", "norm"):
                assert compare.same_bits(alone[name][row], call[name][row])
    finally:
        torch.set_num_threads(2)


def test_without_update_the_states_keep_their_bits(isa):
    args, kwargs = sequences.frame_delta_rule(7, ((9, 70),))
    call = call_of(args, kwargs)
    before = {n: call[n].clone() for n in ("state", "norm")}
    tried = ops.frame_delta_rule(**call, update=False)
    for name, was in before.items():
        assert compare.same_bits(call[name], was)
    assert compare.same_bits(ops.frame_delta_rule(**call), tried)
    assert not compare.same_bits(call["state"], before["state"])


PARTS = ("q", "k", "beta", "state", "norm", "log_decay", "q_hat", "k_hat", "frames", "eps", "group")


@pytest.mark.parametrize("part", PARTS)
def test_every_term_counts(part):
    args, kwargs = sequences.frame_delta_rule(8, ((9, 7),))
    want = (*compare.reference_out(NAME, args, kwargs), *compare.reference(NAME, args, kwargs))
    call = call_of(args, kwargs)
    if part in ("state", "norm"):
        call[part] = call[part] * 0.9
    elif part == "frames":
        call[part] = torch.tensor([0, 8, 16], dtype=torch.int32)
    elif part == "eps":
        call[part] = 0.5
    elif part == "group":
        call["k_hat"] = call["k_hat"].flip(1)
    else:
        call[part] = call[part] * 0.9
    got = (ops.frame_delta_rule(**call), call["state"], call["norm"])
    with pytest.raises(AssertionError):
        compare.check(NAME, args, kwargs, got=got, want=want)


def test_numpy():
    args, kwargs = sequences.frame_delta_rule(9, ((3,),), rope=False, decay=False)
    want = ops.frame_delta_rule(*(x.clone() for x in args), **kwargs)
    arrays = [x.numpy() for x in args]
    got = ops.frame_delta_rule(*arrays, **kwargs)
    assert isinstance(got, np.ndarray)
    assert compare.same_bits(torch.from_numpy(got), want)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"q": torch.zeros(18, 2, 32).double()}, TypeError, r"\(q\): expected one of float32"),
        ({"k": torch.zeros(18, 2, 32).half()}, TypeError, r"\(k\)"),
        ({"state": torch.zeros(5, 4, 32, 48).bfloat16()}, TypeError, r"\(state\)"),
        ({"beta": torch.zeros(17, 4)}, ValueError, r"\(beta\)"),
        ({"log_decay": torch.zeros(2, 4)}, ValueError, r"\(log_decay\)"),
        ({"q": torch.zeros(18, 3, 32), "k": torch.zeros(18, 3, 32)}, ValueError, "multiple of 3"),
        ({"q_hat": torch.zeros(18, 2, 32)}, ValueError, r"\(k_hat\): expected both"),
        ({"frames": torch.tensor([0, 9, 3, 18]).int()}, ValueError, r"\(frames\).* 0 to 18"),
        ({"frames": torch.tensor([0, 3, 9, 17]).int()}, ValueError, r"\(frames\).* 0 to 18"),
        ({"indptr": torch.tensor([0, 2, 2, 4]).int()}, ValueError, r"\(indptr\).* 0 to 3"),
        ({"rows": torch.tensor([0, 1, 1]).int()}, ValueError, "distinct rows"),
        ({"rows": torch.tensor([0, -1, 1]).int()}, ValueError, "got -1 for stream 1"),
        ({"rows": torch.tensor([0, 1, 5]).int()}, ValueError, "got 5 for stream 2"),
        (
            {
                "q": torch.zeros(18, 2, 24),
                "k": torch.zeros(18, 2, 24),
                "state": torch.zeros(5, 4, 24, 48),
                "norm": torch.zeros(5, 4, 24),
            },
            NotImplementedError,
            r"\(q\): expected one of K a multiple of 16",
        ),
    ],
)
def test_mistakes(change, kind, told):
    call = call_of(*sequences.frame_delta_rule(1, rope=False, decay=False)) | change
    before = {n: call[n].clone() for n in ("state", "norm")}
    with pytest.raises(kind, match=told):
        ops.frame_delta_rule(**call)
    for name, was in before.items():
        assert compare.same_bits(call[name], was)
