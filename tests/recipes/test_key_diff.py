# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import key_diff
from tests.recipes import plain


def definition(k):
    """Less the cosine with the mean of the normalised keys of the head."""
    anchor = plain.unit(k).mean(2, keepdim=True)
    return -(plain.unit(k) * plain.unit(anchor)).sum(-1)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_definition(kind, n, dtype):
    k = plain.tensors(n, n, kind)[1].to(dtype)
    s = key_diff.score(k)
    plain.near(s, definition(k))
    for budget in plain.BUDGETS:
        assert plain.listed(key_diff.keep(k, budget)) == plain.best(s, budget)


def test_all_of_length_zero():
    kept = key_diff.keep(torch.zeros(1, 2, 9, 32), 4)
    assert plain.listed(kept) == [[[0, 1, 2, 3]] * 2]


def test_ragged():
    k = plain.tensors(1, 31)[1]
    lengths = torch.tensor([31, 13], dtype=torch.int32)
    k[1, :, 13:] = torch.nan
    s = key_diff.score(k, lengths=lengths)
    plain.near(s[1:, :, :13], definition(k[1:, :, :13]))
    kept = plain.listed(key_diff.keep(k, 9, lengths=lengths))
    assert kept == plain.best(s, 9, lengths=lengths)


def test_nothing():
    assert plain.listed(key_diff.keep(torch.zeros(1, 2, 0, 32), 4)) == [[[], []]]
