# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import infllm
from tests.recipes import plain


def definition(k, received, block, count):
    """Block by block the mean of the keys that received most, the first of equals."""
    reps = torch.zeros(2, 2, -(-k.shape[2] // block), 32, dtype=torch.float64)
    for b, h, m in torch.cartesian_prod(*map(torch.arange, reps.shape[:3])).tolist():
        at = range(m * block, min((m + 1) * block, k.shape[2]))
        got = received[b, h].tolist()
        best = sorted(at, key=lambda j, s=got: (-s[j], j))[:count]
        reps[b, h, m] = k[b, h, best].double().mean(0)
    return reps


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize(("block", "count"), [(128, 4), (7, 3), (5, 9), (1, 1)])
def test_definition(kind, n, block, count):
    q, k, _ = plain.tensors(n, n, kind)
    received = torch.rand(2, 2, n, generator=torch.Generator().manual_seed(n))
    if kind == "ties":
        received = torch.zeros_like(received)
    reps = infllm.representatives(k, received, block=block, count=count)
    plain.near(reps, want := definition(k, received, block, count))
    s = infllm.score(q, reps)
    scores = (q.double().mean(2)[:, :, None] * want.repeat_interleave(2, 1)).sum(-1).mean(1)
    plain.near(s, scores[:, None])
    for budget in plain.BUDGETS:
        assert plain.listed(infllm.keep(s, budget)) == plain.best(s, budget)
    assert plain.listed(infllm.keep(s)) == plain.best(s, 16)


def test_nothing():
    reps = infllm.representatives(torch.zeros(2, 2, 0, 32), torch.zeros(2, 2, 0))
    assert reps.shape == (2, 2, 0, 32)
