# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import ops
from tests import levels
from tests.ops import compare, masses, samples
from tests.ops.masses import check_segments, updated

pytestmark = pytest.mark.usefixtures("two_threads")


def check_levels(args, kwargs, label=""):
    want = compare.reference("segment_reduce", args, kwargs)
    for level in levels.of_op("segment_reduce"):
        with headrace.use_isa(level):
            check_segments(args, kwargs, f"{level} {label}", want)


def test_grid():
    grid = samples.cover(
        21,
        28,
        rows=(0, 1, 2, 63, 64, 65, 131),
        heads=(1, 2, 3, 8),
        dim=(1, 3, 8, 16, 17, 63, 64, 65, 128),
        segments=(0, 1, 2, 7, 40),
        dtype=samples.DTYPES,
        layout=samples.LAYOUTS,
        state_layout=samples.LAYOUTS,
        order=("any", "runs"),
        states=(masses.STATES, *((name,) for name in masses.STATES), ("low", "unit")),
        bounds=(None, torch.float32),
        fresh=(False, True),
    )
    for i, case in enumerate(grid):
        check_levels(*masses.segment_reduce(i, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    check_levels(
        *masses.segment_reduce(
            draw(st.integers(0, 2**20)),
            draw(st.integers(0, 40)),
            draw(st.integers(1, 3)),
            draw(st.integers(1, 40)),
            draw(st.integers(0, 12)),
            draw(st.sampled_from(samples.DTYPES)),
            states=tuple(draw(st.sets(st.sampled_from(masses.STATES), min_size=1))),
        )
    )


@pytest.mark.parametrize("rows", [67, 1500])
def test_appending_is_recomputing(isa, rows):
    """The same bits in one call, in two, row by row, and on one thread."""
    args, kwargs = masses.segment_reduce(5, rows, 3, 48, segments=4, fresh=True)
    whole = updated(args, kwargs)
    torch.set_num_threads(1)
    alone = updated(args, kwargs)
    torch.set_num_threads(2)
    for cuts in ((31, rows), tuple(range(1, rows + 1)) if rows < 100 else (700, 701, rows)):
        parts, begin = kwargs, 0
        for end in cuts:
            parts = updated([x[begin:end] for x in args], parts)
            begin = end
        for name, s in whole.items():
            assert compare.same_bits(parts[name], s), name
            assert compare.same_bits(alone[name], s), name


def test_summaries_merge(isa):
    """Two parts of the rows, summarised apart, add up to the whole."""
    (x, ids), kwargs = masses.segment_reduce(6, 90, fresh=True)
    whole = updated((x, ids), kwargs)
    a, b = updated((x[:40], ids[:40]), kwargs), updated((x[40:], ids[40:]), kwargs)
    assert torch.equal(torch.minimum(a["low"], b["low"]), whole["low"])
    assert torch.equal(torch.maximum(a["high"], b["high"]), whole["high"])
    assert torch.equal(a["count"] + b["count"], whole["count"])
    for name in ("total", "unit"):
        assert compare.distance(a[name] + b[name], whole[name]).rms < 1e-6


def test_what_a_block_is(isa):
    """Mean, bounds and mean direction of blocks of consecutive rows, as plain torch has them."""
    x = samples.normal(samples.rng(7), 96, 2, 32, dtype=torch.bfloat16)
    ids = (torch.arange(96) // 16).int()
    total, unit = torch.zeros(6, 2, 32), torch.zeros(6, 2, 32)
    low, high = torch.full_like(total, torch.inf).bfloat16(), torch.full_like(total, -torch.inf)
    count = torch.zeros(6, dtype=torch.int32)
    ops.segment_reduce(x, ids, total, low, high, unit, count)
    blocks = x.view(6, 16, 2, 32).double()
    assert compare.distance(total / count[:, None, None], blocks.mean(1)).rms < 1e-6
    assert torch.equal(low.double(), blocks.amin(1))
    assert torch.equal(high.double(), blocks.amax(1))
    want = torch.nn.functional.normalize(blocks, dim=-1).sum(1)
    assert compare.distance(unit, want).rms < 1e-6
    assert count.tolist() == [16] * 6


def test_only_what_is_given_changes(isa):
    """Segments without rows and states that are part of larger memory keep every other bit."""
    (x, ids), kwargs = masses.segment_reduce(8, 20, 2, 33, 6)
    ids[ids == 3] = 2
    for name in ("total", "low", "high", "unit"):
        big = torch.full((8, 4, 50), 1234.0)
        part = big[1:7, 1:3, 5:38]
        part.copy_(kwargs[name])
        before = big.clone()
        compare.run("segment_reduce", (x, ids), {name: part})
        named = torch.zeros_like(big, dtype=torch.bool)
        named[1 + ids[(ids >= 0) & (ids < 6)].unique().long(), 1:3, 5:38] = True
        assert compare.same_bits(big[~named], before[~named]), name
        assert not torch.equal(part, kwargs[name]), name


def test_rows_of_no_length_add_no_direction(isa):
    x = torch.zeros(3, 1, 40)
    x[1, 0, 39] = -2.0
    unit, count = torch.zeros(1, 1, 40), torch.zeros(1, dtype=torch.int32)
    ops.segment_reduce(x, torch.zeros(3, dtype=torch.int32), unit=unit, count=count)
    assert unit[0, 0].tolist() == [0.0] * 39 + [-1.0]
    assert count.tolist() == [3]


TERMS = {
    "a row": lambda x, ids, kw: x[0].neg_(),
    "the last row": lambda x, ids, kw: x[-1].neg_(),
    "the last column": lambda x, ids, kw: x[..., -1].neg_(),
    "a segment": lambda x, ids, kw: ids.copy_((ids + 1) % 4),
    "a head": lambda x, ids, kw: x.copy_(x.flip(1)),
    "what was there": lambda x, ids, kw: [s.zero_() for s in kw.values()],
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("state", masses.STATES[:4])
def test_sensitive_to_every_term(term, state):
    gen = samples.rng(9)
    x, ids = samples.normal(gen, 8, 2, 17) * 3, (torch.arange(8) % 4).int()
    kwargs = {state: samples.normal(gen, 4, 2, 17)}
    want = compare.reference("segment_reduce", (x, ids), kwargs)
    check_segments((x, ids), kwargs, want=want)
    TERMS[term](x, ids, kwargs)
    with pytest.raises(AssertionError):
        check_segments((x, ids), kwargs, want=want)


def test_numpy():
    (x, ids), kwargs = masses.segment_reduce(10)
    want = updated((x, ids), kwargs)
    arrays = {name: s.numpy().copy() for name, s in kwargs.items()}
    assert ops.segment_reduce(x.numpy(), ids.numpy(), **arrays) is None
    for name, s in want.items():
        assert np.array_equal(arrays[name], s.numpy())


X, IDS = torch.zeros(5, 2, 8), torch.zeros(5, dtype=torch.int32)
S, N = torch.zeros(3, 2, 8), torch.zeros(3, dtype=torch.int32)
ERRORS = [
    ((X, IDS), {}, ValueError, "segment_reduce(total): expected one result or more, got none"),
    ((X.double(), IDS, S), {}, TypeError, "segment_reduce(x): expected one of float32"),
    ((X, IDS.long(), S), {}, TypeError, "segment_reduce(ids): expected int32, got int64"),
    ((X, IDS[:4], S), {}, ValueError, "segment_reduce(ids): expected T = 5"),
    ((X, IDS, S.half()), {}, TypeError, "segment_reduce(total): expected float32, got float16"),
    ((X, IDS, S[..., :7]), {}, ValueError, "segment_reduce(total): expected D = 8"),
    ((X, IDS, S[:, :1]), {}, ValueError, "segment_reduce(total): expected H = 2"),
    ((X, IDS, S), {"count": N[:2]}, ValueError, "segment_reduce(count): expected S = 3"),
    ((X, IDS), {"low": S.half()}, TypeError, "segment_reduce(low): expected float32, or the"),
    ((X, IDS), {"high": S.mT.contiguous().mT}, ValueError, "segment_reduce(high): expected str"),
    ((X, IDS), {"count": N.long()}, TypeError, "segment_reduce(count): expected int32, got"),
    ((X, IDS, S[:1].expand(3, 2, 8)), {}, ValueError, "segment_reduce(total): expected memory"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.segment_reduce(*args, **kwargs)
