# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import video_llm_mod as mod
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", [1, 3, 10, 49, 67])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 1.0])
def test_of_every_frame_the_best(kind, n, ratio):
    x, expert = plain.frames(n, 4, n, kind), torch.randn(48)
    s = mod.score(x, expert)
    plain.near(s, x.double() @ expert.double())
    count = max(1, int(n * ratio))
    want = [sorted(sorted(range(n), key=lambda j, r=row: (-r[j], j))[:count]) for row in s.tolist()]
    assert plain.flat(mod.keep(s, ratio=ratio)) == want


def test_a_fifth_is_computed_and_the_rest_passes_unchanged():
    x, asked = torch.randn(3, 50, 16), []

    def layer(rows, index):
        asked.append((rows, index))
        return rows * 2 + index[..., None]

    kept = mod.keep(mod.score(x, torch.randn(16)))
    y = mod.through(x, kept, layer)
    want = x.clone()
    for f, row in enumerate(plain.flat(kept)):
        assert len(row) == 10
        want[f, row] = x[f, row] * 2 + torch.tensor(row)[:, None]
    assert torch.equal(y, want)
    assert [rows.shape for rows, _ in asked] == [(3, 10, 16)]


def test_errors():
    with pytest.raises(ValueError, match=r"video_llm_mod\(ratio\): expected 0 to 1, got 3"):
        mod.keep(torch.zeros(1, 4), ratio=3)
