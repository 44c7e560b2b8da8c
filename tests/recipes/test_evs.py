# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import evs
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize(("frames", "tokens"), [(0, 4), (1, 6), (5, 31), (7, 12), (3, 1)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 0.999])
def test_definition(kind, frames, tokens, rate):
    """The whole clip in one stable order, an exact number of it."""
    x = plain.frames(tokens, frames, tokens, kind)
    unit = plain.unit(x)
    off = 1 - (unit[1:] * unit[:-1]).sum(-1)
    want = torch.cat([torch.full((min(frames, 1), tokens), 255.0).double(), off])
    s = evs.score(x)
    plain.near(s, want)
    count = max(tokens if frames else 0, int(tokens * frames * (1 - rate)))
    order = sorted(range(tokens * frames), key=lambda i: (-float(s.flatten()[i]), i))
    index, number = evs.keep(x, rate)
    assert number == count == evs.retained(tokens, frames, rate)
    assert index.tolist() == sorted(order[:count])
    assert set(range(tokens if frames else 0)) <= set(index.tolist())


def test_exact_ties_and_what_is_no_number():
    x = torch.zeros(3, 4, 16)
    x[..., 0] = 1
    x[1, 3, 1], x[2, 1, 0] = 1.0, torch.nan
    assert evs.keep(x, 0.5)[0].tolist() == [0, 1, 2, 3, 7, 9]
    assert evs.keep(x, 0.25)[0].tolist() == [0, 1, 2, 3, 4, 5, 7, 9, 11]


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 1), (7, 2)])
@pytest.mark.parametrize("per_frame", [1.0, 2.0, 0.4])
def test_survivors_keep_their_positions(rows, columns, per_frame):
    grid = [(int(t * per_frame) + 9, y + 9, z + 9)
            for t in range(6) for y in range(rows) for z in range(columns)]  # fmt: skip
    index = torch.arange(0, len(grid), 3)[:40].int()
    got = evs.positions(index, (rows, columns), per_frame=per_frame, base=9)
    assert [tuple(row) for row in got.tolist()] == [grid[i] for i in index.tolist()]


def test_errors():
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"evs\(rate\): expected 0 to less than 1, got"):
            evs.keep(torch.zeros(2, 3, 16), rate)
    with pytest.raises(ValueError, match=r"evs\(tokens\): expected 1 or more, got 0"):
        evs.positions(torch.zeros(1).int(), (0, 3))
