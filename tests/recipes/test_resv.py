# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from headrace.recipes import resv
from tests.recipes import plain


def leaders(bits, near):
    """Token by token: the leader with fewest bits that differ, the older of equals, or itself."""
    heads, ids = [], []
    for j, mine in enumerate(bits):
        apart = [int((bits[at] != mine).sum()) for at in heads]
        if apart and min(apart) < near:
            ids.append(apart.index(min(apart)))
        else:
            heads.append(j)
            ids.append(len(heads) - 1)
    return heads, ids


def grouped(k, near, cuts):
    """The recipe's clusters of keys [N, D] that come in parts."""
    c = resv.Clusters.none(1, k.shape[1])
    p = resv.planes(k.shape[1])
    for part in torch.arange(len(k)).tensor_split(list(cuts)):
        c = resv.join(c, k[part], resv.signs(k[part], p), near=near)
    return c


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("near", [0, 1, 7, 14, 33])
def test_clusters(kind, n, near):
    _, k, _ = plain.tensors(n, n, kind)
    k = k[0, 0]
    above = k.double() @ resv.planes(32).double() > 0
    heads, ids = leaders(above, near)
    for cuts in ((), (n // 2,), (1, n // 3, n // 2, n - 1)):
        c = grouped(k, near, sorted(x for x in cuts if x >= 0))
        assert c.ids.tolist() == ids
        assert torch.equal(c.leader, k[heads])
        for m in range(len(heads)):
            mine = k[torch.tensor(ids) == m].double()
            assert int(c.count[m]) == len(mine)
            torch.testing.assert_close(c.mean[m].double(), mine.mean(0), atol=2e-6, rtol=1e-5)
            assert torch.equal(c.low[m].double(), mine.amin(0))
            assert torch.equal(c.high[m].double(), mine.amax(0))
            far = (mine - k[heads[m]].double()).norm(dim=-1).max()
            torch.testing.assert_close(c.far[m], far)
            torch.testing.assert_close(c.squares[m], mine.square().sum())


def test_bits_are_signs():
    k, p = torch.randn(9, 48), resv.planes(48, bits=64)
    words = resv.signs(k, p)
    assert words.shape == (9, 2)
    for row, x in zip(words.tolist(), k @ p > 0, strict=True):
        bits = [(word >> i) & 1 for word in row for i in range(32)]
        assert bits == x.int().tolist()


def wicsum(score, count, share):
    """The shortest run of clusters, best first, whose sum of count * score exceeds the share."""
    weight = [max(s, 0.0) * n for s, n in zip(score, count, strict=True)]
    order, taken, total = sorted(range(len(weight)), key=lambda j: (-weight[j], j)), [], 0.0
    for j in order if sum(weight) > 0 else ():
        taken.append(j)
        total += weight[j]
        if total > share * sum(weight):
            break
    return sorted(taken)


def mass(score, count, share):
    weight = [n * math.exp(s - max(score)) for s, n in zip(score, count, strict=True)]
    # The op takes by score, which orders a cluster by its mean key.
    order, taken, total = sorted(range(len(weight)), key=lambda j: (-score[j], j)), [], 0.0
    for j in order:
        if total >= share * sum(weight):
            break
        taken.append(j)
        total += weight[j]
    return sorted(taken)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 7, 67])
def test_how_many(n, share):
    made = torch.Generator().manual_seed(n)
    q, mean = torch.randn(5, 32, generator=made), torch.randn(n, 32, generator=made)
    count = torch.randint(1, 9, (n,), generator=made)
    s = resv.score(q, mean)
    plain.near(s, q.double() @ mean.double().T / 32**0.5)
    s[0] = -s[0].abs()  # the sum of this row is below 0
    s[1] = 0.5  # all alike
    got = plain.listed(tuple(x[None] for x in resv.keep(s, count, share=share, raw=True)))[0]
    assert got == [wicsum(row, count.tolist(), share) for row in s.double().tolist()]
    if share < 1:
        got = plain.listed(tuple(x[None] for x in resv.keep(s, count, share=share)))[0]
        assert got == [mass(row, count.tolist(), share) for row in s.double().tolist()]
