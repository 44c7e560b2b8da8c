# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import ada_kv
from tests.recipes import plain


def definition(score, budget, safeguard, last):
    """Of every head the safe ones; then the best of all heads to the common budget."""
    kept = []
    safe = plain.best(score, max(int(safeguard * budget), last), last=last)
    for b, heads in enumerate(safe):
        chosen = {(h, j) for h, row in enumerate(heads) for j in row}
        n, size = score.shape[1:]
        rest = sorted(((h, j) for h in range(n) for j in range(size) if (h, j) not in chosen),
                      key=lambda at, b=b: (-float(score[b][at]), at))  # fmt: skip
        chosen |= set(rest[: max(0, budget * n - len(chosen))])
        kept.append([sorted(j for h, j in chosen if h == head) for head in range(n)])
    return kept


@pytest.mark.parametrize("kind", ["normal", "ties", "one head"])
@pytest.mark.parametrize("budget", plain.BUDGETS)
@pytest.mark.parametrize(("safeguard", "last"), [(0.2, 0), (0.0, 0), (1.0, 3), (0.2, 5)])
def test_definition(kind, budget, safeguard, last):
    score = torch.randn(2, 3, 67, generator=torch.Generator().manual_seed(budget))
    if kind == "ties":
        score = score.round()
    if kind == "one head":  # which would take everything
        score[:, 1] += 100
    kept = plain.listed(ada_kv.keep(score, budget, safeguard=safeguard, last=last))
    assert kept == definition(score, budget, safeguard, last)
    sizes = [[len(row) for row in rows] for rows in kept]
    assert all(sum(s) == min(3 * 67, max(3 * budget, 3 * last)) for s in sizes)
    assert all(n >= min(67, max(int(safeguard * budget), last)) for s in sizes for n in s)


def test_errors():
    score = torch.zeros(1, 2, 5)
    with pytest.raises(ValueError, match=r"ada_kv\(budget\): expected 0 or more, got -3"):
        ada_kv.keep(score, -3)
    with pytest.raises(ValueError, match=r"ada_kv\(safeguard\): expected 0 or more"):
        ada_kv.keep(score, 10, safeguard=-0.2)
