# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import quest
from tests.recipes import plain


def definition(q, k, page):
    """Element by element the larger of q times least and q times largest value, added up."""
    pages = k.double().repeat_interleave(2, 1).split(page, 2)
    low, high = (torch.stack([f(p) for p in pages], 2) for f in (
        lambda p: p.amin(2), lambda p: p.amax(2)))  # fmt: skip
    x = q.double()[:, :, :, None]
    return torch.maximum(x * low[:, :, None], x * high[:, :, None]).sum(-1).amax(2)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("page", [16, 1, 200])
@pytest.mark.parametrize("asked", [1, 3])
def test_definition(kind, n, page, asked):
    q, k, _ = plain.tensors(n, n, kind, asked=asked)
    low, high = quest.bounds(k, page=page)
    s = quest.score(q, low, high)
    plain.near(s, definition(q, k, page))
    true = q.double() @ k.double().repeat_interleave(2, 1).mT
    for m, part in enumerate(true.split(page, -1)):  # never below a score of one of its keys
        assert (part.amax((2, 3)) <= s[..., m] + 1e-4).all()
    for budget in plain.BUDGETS:
        want = plain.best(s, budget, last=min(budget, 1))
        assert plain.listed(quest.keep(s, budget)) == want


def test_ragged():
    q, k, _ = plain.tensors(1, 67, asked=1)
    lengths = torch.tensor([67, 20], dtype=torch.int32)
    k[1, :, 20:] = torch.nan
    low, high = quest.bounds(k, lengths=lengths)
    s = quest.score(q, low, high, pages=(lengths + 15) // 16)
    plain.near(s[1:, :, :2], definition(q[1:], k[1:, :, :20], 16))
    assert (s[1, :, 2:] == -torch.inf).all()
    kept = plain.listed(quest.keep(s, 1, pages=(lengths + 15) // 16))
    assert kept == [[[4]] * 4, [[1]] * 4]
