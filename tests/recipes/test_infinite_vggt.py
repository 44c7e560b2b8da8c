# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import infinite_vggt
from tests.recipes import plain


def definition(k, anchor):
    """Unit keys against the mean of those behind the anchor."""
    unit = plain.unit(k)
    mean = unit[:, :, anchor:].sum(2, keepdim=True) / max(k.shape[2] - anchor, 1)
    return (unit * mean).sum(-1)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("anchor", [0, 5, 200])
def test_definition(kind, n, anchor):
    k = plain.tensors(n, n, kind)[1]
    s = infinite_vggt.score(k, anchor)
    plain.near(s, definition(k, anchor))
    for budget in plain.BUDGETS:
        want = plain.best(-s, budget, first=anchor)
        assert plain.listed(infinite_vggt.keep(k, budget, anchor)) == want


def test_layers_that_differ_get_more():
    scores = torch.tensor([0.9, 0.1, 0.5])
    budgets = infinite_vggt.layer_budgets(scores, 1_200_000)
    weights = [2.718281828459045 ** ((1 - s) / 0.5) for s in (0.9, 0.1, 0.5)]
    want = [1_200_000 * w / sum(weights) for w in weights]
    assert all(abs(b - w) <= 1 for b, w in zip(budgets.tolist(), want, strict=True))
    assert int(budgets.sum()) <= 1_200_000
    assert budgets[1] > budgets[2] > budgets[0]


def test_nothing():
    kept = infinite_vggt.keep(torch.zeros(1, 2, 0, 32), 4, 3)
    assert plain.listed(kept) == [[[], []]]
