# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import tova
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
def test_definition(kind, n):
    """Attention of the newest query, averaged over all heads; the best stay, whatever they are."""
    q, k, _ = plain.tensors(n, n, kind)
    s = tova.score(q, k)
    plain.near(s, plain.attention(q[:, :, -1:], k).mean((1, 2))[:, None])
    for budget in plain.BUDGETS:
        assert plain.listed(tova.keep(q, k, budget)) == plain.best(s, budget)


def test_ties_go_to_the_oldest():
    q, k, _ = plain.tensors(1, 31, "ties")
    index, count = tova.keep(q, k, 7)
    assert index[0, 0].tolist() == list(range(7))
    assert count.tolist() == [[7], [7]]


def test_ragged():
    q, k, _ = plain.tensors(2, 31)
    lengths = torch.tensor([31, 0], dtype=torch.int32)
    k[1] = torch.nan
    kept = plain.listed(tova.keep(q, k, 7, lengths=lengths))
    assert len(kept[0][0]) == 7
    assert kept[1] == [[]]
