# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from headrace.recipes import stc
from tests.recipes import plain


def frames(seed, count, n, kind, dim=48):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, dim, generator=gen)
    if kind == "ties":
        x = x[:, :1].expand_as(x).clone()
    if kind == "zeros":
        x[torch.rand(count, n, generator=gen) < 0.4] = 0.0
    return x


def lowest(score, k):
    """Per row the indices of the k lowest, of equal ones the first; ascending."""
    return [sorted(sorted(range(len(s)), key=lambda j, s=s: (s[j], j))[:k]) for s in score.tolist()]


def kept(made):
    index, count = made
    assert index.dtype == count.dtype == torch.int32
    return [row[:n] for row, n in zip(index.tolist(), count.tolist(), strict=True)]


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", [1, 3, 31, 196])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.7, 1.0])
def test_what_the_cacher_computes_anew(kind, n, ratio):
    k, ref = frames(n, 3, n, kind), frames(n + 1, 1, n, kind)
    cos = (plain.unit(k) * plain.unit(ref)).sum(-1).float()
    got = kept(stc.stale(k, ref, ratio=ratio))
    count = max(1, min(n, int(n * ratio)))
    assert [len(row) for row in got] == [count] * 3
    for row, want, s in zip(got, lowest(cos, count), cos, strict=True):
        # Which of two that differ by rounding alone comes first, nobody says.
        assert torch.allclose(s[row].sort()[0], s[want].sort()[0], atol=1e-6)
    if kind == "ties":
        assert got == [list(range(count))] * 3


def test_exact_ties_and_what_is_no_number():
    k = torch.zeros(1, 6, 16)
    k[0, :, 0] = torch.tensor([1.0, 2, -1, 0, 3, math.nan])
    ref = torch.zeros(1, 6, 16)
    ref[..., 0] = 1
    assert kept(stc.stale(k, ref, ratio=0.5)) == [[2, 3, 5]]
    assert kept(stc.stale(k, ref, ratio=0.7)) == [[0, 2, 3, 5]]
    assert kept(stc.stale(k, ref, threshold=0.0)) == [[2, 3, 5]]
    assert kept(stc.stale(k, ref, threshold=-2.0)) == [[5]]
    assert kept(stc.stale(k, ref, threshold=1.0)) == [[0, 1, 2, 3, 4, 5]]


def test_at_threshold_1_everything_is_computed_however_cosines_round():
    k = torch.randn(5, 300, 48)
    assert [len(row) for row in kept(stc.stale(k, k * 0.3333, threshold=1.0))] == [300] * 5


def definition(chunks, tokens, share):
    """The pruner's rule, chunk by chunk, history as a list of means; scores and channels."""
    history, out = [], []
    for x in chunks:
        x = x.double()
        variance = [float(c.var(unbiased=False)) for c in x.flatten(0, 1).T]
        chosen = int(share * x.shape[-1])
        at = sorted(sorted(range(len(variance)), key=lambda c, v=variance: (v[c], c))[:chosen])
        history.append(x.mean((0, 1)))
        memory = plain.unit(torch.stack(history).mean(0)[at])
        unit = plain.unit(x[..., at])
        score = torch.zeros(x.shape[:2], dtype=torch.float64)
        for ref in (unit.mean(1, keepdim=True), memory):
            for alpha in (0.125, 0.25, 0.5, 1.0, 2.0):
                score += torch.exp(-(unit - ref).square().sum(-1) / (2 * alpha))
        out.append((score, at))
    return out


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize(("count", "n"), [(1, 196), (2, 31), (3, 1)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_pruner(kind, count, n, share):
    chunks = [frames(seed, count, n, kind) for seed in range(4)]
    history = stc.History()
    for x, (want, at) in zip(chunks, definition(chunks, 60, share), strict=True):
        assert stc.channels(x, share).tolist() == at
        ahead = stc.History(history.total, history.chunks)
        s = stc.score(x[..., at], ahead.add(x)[at])
        plain.near(s, want)
        assert kept(stc.keep(x, history, share=share)) == lowest(s, min(60, n))
    assert history.chunks == 4
    for tokens in (0, 1, 7, 500):
        assert [len(r) for r in kept(stc.keep(chunks[0], history, tokens=tokens))] == [
            min(tokens, n)
        ] * count


def test_every_part_of_the_score_counts():
    """Without the history, or with the largest instead of the least, others are kept."""
    chunks = [frames(seed, 1, 100, "normal") + 3 * torch.randn(48) for seed in range(3)]
    history = stc.History()
    for x in chunks:
        got = kept(stc.keep(x, history, tokens=20))
    assert got != kept(stc.keep(chunks[-1], stc.History(), tokens=20))
    at = stc.channels(chunks[-1])
    s = stc.score(chunks[-1][..., at], torch.stack([c.mean((0, 1)) for c in chunks]).mean(0)[at])
    assert got == lowest(s, 20) != lowest(-s, 20)


def test_errors():
    x = torch.randn(2, 5, 48)
    with pytest.raises(ValueError, match=r"stc\(ratio\): expected 0 to 1, got 2"):
        stc.stale(x, x[:1], ratio=2)
    with pytest.raises(ValueError, match=r"stc\(tokens\): expected 0 or more, got -1"):
        stc.keep(x, stc.History(), tokens=-1)
    with pytest.raises(ValueError, match=r"stc\(share\): expected one channel or more, and"):
        stc.channels(x, 0.001)
