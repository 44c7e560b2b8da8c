# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import statistics

import pytest
import torch

from headrace.recipes import save_mem
from tests.recipes import plain


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("n", plain.SIZES)
def test_worth_and_affinity(n, zeros):
    gen = torch.Generator().manual_seed(n)
    x, probes = torch.randn(n, 48, generator=gen), torch.randn(7, 48, generator=gen)
    if zeros:
        x[::2], probes[3] = 0.0, 0.0
    want = (plain.unit(x) @ plain.unit(probes).T).amax(-1)
    plain.near(save_mem.worth(x, probes), want)
    assert save_mem.affinity(x, probes) == pytest.approx(float(want.mean()), abs=1e-6)
    assert save_mem.affinity(x[:0], probes) == 0.0


def test_the_gate():
    """A question that the newest frames answer as well as ever, and one that they do not."""
    asked = [[0.5, 0.7], [0.6], [0.2], [0.58], [], [-0.1]]
    opens, mean, want = save_mem.Opens(), None, []
    for short in asked:
        if not short:
            want.append(True)
            continue
        s = sum(short) / len(short)
        mean = s if mean is None else 0.2 * s + 0.8 * mean
        want.append(s < 0.9 * mean)
    assert [opens(short) for short in asked] == want == [False, False, True, False, True, True]
    assert [save_mem.Opens(ratio=0.0)(short) for short in asked[:4]] == [False] * 4
    always = save_mem.Opens(ratio=9.0)
    assert [always(short) for short in asked[:4]] == [True] * 4


def test_the_gate_follows_what_it_sees():
    scores = torch.rand(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    opens, mean = save_mem.Opens(), float(scores[0])
    for s in scores.tolist():
        mean = 0.2 * s + 0.8 * mean
        assert opens([s]) == (s < 0.9 * mean)
        assert opens.mean == pytest.approx(mean)


def test_how_many():
    rng = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 31, 100):
        for width in (0.0, 0.01, 0.1, 0.3, 3.0):
            x = (0.5 + width * torch.rand(n, generator=rng)).tolist()
            for top in (0, 3, 40, 500):
                for least in (0.9, 0.0):
                    cv = statistics.stdev(x) / abs(statistics.fmean(x)) if n > 1 else 0.0
                    t = min(1.0, max(0.0, (cv - 0.05) / 0.25))
                    want = n if n <= top else max(int(n - t * (n - top)), top, int(n * least))
                    assert save_mem.how_many(x, top, least=least) == want


def settled(worths, row, column):
    n, mean = len(worths), sum(worths) / max(1, len(worths))
    total = max(4, int(n * (0.15 + 0.25 * min(1.0, max(0.0, mean)))))
    if n <= 4 or total >= n:
        return set(range(n))
    middle = [(min(x) + max(x)) / 2 for x in (row, column)]
    best = sorted(range(n), key=lambda j: (-worths[j], j))
    kept = []
    for corner in ((False, False), (False, True), (True, False), (True, True)):
        mine = [j for j in best if (row[j] > middle[0], column[j] > middle[1]) == corner]
        kept += mine[: max(1, total // 4)]
    return set(kept + [j for j in best if j not in kept][: max(0, total - len(kept))])


@pytest.mark.parametrize("n", [0, 1, 4, 5, 31, 67, 196])
@pytest.mark.parametrize("kind", ["random", "ties", "one corner"])
def test_settling(n, kind):
    gen = torch.Generator().manual_seed(n)
    w = torch.rand(n, generator=gen)
    place = torch.randperm(196, generator=gen)[:n]
    row, column = place // 14, place % 14
    if kind == "ties":
        w = torch.full((n,), 0.3)
    if kind == "one corner":
        row = column = torch.zeros(n, dtype=torch.int64)
    got = save_mem.settle(w, row, column).nonzero()[:, 0].tolist()
    assert set(got) == settled(w.tolist(), row.tolist(), column.tolist())
