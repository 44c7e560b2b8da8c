# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from headrace.recipes import live_vlm
from tests.recipes import plain


def bucketed(score, budget, room, free):
    """The paper's two phases, one token after the other."""
    n = len(score)
    if n <= budget:
        return list(range(n))
    count = max(1, budget // room)
    place = [math.ceil((j + 1) / (n / count) - 1e-9) - 1 for j in range(n)]
    order = sorted(range(n), key=lambda j: (-score[j], j))
    kept = order[: int(free * budget)]
    full = [sum(place[j] == b for j in kept) for b in range(count)]
    for j in order[len(kept) :]:
        if len(kept) < budget and full[place[j]] < room:
            kept.append(j)
            full[place[j]] += 1
    return sorted(kept)


@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("budget", plain.BUDGETS)
@pytest.mark.parametrize(("room", "free"), [(1, 0.5), (1, 0.0), (3, 0.5), (7, 0.2), (2, 1.0)])
def test_buckets(n, budget, room, free):
    gen = torch.Generator().manual_seed(n)
    for s in (torch.rand(2, 2, n, generator=gen), torch.ones(2, 2, n),
              torch.rand(2, 2, n, generator=gen).round(decimals=1)):  # fmt: skip
        got = plain.listed(live_vlm.keep(s, budget, room=room, free=free))
        assert got == [[bucketed(r, budget, room, free) for r in rows] for rows in s.tolist()]


def test_they_spread_what_the_best_alone_would_not():
    s = torch.cat([torch.rand(50) + 1, torch.rand(50)])[None, None]
    (((*kept,),),) = plain.listed(live_vlm.keep(s, 20))
    assert any(j >= 50 for j in kept)
    assert all(j < 50 for j in plain.best(s, 20)[0][0])


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
def test_scores_and_pages(kind, n):
    q, k, _ = plain.tensors(n, n, kind)
    want = plain.attention(q, k).mean(2).unflatten(1, (2, 2)).mean(2)
    plain.near(live_vlm.score(q, k), want)
    logits = q.double() @ k.double().repeat_interleave(2, 1).mT / 32**0.5
    want = logits.softmax(-1).mean(2).unflatten(1, (2, 2)).mean(2)
    plain.near(live_vlm.score(q, k, past=True), want)
    mean = live_vlm.pages(k)
    plain.near(mean, torch.stack([p.double().mean(2) for p in k.split(16, 2)], 2))
    product = torch.einsum(
        "bhd,bhmd->bm", q.double().mean(2), mean.double().repeat_interleave(2, 1)
    )
    for share in (0.0, 0.4, 1.0):
        many = math.floor(share * mean.shape[2] + 0.5)
        got = plain.listed(live_vlm.recall(q, mean, share=share))
        if kind == "normal":
            assert got == plain.best(product[:, None] / 4, many)
        else:
            assert all(len(rows[0]) == many for rows in got)
