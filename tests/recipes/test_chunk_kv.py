# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import chunk_kv
from tests.recipes import plain


def definition(score, chunk):
    """Mean over the chunk of the sum over heads."""
    return torch.stack([p.double().sum(1).mean(-1) for p in score.split(chunk, -1)], -1)[:, None]


@pytest.mark.parametrize("n", [1, 19, 20, 21, 67, 130])
@pytest.mark.parametrize("chunk", [20, 1, 7, 500])
@pytest.mark.parametrize("ties", [False, True])
def test_definition(n, chunk, ties):
    score = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(n))
    score = score.round().mul(0) if ties else score
    s = chunk_kv.score(score, chunk=chunk)
    plain.near(s, definition(score, chunk))
    for budget in plain.BUDGETS:
        chunks = max(1, budget // chunk) if budget else 0
        want = [[[j for c in row for j in range(c * chunk, min(n, c * chunk + chunk))]
                 for row in rows] for rows in plain.best(s, chunks)]  # fmt: skip
        assert plain.listed(chunk_kv.keep(score, budget, chunk=chunk)) == want


def test_nothing():
    assert plain.listed(chunk_kv.keep(torch.zeros(2, 3, 0), 40)) == [[[]], [[]]]


def test_errors():
    with pytest.raises(ValueError, match=r"chunk_kv\(chunk\): expected 1 or more, got 0"):
        chunk_kv.keep(torch.zeros(2, 3, 9), 4, chunk=0)
    with pytest.raises(ValueError, match=r"chunk_kv\(budget\): expected 0 or more, got -1"):
        chunk_kv.keep(torch.zeros(2, 3, 9), -1)
