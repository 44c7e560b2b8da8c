# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from headrace.filters import PreviousFrame
from headrace.recipes import timechat_online as dtd
from tests.recipes import plain


def definition(near, threshold, share, worst):
    """Frame by frame; near[t][p] by what comes before, None for the first frame."""
    kept = []
    for row in near:
        if row is None:
            kept.append(None)
        elif share is None:
            kept.append([p for p, s in enumerate(row) if not worst * s > worst * threshold])
        else:
            drop = sorted(range(len(row)), key=lambda p, r=row: (-worst * r[p], -p))
            kept.append(sorted(set(range(len(row))) - set(drop[: int(len(row) * share)])))
    return kept


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize(("count", "n"), [(0, 5), (1, 7), (5, 31), (4, 64), (6, 1)])
@pytest.mark.parametrize(("threshold", "share"), [
    (0.5, None), (0.25, None), (-1.1, None), (1.1, None), (0.5, 0.0), (0.5, 0.3), (0.5, 1.0),
])  # fmt: skip
def test_by_features(kind, count, n, threshold, share):
    x = plain.frames(n, count, n, kind)
    unit = plain.unit(x)
    near = [None, *((unit[1:] * unit[:-1]).sum(-1).float().tolist())][:count]
    want = definition(near, threshold, share, 1)
    got = plain.flat(dtd.keep(x, threshold=threshold, share=share))
    want = [list(range(n)) if row is None else row for row in want]
    assert [len(row) for row in got] == [len(row) for row in want]
    for t, (row, other) in enumerate(zip(got, want, strict=True)):
        # Cosines that differ by rounding alone may be taken either way.
        apart = set(row) ^ set(other)
        close = [near[t][p] for p in apart]
        assert not apart or max(close) - min(close) < 1e-6, (t, apart)
    if share is None and count:
        f = PreviousFrame(threshold)
        assert [f(frame).mask.nonzero()[:, 0].tolist() for frame in x] == got
        kept = dtd.keep(x, threshold=threshold)
        assert dtd.dropped(kept, n).tolist() == pytest.approx([1 - len(r) / n for r in got])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("pairs", "high", "wide"), [(0, 1, 2), (1, 2, 3), (5, 3, 7), (4, 1, 1)])
@pytest.mark.parametrize(("threshold", "share"), [(0.05, None), (0.0, None), (2.0, None), (0, 0.4)])
def test_by_pixels(dtype, pairs, high, wide, threshold, share):
    """The second frame of a pair against the first of the pair before, patch by patch."""
    gen = torch.Generator().manual_seed(pairs)
    x = torch.randint(0, 256, (2 * pairs, high * 4, wide * 4, 3), generator=gen)
    if pairs > 2:
        noise = torch.randint(-9, 10, x[4:6].shape, generator=gen)
        noise[:, :4] *= 4
        x[4:6] = (x[2:3] + noise).clamp(0, 255)
    scale = 255.0 if dtype == torch.uint8 else 1.0
    x = x.byte() if dtype == torch.uint8 else x.float() / 255
    near = []
    for t in range(pairs):
        row = []
        for y in range(0, high * 4, 4):
            for c in range(0, wide * 4, 4):
                last, first = (x[i, y : y + 4, c : c + 4].double() for i in (2 * t + 1, 2 * t - 2))
                row.append(float(((last - first).abs().mean() / scale).float()))
        near.append(row if t else None)
    want = definition(near, threshold, share, -1)
    want = [list(range(high * wide)) if row is None else row for row in want]
    got = plain.flat(dtd.keep_pixels(x, threshold, side=4, share=share))
    assert got == want
    if pairs > 2 and threshold == 0.05 and high > 1:
        assert 0 < len(got[2]) < high * wide


def test_what_is_no_number_and_what_is_nothing_is_kept():
    x = torch.ones(2, 4, 16)
    x[1, 1, 3] = math.nan
    x[:, 2] = 0
    assert plain.flat(dtd.keep(x)) == [[0, 1, 2, 3], [1, 2]]
    pixels = torch.ones(4, 4, 8, 3)
    pixels[3, 0, 0, 0] = math.nan
    assert plain.flat(dtd.keep_pixels(pixels, 0.5, side=4)) == [[0, 1], [0]]


def test_errors():
    with pytest.raises(ValueError, match=r"timechat_online\(share\): expected 0 to 1, got 2"):
        dtd.keep(torch.zeros(2, 3, 16), share=2)
    for shape in ((3, 28, 28, 3), (2, 27, 28, 3), (2, 28, 28)):
        with pytest.raises(ValueError, match=r"timechat_online\(x\): expected \[2 T, H, W, C"):
            dtd.keep_pixels(torch.zeros(shape), 0.1)
