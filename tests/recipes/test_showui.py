# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.recipes import showui
from tests.recipes import plain


def walk(x, threshold):
    """Components by walking from patch to patch."""
    frames, high, wide = x.shape[:3]
    label = torch.full((frames, high, wide), -1)
    for start in range(frames * high * wide):
        f, place = divmod(start, high * wide)
        todo = [(f, *divmod(place, wide))]
        if label[todo[0]] >= 0:
            continue
        label[todo[0]] = start
        while todo:
            f, y, z = todo.pop()
            for b, c in ((y + 1, z), (y - 1, z), (y, z + 1), (y, z - 1)):
                if 0 <= b < high and 0 <= c < wide and label[f, b, c] < 0:
                    off = (x[f, y, z].double() - x[f, b, c].double()).norm()
                    if off < threshold:
                        label[f, b, c] = start
                        todo.append((f, b, c))
    return label


def chosen(label, skip):
    """Component by component, at even distances."""
    stay = []
    for name in label.flatten().unique().tolist():
        at = (label.flatten() == name).nonzero()[:, 0].tolist()
        n = len(at)
        m = n if n == 1 else max(1, n - round(n * skip))
        stay += [at[i * (n - 1) // (m - 1) if m > 1 else 0] for i in range(m)]
    return sorted(stay)


@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 11), st.integers(1, 4), st.data())
def test_components_and_choice(frames, high, wide, colours, data):
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    x = torch.randint(0, colours, (frames, high, wide, 1), generator=gen).float().repeat(1, 1, 1, 8)
    label = showui.components(x)
    assert torch.equal(label, walk(x, 1.0))
    for skip in (0.0, 0.3, 0.5, 0.9, 1.0):
        assert plain.listed(tuple(t[None, None] for t in showui.keep(label, skip=skip))) == [
            [chosen(label, skip)]
        ]


def test_one_long_snake():
    """Labels have to travel along 200 patches; the rounds are few all the same."""
    wide = 21
    x = torch.zeros(1, 21, wide, 4)
    x[0, 1::2] = 9
    for row in range(1, 21, 2):
        x[0, row, (wide - 1) * (row // 2 % 2 == 0)] = 0
    x += torch.arange(wide)[:, None] * 1e-3
    rounds, equal = [], torch.equal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "equal", lambda a, b: rounds.append(1) or equal(a, b))
        label = showui.components(x)
    assert torch.equal(label, walk(x, 1.0))
    assert (label[0, ::2] == 0).all()
    assert len(rounds) < 20


def test_the_distance_is_that_of_the_code():
    """A norm over all numbers of a patch, less than the threshold and not at it."""
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, :, 0] = torch.tensor([0.0, 0.9, 1.9, 2.0])
    assert showui.components(x).flatten().tolist() == [0, 0, 2, 2]
    x[0, 0, 1:, 1] = 0.5
    assert showui.components(x).flatten().tolist() == [0, 1, 2, 2]
    assert showui.components(x, threshold=2.0).flatten().tolist() == [0, 0, 0, 0]
    x[0, 0, 3, 0] = 3.6
    assert showui.components(x, threshold=2.0).flatten().tolist() == [0, 0, 0, 0]
    assert showui.components(x, threshold=1.6).flatten().tolist() == [0, 0, 0, 3]
    x[0, 0, 2] = torch.nan
    assert showui.components(x, threshold=2.0).flatten().tolist() == [0, 0, 2, 3]


def test_a_third_goes_of_a_screen_with_a_margin():
    x = torch.randn(1, 12, 20, 8) * 5
    x[0, :, :13] = 0
    label = showui.components(x)
    kept = int(showui.keep(label)[1])
    assert kept == 12 * 7 + 12 * 13 // 2


def test_errors():
    with pytest.raises(ValueError, match=r"showui\(skip\): expected 0 to 1, got 2"):
        showui.keep(torch.zeros(3).long(), skip=2)
