# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples, survivors

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def exact(args):
    """The bits of the reference, and none changed elsewhere."""
    want, got = args[0].clone(), survivors.same_place(args[0])
    for aligned in (False, True):
        rest = (rows_like_y(args), *args[2:]) if aligned else args[1:]
        more = [None] * (ARGUMENTS - len(args))
        ops.specs()["scatter_back"].reference(want, *rest, *more, aligned)
        torch.ops.headrace.scatter_back(got, *rest, aligned=aligned)
        assert compare.same_bits(got, want)


def rows_like_y(args):
    """Rows of y's shape, of which those that no index names are NaN."""
    y, _, index, *count = args
    x = survivors.values(samples.rng(1), *y.shape, dtype=y.dtype)
    number = count[0] if count else torch.full(index.shape[:2], index.shape[2])
    if x.is_floating_point() and x.numel():
        x[~ops_mask(index, number, y.shape[2]).expand(y.shape[:3])] = torch.nan
    return x


def test_exact(isa):
    for i, case in enumerate(survivors.moves()):
        exact(survivors.scatter_back(i, **case)[0])


@given(seed=st.integers(0, 2**20), case=survivors.SOME_MOVE)
def test_random_problems(seed, case):
    exact(survivors.scatter_back(seed, **case)[0])


def test_it_is_the_inverse_of_a_gather(isa):
    (y, _, index, count), _ = survivors.scatter_back(4)
    want = y.clone()
    rows = ops.compact(y, index, count).y
    spoiled = y.clone()
    spoiled[ops_mask(index, count, 67)] = torch.nan
    ops.scatter_back(spoiled, rows, index, count)
    assert torch.equal(spoiled, want)


def ops_mask(index, count, size):
    """What an index names, as a mask."""
    behind = torch.arange(index.shape[-1]) >= count[..., None]
    at = torch.where(behind, size, index.long())
    return torch.zeros(*index.shape[:2], size + 1).scatter_(-1, at, 1.0)[..., :size].bool()


def test_errors_change_nothing(isa):
    y, x = torch.randn(9, 4), torch.randn(3, 4)
    before = y.clone()
    for index in ([0, 4, 4], [0, 1, 9], [-1, 2, 3]):
        with pytest.raises(ValueError, match=re.escape("scatter_back(index): expected ascending")):
            ops.scatter_back(y, x, torch.tensor(index, dtype=torch.int32))
    assert torch.equal(y, before)


def test_rows_of_the_wrong_number():
    with pytest.raises(ValueError, match=re.escape("scatter_back(x): expected 9 rows, as y, got")):
        ops.scatter_back(torch.zeros(9, 4), torch.zeros(3, 4), named, aligned=True)


named = torch.tensor([0, 4, 5], dtype=torch.int32)


def test_numpy():
    y, x = np.zeros((12, 5), np.float32), np.random.randn(3, 5).astype(np.float32)
    ops.scatter_back(y, x, np.array([2, 3, 7], np.int32))
    assert np.array_equal(y[[2, 3, 7]], x)
    assert np.count_nonzero(y) == x.size


Y, INDEX = torch.zeros(2, 3, 9, 8), torch.zeros(2, 3, 1, dtype=torch.int32)
X, OP, ARGUMENTS = torch.zeros(2, 3, 1, 8), "scatter_back", 4
ERRORS = [
    ((Y.double(), X, INDEX), TypeError, f"{OP}(y): expected one of float32"),
    ((Y, X.half(), INDEX), TypeError, f"{OP}(x): expected float32, as y, got float16"),
    ((Y[0, 0, 0], X, INDEX), ValueError, f"{OP}(y): expected [N, D], [B, N, D]"),
    ((Y, X[0, 0, 0], INDEX), ValueError, f"{OP}(x): expected [K, D], [B, K, D]"),
    ((Y, X[:1], INDEX), ValueError, f"{OP}(x): expected B = 2 in"),
    ((Y, X[:, :, :0], INDEX), ValueError, f"{OP}(x): expected 1 rows, as index"),
    ((Y, X, INDEX.long()), TypeError, f"{OP}(index): expected int32, got int64"),
    ((Y, X, INDEX[:, :2]), ValueError, f"{OP}(index): expected H = 3, or 1"),
    ((Y, X, INDEX, INDEX[:1, :2, 0]), ValueError, f"{OP}(count): expected H = 3, or 1"),
]


@pytest.mark.parametrize(("args", "kind", "told"), ERRORS)
def test_errors(args, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.scatter_back(*args)
