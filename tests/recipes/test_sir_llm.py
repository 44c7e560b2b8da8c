# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import sir_llm
from tests.recipes import plain


def definition(logits, tokens):
    """Surprise of every token by what was predicted before it."""
    p = logits.double().softmax(-1)
    rows = []
    for b in range(len(tokens)):
        nll = [-p[b, t - 1, tokens[b, t]].log() for t in range(1, tokens.shape[1])]
        rows.append(torch.stack([max(nll), *nll]) if nll else torch.zeros(1).double())
    return torch.stack(rows)


@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("recent", [0, 3])
def test_definition(n, flat, recent):
    gen = torch.Generator().manual_seed(n)
    logits, tokens = torch.randn(2, n, 50, generator=gen), torch.randint(50, (2, n), generator=gen)
    s = sir_llm.score(logits * (not flat), tokens)
    plain.near(s, definition(logits * (not flat), tokens))
    for budget in plain.BUDGETS:
        want = plain.best(s[:, None], budget, first=4, last=recent)
        assert plain.listed(sir_llm.keep(s, budget, recent=recent)) == want


def test_old_turns_fade():
    """After many turns what was hard long ago loses against what is a little hard now."""
    old = torch.full((1, 10), 5.0)
    for _ in range(3):
        old = sir_llm.decay(old, 0.5)
    scores = torch.cat([old, torch.ones(1, 10)], 1)
    assert plain.listed(sir_llm.keep(scores, 9)) == [[[0, 1, 2, 3, *range(10, 15)]]]
    assert torch.equal(sir_llm.decay(old), old)


def test_nothing():
    s = sir_llm.score(torch.zeros(2, 0, 9), torch.zeros(2, 0, dtype=torch.int64))
    assert s.shape == (2, 0)
