# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import rekv
from tests.recipes import plain


def definition(q, k, block):
    """Mean key of every block against the mean query, heads side by side in one long vector."""
    question = q.double().mean(2).flatten(1)
    parts = k.double().repeat_interleave(2, 1).split(block, 2)
    reps = torch.stack([p.mean(2).flatten(1) for p in parts], 1)
    return torch.einsum("bd,bmd->bm", question, reps)[:, None]


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("block", [196, 1, 7, 13])
def test_definition(kind, n, block):
    q, k, _ = plain.tensors(n, n, kind)
    s = rekv.score(q, rekv.means(k, block=block))
    plain.near(s, definition(q, k, block))
    for budget in plain.BUDGETS:
        assert plain.listed(rekv.keep(s, budget)) == plain.best(s, budget)
    assert plain.listed(rekv.keep(s)) == plain.best(s, 64)


def test_ragged():
    q, k, _ = plain.tensors(1, 67)
    lengths = torch.tensor([67, 20], dtype=torch.int32)
    k[1, :, 20:] = torch.nan
    s = rekv.score(q, rekv.means(k, block=7, lengths=lengths), blocks=(lengths + 6) // 7)
    plain.near(s[1:, :, :3], definition(q[1:], k[1:, :, :20], 7))
    kept = plain.listed(rekv.keep(s, 64, blocks=(lengths + 6) // 7))
    assert kept == [[list(range(10))], [[0, 1, 2]]]
