# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import lag_kv
from tests.recipes import plain


def definition(k, v, lag, sinks):
    """Partition by partition, with loops: deviation in the range of the next one, ranked."""
    n = k.shape[2]
    want = torch.ones(2, 2, n, dtype=torch.float64)
    parts = (n - sinks) // lag
    for b, h, part in torch.cartesian_prod(*map(torch.arange, (2, 2, max(parts - 1, 0)))).tolist():
        begin = sinks + part * lag
        both = torch.zeros(lag)
        for x in (k[b, h], v[b, h]):
            mine, after = x[begin : begin + lag], x[begin + lag : begin + 2 * lag]
            low, high = after.min(0).values, after.max(0).values
            place = (mine - low) / (high - low)
            place[:, high == low] = 0.0
            both = both + place.std(-1).softmax(0) / 2
        got = both.tolist()
        order = sorted(range(lag), key=lambda j, s=got: (-s[j], j))
        for rank, j in enumerate(order):
            want[b, h, begin + j] = (lag - 1 - rank) / lag
    return want


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("n", [*plain.SIZES, 20, 25])
@pytest.mark.parametrize(("lag", "sinks"), [(8, 4), (13, 0)])
def test_definition(kind, n, lag, sinks):
    _, k, v = plain.tensors(n, n, kind)
    s = lag_kv.score(k, v, lag=lag, sinks=sinks)
    plain.near(s, definition(k, v, lag, sinks) if n > sinks else torch.ones(2, 2, n).double())
    parts = (n - sinks) // lag
    tail = n if parts < 2 else n - sinks - (parts - 1) * lag
    for budget in plain.BUDGETS:
        want = plain.best(s, budget, first=sinks, last=tail)
        assert plain.listed(lag_kv.keep(k, v, budget, lag=lag, sinks=sinks)) == want


def test_defaults_leave_short_prompts_whole():
    _, k, v = plain.tensors(1, 130)
    assert plain.listed(lag_kv.keep(k, v, 10)) == [[list(range(130))] * 2] * 2


def test_partitions_share_alike():
    """By rank, every compressed partition gives up as many."""
    _, k, v = plain.tensors(2, 68)
    kept = plain.listed(lag_kv.keep(k, v, 4 + 16 + 12, lag=16))
    for row in (r for rows in kept for r in rows):
        assert [sum(b <= j < b + 16 for j in row) for b in (4, 20, 36, 52)] == [4, 4, 4, 16]


def test_errors():
    _, k, v = plain.tensors(1, 30)
    with pytest.raises(ValueError, match=r"lag_kv\(lag\): expected 1 or more, got 0"):
        lag_kv.score(k, v, lag=0)
