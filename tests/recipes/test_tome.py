# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import tome
from tests.recipes import plain


def definition(x, metric, r, sizes, class_token):
    """One batch entry: the edges one by one, groups as lists; tokens in order of place."""
    n = len(x)
    unit = plain.unit(metric)
    r = min(r, (n - class_token) // 2)
    edges = []
    for a in range(0, n, 2):
        if class_token and a == 0:
            continue
        near = [(float((unit[a] @ unit[b]).float()), -b) for b in range(1, n, 2)]
        if near:
            s, b = max(near)
            edges.append((-s, a, -b))
    groups = {i: [i] for i in range(n)}
    for _, a, b in sorted(edges)[:r]:
        groups[b].append(a)
        del groups[a]
    made, weight = [], []
    for members in groups.values():
        w = sizes[members].double()
        weight.append(float(w.sum()))
        made.append((x[members].double() * w[:, None]).sum(0) / w.sum())
    return list(groups), torch.stack(made) if made else x.double(), weight


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 31, 64])
@pytest.mark.parametrize("r", [0, 1, 7, 500])
def test_definition(n, r, class_token):
    x, metric = plain.frames(n, 2, n, dim=24), plain.frames(n + 1, 2, n)
    sizes = torch.randint(1, 4, (2, n), generator=torch.Generator().manual_seed(n)).float()
    for weights in (None, sizes):
        made = tome.merge(x, metric, r, sizes=weights, class_token=class_token)
        assert made.y.shape[1] == n - min(r, (n - class_token) // 2)
        for b in range(2):
            w = sizes[b] if weights is not None else torch.ones(n)
            places, tokens, weight = definition(x[b], metric[b], r, w, class_token)
            assert made.kept[b].tolist() == places
            assert made.sizes[b].tolist() == weight
            plain.near(made.y[b], tokens)


def test_ties_merge_at_the_lowest_places_with_the_first():
    x = torch.ones(1, 9, 16)
    stays, target = tome.pairs(x, 3)
    assert target[0].tolist() == [1, -1, 1, -1, 1, -1, -1, -1, -1]
    assert stays[0].tolist() == [False, True, False, True, False, True, True, True, True]
    stays, target = tome.pairs(x, 3, class_token=True)
    assert target[0].tolist() == [-1, -1, 1, -1, 1, -1, 1, -1, -1]


def test_rows_of_nothing_merge_last_and_what_is_no_number_spoils_nobody():
    x = torch.eye(16)[None, [0, 0, 1, 1, 2, 2, 3, 3]].clone()
    x[0, 0], x[0, 4] = torch.nan, 0
    assert tome.pairs(x, 2)[1][0].tolist() == [-1, -1, 3, -1, -1, -1, 7, -1]
    assert tome.pairs(x, 3)[1][0].tolist() == [-1, -1, 3, -1, 1, -1, 7, -1]
    made = tome.merge(x, x, 4)
    assert made.kept[0].tolist() == [1, 3, 5, 7]
    assert made.y.isfinite().all()


def test_sizes_add_up_over_layers_to_the_mean_of_all():
    """Merging merged tokens by their sizes loses nothing of the sum."""
    x = torch.randn(2, 40, 16)
    y, sizes = x, None
    for _ in range(3):
        made = tome.merge(y, y, 8, sizes=sizes)
        y, sizes = made.y, made.sizes
    assert y.shape == (2, 16, 16)
    assert sizes.sum(1).tolist() == [40, 40]
    assert torch.allclose((y * sizes[..., None]).sum(1), x.sum(1), atol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match=r"tome\(r\): expected 0 or more, got -1"):
        tome.merge(torch.zeros(1, 4, 16), torch.zeros(1, 4, 16), -1)
