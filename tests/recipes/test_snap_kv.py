# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import snap_kv
from tests.recipes import plain

GRID = pytest.mark.parametrize("kind", plain.KINDS)


def definition(q, k, window, pool):
    """Attention of the window over the prefix, averaged over it, smoothed, averaged in groups."""
    q = q[:, :, -window:]
    asked, n = q.shape[2], k.shape[2]
    p = plain.attention(q, k)[..., : max(n - asked, 0)].mean(2)
    p = p.view(2, 2, 2, -1).mean(2)
    want = torch.zeros(2, 2, n, dtype=torch.float64)
    for j in range(p.shape[-1]):
        near = range(max(0, j - pool // 2), min(p.shape[-1], j + pool // 2 + 1))
        want[..., j] = sum(p[..., i] for i in near) / pool
    return want


@GRID
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize(("window", "pool"), [(5, 3), (32, 5)])
def test_definition(kind, n, window, pool):
    q, k, _ = plain.tensors(n, n, kind, asked=min(n, 9))
    plain.near(snap_kv.score(q, k, window=window, pool=pool), definition(q, k, window, pool))


@GRID
@pytest.mark.parametrize("budget", plain.BUDGETS)
def test_keeps_the_window_and_the_best(kind, budget):
    q, k, _ = plain.tensors(3, 67, kind)
    s = snap_kv.score(q, k, window=5)
    kept = plain.listed(snap_kv.keep(q, k, budget, window=5))
    assert kept == plain.best(s, budget, last=5)
    assert all(len(row) == min(67, max(budget, 5)) for rows in kept for row in rows)


def test_ragged():
    q, k, _ = plain.tensors(4, 67)
    lengths = torch.tensor([67, 23], dtype=torch.int32)
    k[1, :, 23:] = torch.nan
    s = snap_kv.score(q, k, window=5, lengths=lengths)
    plain.near(s[1:, :, :23].repeat(2, 1, 1), definition(
        q[1:].repeat(2, 1, 1, 1), k[1:, :, :23].repeat(2, 1, 1, 1), 5, 5))  # fmt: skip
    kept = plain.listed(snap_kv.keep(q, k, 9, window=5, lengths=lengths))
    assert kept == plain.best(s, 9, last=5, lengths=lengths)


def test_errors():
    q, k, _ = plain.tensors(4, 67)
    with pytest.raises(ValueError, match=r"snap_kv\(budget\): expected 0 or more, got -1"):
        snap_kv.keep(q, k, -1)
