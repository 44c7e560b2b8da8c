# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from headrace.recipes import expected_attention
from tests.recipes import plain

FREQ = 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)


def rotation(angle):
    """One fp64 matrix: pairs of halves turned by their angles."""
    turn = torch.zeros(32, 32, dtype=torch.float64)
    for i, a in enumerate(angle.tolist()):
        c, s = math.cos(a), math.sin(a)
        turn[i, i] = turn[i + 16, i + 16] = c
        turn[i, i + 16], turn[i + 16, i] = -s, s
    return turn


def definition(q, k, v, freq, sinks, future, epsilon):
    """Mean and covariance of the queries, turned on average; log of the mean of exp(q.k)."""
    n = k.shape[2]
    want = torch.zeros(2, 2, n, dtype=torch.float64)
    turn = torch.eye(32, dtype=torch.float64)
    if freq is not None:
        turn = sum(rotation((q.shape[2] + t) * freq) for t in range(future)) / future
    for b in range(2):
        for h in range(4):
            x = q[b, h, sinks:].double()
            mu, apart = x.mean(0), x - x.mean(0)
            mu, cov = turn @ mu, turn @ (apart.T @ apart / len(x)) @ turn.T
            keys = k[b, h // 2, sinks:].double()
            logits = keys @ mu / 32**0.5 + torch.einsum("ni,ij,nj->n", keys, cov, keys) / 64
            want[b, h // 2, sinks:] += logits.softmax(0) / 2
    want = (want + epsilon) * v.double().norm(dim=-1)
    want[:, :, :sinks] = want[:, :, sinks:].amax((1, 2))[:, None, None]
    return want


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES[2:])
@pytest.mark.parametrize(
    ("freq", "sinks", "future", "epsilon"), [(FREQ, 4, 37, 0.0), (None, 1, 9, 0.01)]
)
def test_definition(kind, n, freq, sinks, future, epsilon):
    q, k, v = plain.tensors(n, n, kind, asked=n)
    options = dict(sinks=sinks, future=future, epsilon=epsilon)
    s = expected_attention.score(q, k, v, freq, **options)
    plain.near(s, definition(q, k, v, freq, sinks, future, epsilon), 1e-4)
    for budget in plain.BUDGETS:
        kept = plain.listed(expected_attention.keep(q, k, v, budget, freq, **options))
        assert kept == plain.best(s, budget, first=min(sinks, budget))


@pytest.mark.parametrize("n", [0, 1, 4, 5])
def test_nothing_but_sinks(n):
    q, k, v = plain.tensors(n, n, asked=n)
    assert plain.listed(expected_attention.keep(q, k, v, 9, FREQ)) == [[list(range(n))] * 2] * 2
