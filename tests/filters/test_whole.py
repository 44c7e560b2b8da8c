# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
import torch

from headrace.filters import WholeFrame


def test_a_slow_fade_is_looked_at_within_the_bound():
    base = torch.randint(0, 100, (30, 45, 3)).byte()
    f = WholeFrame(8.0, "l1")
    looked = [t for t in range(60) if f(base + t)]
    assert looked == list(range(0, 60, 8))


def test_frames_that_are_close_are_skipped():
    x = torch.randn(4, 10, 16)
    f = WholeFrame(0.98)
    assert [f(x[0]), f(x[0] + 1e-3), f(3 * x[0]), f(x[1]), f(x[0]), f(x[0])] == [
        True, False, False, True, True, False,
    ]  # fmt: skip
    assert f.skipped == 1
    f.reset()
    assert f(x[0])


def test_no_more_than_so_many_in_a_row():
    f = WholeFrame(0.5, most=2)
    x = torch.ones(3, 4)
    assert [f(x) for _ in range(7)] == [True, False, False, True, False, False, True]
    assert all(WholeFrame(0.5, most=0)(x) for _ in range(3))


def test_what_is_no_number_is_looked_at():
    x = torch.ones(3, 4)
    for metric in ("cos", "l1"):
        f = WholeFrame(0.5, metric)
        f(x)
        assert f(torch.full((3, 4), torch.nan))
        assert f(x)


def test_frames_are_not_held_on_to():
    f, x = WholeFrame(1.0, "l1"), torch.zeros(3, 4)
    f(x)
    x.fill_(5)
    assert not f(torch.zeros(3, 4))


ERRORS = [
    (lambda: WholeFrame(0.5, "psnr"), "WholeFrame(metric): expected one of cos, dot, gauss"),
    (lambda: WholeFrame(float("inf")), "WholeFrame(threshold): expected a finite number"),
    (lambda: WholeFrame(most=-1), "WholeFrame(most): expected 0 or more, or None, got -1"),
    (lambda: WholeFrame()(torch.ones(3)), "WholeFrame(frame): expected [N, ..., D] that is not"),
]


@pytest.mark.parametrize(("call", "told"), ERRORS)
def test_errors(call, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        call()


def test_another_frame_than_before():
    f, x = WholeFrame(), torch.ones(3, 4)
    f(x)
    with pytest.raises(ValueError, match=re.escape("as before, got")):
        f(torch.ones(3, 5))
    assert not f(x)
