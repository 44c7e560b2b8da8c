# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import infinipot_v
from tests.recipes import plain


def temporal(k, tokens, recent):
    """Cosine with the same place of each recent frame, one after the other."""
    frames = plain.unit(k).unflatten(2, (-1, tokens))
    late = frames[:, :, -recent:]
    cos = torch.stack([(frames * late[:, :, i : i + 1]).sum(-1) for i in range(recent)])
    return -cos.mean(0).flatten(2)


def values(v, pool):
    norm = v.double().norm(dim=-1)
    padded = torch.nn.functional.pad(norm, (pool // 2, pool // 2))
    return padded.unfold(-1, pool, 1).mean(-1)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize(
    ("frames", "tokens", "recent"), [(6, 7, 2), (1, 5, 1), (5, 13, 1), (3, 1, 3)]
)
def test_definition(kind, frames, tokens, recent):
    n, late = frames * tokens, recent * tokens
    _, k, v = plain.tensors(n, n, kind)
    time, norm = infinipot_v.temporal(k, tokens, recent), infinipot_v.values(v, pool=3)
    plain.near(time, temporal(k, tokens, recent))
    plain.near(norm, values(v, 3))
    for budget in plain.BUDGETS:
        kept = infinipot_v.keep(k, v, budget, tokens, recent=recent, share=0.4, pool=3)
        room = max(budget - late, 0)
        first = plain.best(time[..., : n - late], int(0.4 * room))
        want = []
        for b, rows in enumerate(first):
            want.append([])
            for h, row in enumerate(rows):
                s = norm[b, h, : n - late].tolist()
                rest = sorted(set(range(n - late)) - set(row), key=lambda j, s=s: (-s[j], j))
                more = rest[: max(0, room - len(row))]
                want[-1].append(sorted([*row, *more, *range(n - late, n)]))
        assert plain.listed(kept) == want


def test_errors():
    k = torch.zeros(1, 2, 20, 32)
    with pytest.raises(ValueError, match=r"infinipot_v\(k\): expected 1 or more whole frames of 7"):
        infinipot_v.keep(k, k, 5, 7)
    with pytest.raises(ValueError, match=r"infinipot_v\(recent\): expected 1 or more, got 0"):
        infinipot_v.keep(k, k, 5, 5, recent=0)
    with pytest.raises(ValueError, match=r"infinipot_v\(pool\): expected an odd number, got 4"):
        infinipot_v.values(k, pool=4)
