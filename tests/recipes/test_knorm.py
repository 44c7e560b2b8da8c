# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import knorm
from tests.recipes import plain


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", plain.SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_definition(kind, n, dtype):
    """The shortest keys stay; those of length 0 first of all."""
    k = plain.tensors(n, n, kind)[1].to(dtype)
    s = knorm.score(k)
    plain.near(s, -k.double().square().sum(-1).sqrt())
    for budget in plain.BUDGETS:
        assert plain.listed(knorm.keep(k, budget)) == plain.best(s, budget)


def test_ragged():
    k = plain.tensors(1, 31)[1]
    lengths = torch.tensor([31, 0], dtype=torch.int32)
    k[1] = torch.nan
    kept = plain.listed(knorm.keep(k, 9, lengths=lengths))
    assert kept[0] == plain.best(knorm.score(k)[:1], 9)[0]
    assert kept[1] == [[], []]
