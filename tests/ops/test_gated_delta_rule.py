# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
NAMES = ("q", "k", "v", "log_decay", "beta", "state", "indptr", "rows")


def outcome(args, kwargs):
    """The result and the states after it, of a call on a copy of the states."""
    state = args[5].clone()
    out = ops.gated_delta_rule(*args[:5], state, *args[6:], **kwargs)
    return out, state


def check(args, kwargs, label=""):
    state = args[5].clone()
    want = compare.reference_out("gated_delta_rule", args, kwargs)
    kept = compare.reference("gated_delta_rule", args, kwargs)
    out, after = outcome(args, kwargs)
    rows = args[7].long()
    compare.check("gated_delta_rule", args, kwargs, label, got=(out,), want=want)
    # States are fp32 whatever the tokens are.
    d = compare.distance(after[rows], kept[0][rows])
    assert d.rms < 1e-5, (d, label)
    idle = torch.ones(len(state), dtype=torch.bool)
    idle[rows] = False
    assert compare.same_bits(after[idle], state[idle]), label


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(isa, dtype):
    grid = samples.cover(
        1,
        14,
        lengths=((3, 0, 11), (1,), (33, 32), (65, 1, 1), (0,), ()),
        heads=(1, 2),
        group=(1, 2, 3),
        dim=(16, 32, 80, 128),
        v_dim=(16, 48, 64, 112),
        layout=("plain", "rows", "wide"),
        normalize=(True, True, False),
        scale=(None, 0.7),
    )
    for i, case in enumerate(grid):
        normalize = case.pop("normalize")
        (q, k, *rest), kwargs = sequences.gated_delta_rule(i, dtype=dtype, **case)
        if not normalize:  # longer keys would make the state grow without bound
            q, k = (x.mul_(case["dim"] ** -0.5) for x in (q, k))
        check((q, k, *rest), kwargs | {"normalize": normalize}, case)


def test_bits_do_not_know_the_calls(isa):
    """Token by token, in chunks, in one call, alone or beside others: the same bits."""
    args, kwargs = sequences.gated_delta_rule(2, (70, 5), dim=64, v_dim=80)
    out, after = outcome(args, kwargs)
    tokens, row = slice(0, 70), args[7][:1]
    for size in (1, 7, 32, 33):
        state, pieces = args[5].clone(), []
        for at in range(0, 70, size):
            part = [x[tokens][at : at + size].contiguous() for x in args[:5]]
            indptr = torch.tensor([0, len(part[0])], dtype=torch.int32)
            pieces.append(ops.gated_delta_rule(*part, state, indptr, row))
        assert compare.same_bits(torch.cat(pieces), out[tokens]), size
        assert compare.same_bits(state[int(row)], after[int(row)]), size


def test_threads_leave_no_trace(isa):
    args, kwargs = sequences.gated_delta_rule(3, (40, 1), v_dim=112)
    torch.set_num_threads(1)
    one = outcome(args, kwargs)
    for threads in (2, 8):
        torch.set_num_threads(threads)
        for a, b in zip(one, outcome(args, kwargs), strict=True):
            assert compare.same_bits(a, b), threads


def test_nan_stays_in_its_stream(isa):
    args, kwargs = sequences.gated_delta_rule(4, (9, 8))
    out, after = outcome(args, kwargs)
    k = args[1].clone()
    k[3] = torch.nan
    bad, kept = outcome((args[0], k, *args[2:]), kwargs)
    assert compare.same_bits(bad[9:], out[9:])
    assert compare.same_bits(kept[int(args[7][1])], after[int(args[7][1])])
    assert bad[3:9].isnan().all()


def test_without_gate_or_strength():
    """No decay and strength 1 make a key read back what was last written under it."""
    args, _ = sequences.gated_delta_rule(5, (20,), group=1, dim=16, v_dim=16)
    _, k, v, log_decay, beta, state, indptr, rows = args
    out, _ = outcome(
        (k, k, v, torch.zeros_like(log_decay), torch.ones_like(beta), state, indptr, rows),
        {"scale": 1.0},
    )
    assert compare.distance(out, v).rms < 1e-4


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_any_lengths(lengths, group):
    check(*sequences.gated_delta_rule(6, tuple(lengths), group=group), lengths)


@pytest.mark.parametrize("term", ["log_decay", "beta", "state", "scale", "normalize", "v", "k"])
def test_sensitive_to(term):
    args, kwargs = sequences.gated_delta_rule(7, (12,))
    want, _ = outcome(args, kwargs)
    given_ = dict(zip(NAMES, args, strict=True)) | kwargs
    given_["state"] = given_["state"].clone()
    if term == "scale":
        given_[term] = 0.2
    elif term == "normalize":
        given_[term] = False
    elif term == "log_decay":
        given_[term] = given_[term] * 1.1
    else:
        given_[term] = given_[term].roll(1, -1)
    assert compare.distance(ops.gated_delta_rule(**given_), want).rms > 1e-3


def test_numpy():
    args, kwargs = sequences.gated_delta_rule(9, (5, 3))
    want = outcome(args, kwargs)
    arrays = [x.numpy() for x in args]
    got = ops.gated_delta_rule(*arrays, **kwargs)
    assert isinstance(got, np.ndarray)
    for x, y in zip((got, arrays[5]), want, strict=True):
        assert compare.same_bits(torch.from_numpy(x), y)


def of_size(dim, v_dim, heads=2, v_heads=4):
    """Arguments with these sizes in place of those of the sample."""
    keys, values = torch.zeros(14, heads, dim), torch.zeros(14, v_heads, v_dim)
    gates = dict.fromkeys(("log_decay", "beta"), torch.zeros(14, v_heads))
    return dict(q=keys, k=keys, v=values, state=torch.zeros(5, v_heads, dim, v_dim), **gates)


SIZES = r"expected one of last axes that are multiples of 16 up to 256, got"


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (of_size(24, 48), NotImplementedError, rf"^gated_delta_rule\(q\): {SIZES} 24$"),
        (of_size(272, 48), NotImplementedError, rf"^gated_delta_rule\(q\): {SIZES} 272$"),
        (of_size(0, 48), NotImplementedError, rf"^gated_delta_rule\(q\): {SIZES} 0$"),
        (of_size(32, 40), NotImplementedError, rf"^gated_delta_rule\(v\): {SIZES} 40$"),
        (of_size(32, 272), NotImplementedError, rf"^gated_delta_rule\(v\): {SIZES} 272$"),
        (
            of_size(32, 48, 3),
            ValueError,
            r"^gated_delta_rule\(v\): expected a multiple of 3 heads, got 4$",
        ),
        (of_size(32, 48, 0), ValueError, r"\(v\): expected a multiple of 0 heads, got 4$"),
        (dict(q=torch.zeros(14, 2, 33)), ValueError, r"gated_delta_rule\(k\): expected D = 33"),
        (dict(v=torch.zeros(14, 3, 48)), ValueError, r"gated_delta_rule\(log_decay\): expected HV"),
        (dict(beta=torch.zeros(14, 4).double()), TypeError, r"gated_delta_rule\(beta\)"),
        (dict(state=torch.zeros(5, 4, 32, 48).half()), TypeError, r"gated_delta_rule\(state\)"),
        (dict(indptr=torch.tensor([0, 9, 3, 14]).int()), ValueError, r"indptr\): expected offsets"),
        (dict(rows=torch.tensor([0, 1, 1]).int()), ValueError, r"rows\): expected distinct"),
        (dict(rows=torch.tensor([0, 1, 5]).int()), ValueError, r"rows\): expected distinct"),
    ],
)
def test_mistakes(change, kind, told):
    args, kwargs = sequences.gated_delta_rule(8)
    given_ = dict(zip(NAMES, args, strict=True)) | kwargs | change
    before = given_["state"].clone()
    with pytest.raises(kind, match=told):
        ops.gated_delta_rule(**given_)
    assert compare.same_bits(given_["state"], before)
