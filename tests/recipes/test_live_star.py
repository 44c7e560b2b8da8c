# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import live_star


def definition(perplexity, segment, number, now, near):
    weight = []
    for p, s, j in zip(perplexity, segment, number, strict=True):
        mine = [x for x, t in zip(perplexity, segment, strict=True) if t == s]
        mean = sum(mine) / len(mine)
        weight.append((p / mean if mean else 1.0) * (now - j) if now - j > near else 0.0)
    top = max(weight, default=0.0)
    return [w / top if top else 0.0 for w in weight]


@pytest.mark.parametrize("n", [0, 1, 2, 31, 67, 130])
@pytest.mark.parametrize("kind", ["random", "ties", "zeros"])
@pytest.mark.parametrize("near", [0, 40, 500])
def test_peak_end(n, kind, near):
    made = torch.Generator().manual_seed(n)
    p = torch.rand(n, generator=made, dtype=torch.float64) * 9 + 1
    p = torch.full_like(p, 2.0) if kind == "ties" else p
    p[::3] = 0.0 if kind == "zeros" else p[::3]
    number = torch.arange(n) * 2 + 3
    segment = (torch.rand(n, generator=made) < 0.2).long().cumsum(0)
    now = 2 * n + 3
    got = live_star.chances(p, segment, number, now, near=near)
    want = definition(p.tolist(), segment.tolist(), number.tolist(), now, near)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    draws = torch.rand(n, generator=made, dtype=torch.float64)
    last = {int(s): int(j) for s, j in zip(segment, number, strict=True)}
    kept = live_star.keep(p, segment, number, now, draws, near=near).tolist()
    for j, (stays, d, w) in enumerate(zip(kept, draws.tolist(), want, strict=True)):
        assert stays == (d >= w or last[int(segment[j])] == int(number[j]))
    assert all(kept) or near < 500


def test_an_old_frame_that_does_not_fit_goes_first():
    p = torch.tensor([9.0, 1.0, 1.0, 9.0, 1.0])
    got = live_star.chances(p, torch.zeros(5).long(), torch.tensor([0, 1, 2, 90, 99]), 100)
    assert got.argmax() == 0
    assert got[0] == 1.0
    assert got[3] == got[4] == 0.0
