# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from headrace import ops
from headrace.recipes import retro_infer
from tests.recipes import plain


def k_means(k, size, rounds):
    """Of one segment, in fp64: the cluster of every key."""
    many = max(1, len(k) // size)
    c = k[[j * len(k) // many for j in range(many)]].double()
    for _ in range(rounds + 1):
        own = (plain.unit(k) @ plain.unit(c).T).round(decimals=5).argmax(-1)
        for j in range(many):
            if (own == j).any():
                c[j] = k[own == j].double().mean(0)
    return own


@pytest.mark.parametrize("n", [1, 31, 67, 130])
@pytest.mark.parametrize("size", [16, 5, 2])
def test_clusters(n, size):
    _, k, v = plain.tensors(n, n, dim=16)
    k, v = k[0, 0], v[0, 0]
    c = retro_infer.clusters(k, v, size=size, segment=67, rounds=3)
    first, ids = 0, []
    for part in k.split(67):
        ids += (k_means(part, size, 3) + first).tolist()
        first += max(1, len(part) // size)
    assert c.ids.tolist() == ids
    assert len(c.count) == first
    assert c.count.tolist() == torch.bincount(c.ids, minlength=first).tolist()
    for j in range(first):
        mine = torch.tensor(ids) == j
        if mine.any():
            plain.near(c.centre[j], k[mine].double().mean(0))
            plain.near(c.value[j], v[mine].double().mean(0))


def test_clusters_of_few_keys_that_change_hands():
    made = torch.Generator().manual_seed(0)
    for _ in range(150):
        k = torch.nn.functional.pad(torch.randn(11, 2, generator=made), (0, 14))
        c = retro_infer.clusters(k, k, size=3, rounds=6)
        assert c.ids.tolist() == k_means(k, 3, 6).tolist()


def test_nothing_and_keys_that_are_all_alike():
    none = retro_infer.clusters(torch.zeros(0, 16), torch.zeros(0, 16))
    assert none.count.numel() == none.ids.numel() == 0
    same = retro_infer.clusters(torch.ones(64, 16), torch.ones(64, 16), size=16)
    assert same.count.tolist() == [64, 0, 0, 0]  # the first of equals
    best, guess = retro_infer.zones(torch.ones(1, 2, 16), same, exact=0.5, estimated=0.5)
    assert best.tolist() == [True, False, False, False]
    assert not guess.any()


@pytest.mark.parametrize("exact", [0.0, 0.018, 0.3, 1.0])
@pytest.mark.parametrize("estimated", [0.0, 0.232, 0.9])
def test_zones(exact, estimated):
    q, k, v = plain.tensors(5, 130)
    c = retro_infer.clusters(k[0, 0], v[0, 0], size=5)
    asked = q[0, :2].transpose(0, 1)
    score = (asked.double() @ c.centre.double().T).amax((0, 1))
    there = [j for j in range(len(score)) if c.count[j] > 0]
    order = sorted(there, key=lambda j: (-float(score[j]), j))
    a = math.ceil(exact * len(there))
    b = a + math.ceil(estimated * len(there))
    best, guess = retro_infer.zones(asked, c, exact=exact, estimated=estimated)
    assert set(best.nonzero()[:, 0].tolist()) == set(order[:a])
    assert set(guess.nonzero()[:, 0].tolist()) == set(order[a:b])


@pytest.mark.parametrize("kind", plain.KINDS)
def test_the_estimate_is_attention_to_centres(kind):
    q, k, v = plain.tensors(3, 67, kind)
    c = retro_infer.clusters(k[0, 0], v[0, 0], size=5)
    asked = q[0, :2].transpose(0, 1)
    chosen = (torch.arange(len(c.count)) % 3 > 0) & (c.count > 0)
    o, lse = retro_infer.estimate(asked, c, chosen)
    times = torch.repeat_interleave(c.centre[chosen].double(), c.count[chosen], 0)
    worth = torch.repeat_interleave(c.value[chosen].double(), c.count[chosen], 0)
    logits = asked.double() @ times.T / 32**0.5
    plain.near(o, logits.softmax(-1) @ worth)
    plain.near(lse, logits.logsumexp(-1))
    o, lse = retro_infer.estimate(asked, c, torch.zeros_like(chosen))
    assert (o == 0).all()
    assert (lse == -torch.inf).all()


def test_what_is_fetched_and_what_is_estimated_add_up():
    """Where the keys of a cluster are alike the estimate is exact, and so is the whole."""
    q, _, _ = plain.tensors(3, 1)
    made = torch.Generator().manual_seed(1)
    k = torch.randn(12, 32, generator=made).repeat_interleave(5, 0)
    v = torch.randn(60, 32, generator=made)
    c = retro_infer.clusters(k, v, size=5)
    asked = q[0, :2].transpose(0, 1).contiguous()
    best, guess = retro_infer.zones(asked, c, exact=0.3, estimated=1.0)
    mine = best[c.ids]
    logits = asked.double() @ k.double().T / 32**0.5
    near = logits[..., mine]
    o = (near.softmax(-1) @ v[mine].double()).float()
    o, lse = ops.merge_states(o, near.logsumexp(-1).float(), *retro_infer.estimate(asked, c, guess))
    plain.near(o, logits.softmax(-1) @ v.double())
    plain.near(lse, logits.logsumexp(-1))
