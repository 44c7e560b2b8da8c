# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, survivors

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def exact(args):
    """The bits of the reference, and none changed elsewhere."""
    want, got = args[0].clone(), survivors.same_place(args[0])
    ops.specs()["compact_inplace"].reference(want, *args[1:], *[None] * (ARGUMENTS - len(args)))
    torch.ops.headrace.compact_inplace(got, *args[1:])
    assert compare.same_bits(got, want)


def test_exact(isa):
    for i, case in enumerate(survivors.moves()):
        exact(survivors.compact_inplace(i, **case)[0])


@given(seed=st.integers(0, 2**20), case=survivors.SOME_MOVE)
def test_random_problems(seed, case):
    exact(survivors.compact_inplace(seed, **case)[0])


def test_it_is_a_gather(isa):
    (x, index, count), _ = survivors.compact_inplace(4)
    want = ops.compact(x, index, count).y
    before = x.clone()
    ops.compact_inplace(x, index, count)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        n = int(count[b, h])
        assert torch.equal(x[b, h, :n], want[b, h, :n])
        assert torch.equal(x[b, h, n:], before[b, h, n:])


def test_the_rest_of_a_tensor_stays(isa):
    """Rows between, columns beside, and everything where an error is told."""
    room = torch.randn(2, 40, 30)
    before = room.clone()
    part = room[:, 1:31:3, 4:14]
    index = torch.tensor([[1, 2, 8], [0, 5, 9]], dtype=torch.int32)
    ops.compact_inplace(part, index)
    want = before.clone()
    for b in range(2):
        want[b, 1:10:3, 4:14] = before[b, 1:31:3, 4:14][index[b].long()]
    assert torch.equal(room, want)
    index[1, 2] = 10
    with pytest.raises(ValueError, match=re.escape("ascending rows below 10, got 10")):
        ops.compact_inplace(part, index)
    assert torch.equal(room, want)


def test_numpy():
    x = np.random.randn(12, 5).astype(np.float32)
    want = x[[2, 3, 7]]
    ops.compact_inplace(x, np.array([2, 3, 7], np.int32))
    assert np.array_equal(x[:3], want)
    x.flags.writeable = False
    with pytest.raises(ValueError, match=re.escape("compact_inplace(x): expected an array that")):
        ops.compact_inplace(x, np.array([2, 3, 7], np.int32))


X, INDEX = torch.zeros(2, 3, 9, 8), torch.zeros(2, 3, 1, dtype=torch.int32)
OP, ARGUMENTS = "compact_inplace", 3
ERRORS = [
    ((X.double(), INDEX), TypeError, f"{OP}(x): expected one of float32"),
    ((X[0, 0, 0], INDEX), ValueError, f"{OP}(x): expected [N, D], [B, N, D]"),
    ((X, INDEX.long()), TypeError, f"{OP}(index): expected int32, got int64"),
    ((X, None), TypeError, f"{OP}(index): expected a tensor"),
    ((X, INDEX[:, :2]), ValueError, f"{OP}(index): expected H = 3, or 1"),
    ((X, INDEX, INDEX[:1, :2, 0]), ValueError, f"{OP}(count): expected H = 3, or 1"),
    ((X, INDEX + 9), ValueError, f"{OP}(index): expected ascending rows below 9, got 9 first"),
    ((X.mT.contiguous().mT, INDEX), ValueError, f"{OP}(x): expected stride 1 along the last"),
]


@pytest.mark.parametrize(("args", "kind", "told"), ERRORS)
def test_errors(args, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.compact_inplace(*args)
