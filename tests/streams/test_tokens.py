# SPDX-License-Identifier: Apache-2.0
"""Token ids come from all that callers hold them in, the same on the short way and on the long."""

import unittest.mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from headrace import _C
from headrace.streams import tokens

CPU = torch.device("cpu")
KINDS = {
    "tensor": torch.tensor, "list": list, "tuple": tuple, "array": np.array,
    "strided": lambda x: torch.tensor([[i, 255] for i in x] or [[0, 0]])[: len(x), 0],
    "narrow": lambda x: torch.tensor(x, dtype=torch.int32), "bytes": bytes,
}  # fmt: skip
IDS = st.lists(st.integers(0, 255), min_size=1, max_size=6)


def made(count):
    return torch.empty(count, dtype=torch.int64)


def nothing(*_):
    return None


@pytest.fixture(params=["short", "long"])
def way(request, monkeypatch):
    """Through compiled code, where torch lets it look, and without it."""
    if request.param == "short" and _C.join_ids([torch.tensor([1])], 2, made) is None:
        pytest.skip("this torch does not show its tensors to compiled code")
    if request.param == "long":
        monkeypatch.setattr(_C, "join_ids", nothing)
    return request.param


@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), IDS), max_size=5))
def test_ids_in_a_row(held):
    for way in (nothing, _C.join_ids):
        with unittest.mock.patch.object(_C, "join_ids", way):
            counts, joined = tokens.ids_of_each([KINDS[kind](x) for kind, x in held], 256, CPU)
        assert counts == [len(x) for _, x in held]
        assert joined.dtype == torch.int64
        assert joined.tolist() == [i for _, x in held for i in x]


def test_what_comes_out_is_a_copy(way):
    mine = torch.tensor([1, 2])
    made = tokens.ids(mine, 256, CPU)
    mine[0] = 9
    assert made.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.tensor([3, 256]), ValueError, r"tokens\): expected ids in \[0, 256\), got 256"),
        ([-1], ValueError, r"tokens\): expected ids in \[0, 256\), got -1"),
        (torch.tensor([[1]]), ValueError, r"tokens\): expected one axis, \[T\], got \[1, 1\]"),
        (torch.tensor(1), ValueError, r"tokens\): expected one axis, \[T\], got \[\]"),
        (torch.tensor([1.0]), TypeError, r"tokens\): expected whole numbers, int64, got float32"),
        (torch.tensor([True]), TypeError, r"tokens\): expected whole numbers, int64, got bool"),
        ([True], TypeError, r"tokens\): expected whole numbers, int64, got list of bool"),
        ([1 << 70], TypeError, r"tokens\): expected whole numbers, int64, got list of object"),
        ([[1], [2, 3]], ValueError, r"tokens\): expected one axis, \[T\], got list"),
        (torch.ones(1, device="meta").long(), ValueError, r"tokens\): expected a tensor on cpu"),
    ],
)
@pytest.mark.parametrize("beside", [[], [torch.tensor([7])]])
def test_what_is_not_ids_is_named(way, bad, error, message, beside):
    with pytest.raises(error, match=rf"^feed\({message}"):
        tokens.ids_of_each([*beside, bad], 256, CPU)


def test_none_at_all(way):
    counts, joined = tokens.ids_of_each([], 256, CPU)
    assert counts == []
    assert (joined.shape, joined.dtype) == ((0,), torch.int64)
