# SPDX-License-Identifier: Apache-2.0
"""Chunks of more queries than one block holds, whose tiles of keys and values stay packed."""

from __future__ import annotations

import pytest
import torch

from tests.ops import compare, samples

WINDOW, SINKS = 90, 4


def both(args, **kwargs):
    return compare.run("attention", args, kwargs)


@pytest.mark.parametrize("dim", [16, 80, 128])
@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_rows_alone_have_the_bits_of_a_chunk(isa, dtype, dim):
    (q, k, v), kwargs = samples.dense(
        31, 2, 2, 3, 70, 210, dim, dtype, window=WINDOW, sinks=SINKS, learned=True
    )
    o, lse = both((q, k, v), **kwargs)
    for i in (0, 1, 20, 21, 45, 69):
        upto = 210 - 70 + i + 1
        alone = both((q[:, :, i : i + 1], k[:, :, :upto], v[:, :, :upto]), **kwargs)
        assert compare.same_bits(alone[0], o[:, :, i : i + 1]), i
        assert compare.same_bits(alone[1], lse[:, :, i : i + 1]), i


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["k", "v"])
def test_poison_reaches_the_rows_that_see_it_and_no_other(isa, what, value):
    (q, k, v), kwargs = samples.dense(32, 2, 2, 2, 70, 210, 80, window=WINDOW, sinks=SINKS)
    clean = both((q, k, v), **kwargs)
    at = 170  # of batch 1: row 30 is the first to see it
    {"k": k, "v": v}[what][1, :, at] = value
    o, lse = both((q, k, v), **kwargs)
    assert not o[1, :, 30:].isfinite().any()
    o[1, :, 30:], lse[1, :, 30:] = clean[0][1, :, 30:], clean[1][1, :, 30:]
    assert compare.same_bits(o, clean[0])
    assert compare.same_bits(lse, clean[1])
