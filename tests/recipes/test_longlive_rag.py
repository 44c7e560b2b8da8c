# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import longlive_rag
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("frames", [1, 5, 6, 31, 67])
@pytest.mark.parametrize("tokens", [1, 13])
def test_definition(kind, frames, tokens):
    gen = torch.Generator().manual_seed(frames)
    x = torch.randn(frames, tokens, 48, generator=gen)
    if kind == "ties":
        x[1::2] = x[:1]
    if kind == "zeros":
        x[::3] = 0.0
    told = longlive_rag.describe(x)
    plain.near(told, x.double().mean(1))
    s = longlive_rag.score(told[-1], told)
    plain.near(s, plain.unit(x.double().mean(1)) @ plain.unit(x.double().mean(1))[-1])
    for guard in (0, 5, 99):
        for budget in plain.BUDGETS:
            kept = plain.listed(longlive_rag.keep(s, budget, guard=guard))
            assert kept == plain.best(s[None, None, : max(0, frames - guard)], budget)
    kept = plain.listed(longlive_rag.keep(s))
    assert kept == plain.best(s[None, None, : max(0, frames - 5)], 6)
