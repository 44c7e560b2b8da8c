# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import fastv
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
def test_the_last_token_is_asked(kind, n):
    q, k, _ = plain.tensors(n, n, kind, asked=min(n, 9))
    plain.near(fastv.score(q, k), plain.attention(q, k)[:, :, -1].mean(1))


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("image", [(0, 0), (3, 20), (0, 31), (30, 31), (5, 5)])
@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5, 1.0])
def test_of_the_image_the_best_and_of_the_rest_all(kind, image, drop):
    q, k, _ = plain.tensors(7, 31, kind)
    s, (begin, end) = fastv.score(q, k), image
    want = []
    for row in s.tolist():
        order = sorted(range(begin, end), key=lambda j, r=row: (-r[j], j))
        stay = order[: round((end - begin) * (1 - drop))]
        want.append(sorted([*range(begin), *stay, *range(end, 31)]))
    assert plain.flat(fastv.keep(s, image, drop=drop)) == want


def test_defaults_are_those_of_the_paper():
    assert fastv.LAYER == 2
    assert fastv.keep(torch.rand(1, 100), (10, 90))[1].tolist() == [60]


def test_errors():
    s = torch.zeros(1, 9)
    for image in ((3, 10), (5, 4), (-1, 3)):
        with pytest.raises(ValueError, match=r"fastv\(image\): expected begin and end within 9"):
            fastv.keep(s, image)
    with pytest.raises(ValueError, match=r"fastv\(drop\): expected 0 to 1, got 1.5"):
        fastv.keep(s, (0, 3), drop=1.5)
