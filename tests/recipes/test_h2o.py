# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import h2o
from headrace.recipes.common import gather
from tests.recipes import plain


def definition(q, k):
    """Columns of causal attention, added over queries and over the heads of a kv head."""
    return plain.attention(q, k).sum(2).view(2, 2, 2, -1).sum(2)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
def test_definition(kind, n):
    q, k, _ = plain.tensors(n, n, kind, asked=n)
    s = h2o.score(q, k)
    plain.near(s, definition(q, k))
    for budget in plain.BUDGETS:
        want = plain.best(s, budget, last=budget - budget // 2)
        assert plain.listed(h2o.keep(s, budget)) == want


def test_accumulates_while_it_evicts():
    """Step by step with a budget of 8: four recent, and the four that received most so far."""
    q, k, _ = plain.tensors(5, 40, asked=40)
    keys, past, held = k[:1, :1, :0], torch.zeros(1, 1, 0), []
    score: dict[int, float] = {}
    for t in range(40):
        keys = torch.cat([keys, k[:1, :1, t : t + 1]], 2)
        now = q[:1, :2, t : t + 1]
        past = h2o.score(now, keys, past)
        held.append(t)
        p = plain.attention(now, keys)[0].sum((0, 1))
        for j, x in zip(held, p.tolist(), strict=True):
            score[j] = score.get(j, 0.0) + x
        index, count = h2o.keep(past, 8)
        heavy = sorted(held[:-4], key=lambda j: (-score[j], j))[:4]
        assert [held[i] for i in index[0, 0, : int(count)].tolist()] == sorted([*heavy, *held[-4:]])
        held = [held[i] for i in index[0, 0, : int(count)].tolist()]
        index = index[..., : int(count)]
        keys, past = gather(keys, index), gather(past, index)
    assert len(held) == 8
