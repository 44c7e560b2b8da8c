# SPDX-License-Identifier: Apache-2.0
"""Block-sparse `attention`: the block mask together with everything else."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
MASKS = ("", "batch", "heads", "batch heads")
SIZES = (1, 7, 16, 48, 64, 65, 128, 1000)


def both(args, **kwargs):
    return ops.attention(*args, return_lse=True, **kwargs)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(dtype):
    grid = samples.cover(
        2,
        15,
        batch=(1, 2, 3),
        kv_heads=(1, 2),
        group=(1, 2, 3, 5, 8),
        q_len=(0, 1, 5, 63, 64, 65, 130),
        k_len=(0, 1, 31, 63, 64, 65, 130, 257),
        dim=(16, 64, 80, 128),
        layout=(*samples.LAYOUTS, "heads last"),
        window=(None, None, None, 1, 40, 100),
        sinks=(0, 0, 1, 17, 70),
        causal=(True, False),
        learned=(False, True),
        softcap=(0.0, 0.0, 5.0),
        split=(4096, 4096, 33),
        blocks=MASKS,
        block_size=SIZES,
        density=(0.0, 0.2, 0.5, 1.0),
    )
    for i, case in enumerate(grid):
        args, kwargs = samples.dense(i, dtype=dtype, **case)
        compare.check_levels("attention", args, kwargs, case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    args, kwargs = samples.dense(
        draw(st.integers(0, 2**20)),
        draw(st.integers(0, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 70)),
        draw(st.integers(0, 140)),
        16 * draw(st.integers(1, 5)),
        draw(st.sampled_from(samples.DTYPES)),
        draw(st.sampled_from(samples.LAYOUTS)),
        draw(st.booleans()),
        draw(st.sampled_from(MASKS)),
        draw(st.floats(0, 1)),
        block_size=draw(st.integers(1, 150)),
        window=draw(st.none() | st.integers(1, 150)),
        sinks=draw(st.integers(0, 80)),
        causal=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 2.0])),
        split=draw(st.integers(1, 200)),
    )
    compare.check_levels("attention", args, kwargs, [tuple(x.shape) for x in args])


@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_that_shows_all_changes_no_bit(isa, causal):
    args, kwargs = samples.dense(1, 2, 2, 3, 130, 257, 64, causal=causal)
    want = both(args, **kwargs)
    for shape in ((1, 1, 3, 5), (2, 6, 3, 5)):
        got = both(args, **kwargs, block_mask=torch.ones(shape, dtype=torch.bool))
        assert compare.same_bits(got[0], want[0])
        assert compare.same_bits(got[1], want[1])


def test_one_mask_has_the_bits_of_its_copies(isa):
    """A mask for all heads, which read keys together, and the same one written out per head."""
    for dtype in samples.DTYPES:
        args, kwargs = samples.dense(
            2, 2, 2, 3, 130, 200, 64, dtype, learned=True, blocks="", block_size=48, sinks=3
        )
        shared = both(args, **kwargs)
        mask = kwargs.pop("block_mask")
        for wide in (mask.expand(2, 6, -1, -1), mask.repeat(2, 6, 1, 1)):
            got = both(args, **kwargs, block_mask=wide)
            assert compare.same_bits(got[0], shared[0])
            assert compare.same_bits(got[1], shared[1])


def test_bits_alone_and_in_a_batch(isa):
    args, kwargs = samples.dense(3, 3, 2, 2, 65, 130, 64, blocks="batch heads", block_size=16)
    o, lse = both(args, **kwargs)
    mask = kwargs.pop("block_mask")
    for b in range(3):
        for h in range(2):
            heads = slice(2 * h, 2 * h + 2)
            q, k, v = args[0][b : b + 1, heads], args[1][b : b + 1, [h]], args[2][b : b + 1, [h]]
            alone = both((q, k, v), **kwargs, block_mask=mask[b : b + 1, heads])
            assert compare.same_bits(alone[0], o[b : b + 1, heads])
            assert compare.same_bits(alone[1], lse[b : b + 1, heads])


def test_splits_and_threads(isa):
    args, kwargs = samples.dense(4, 1, 2, 2, 3, 257, 64, blocks="heads", block_size=16, sinks=4)
    want = compare.reference("attention", args, kwargs)
    for split in (1, 17, 64, 100, 2**40):
        compare.check("attention", args, {**kwargs, "split": split}, split, want=want)
    torch.set_num_threads(1)
    one = compare.run("attention", args, {**kwargs, "split": 17})
    torch.set_num_threads(2)
    for a, b in zip(one, compare.run("attention", args, {**kwargs, "split": 17}), strict=True):
        assert compare.same_bits(a, b)


@pytest.mark.parametrize("window", [None, 300])
def test_more_keys_than_a_thread_keeps_packed(window):
    args, kwargs = samples.dense(
        12, 2, 2, 1, 200, 4500, 16, window=window, sinks=70, causal=False, block_size=64
    )
    compare.check("attention", args, kwargs)
    kwargs["block_mask"] = torch.rand((1, 2, 4, 71), generator=samples.rng(1)) < 0.3
    compare.check("attention", args, kwargs)


def test_sinks_are_seen_whatever_the_mask_says(isa):
    (q, k, v), _ = samples.dense(5, 1, 1, 2, 20, 90, 32)
    hidden = torch.zeros(1, 1, 2, 6, dtype=torch.bool)
    got = both((q, k, v), block_mask=hidden, block_size=16, sinks=5)
    want = both((q, k[:, :, :5], v[:, :, :5]), causal=False)
    assert compare.distance(got[0], want[0]).rms < 1e-6
    assert compare.distance(got[1], want[1]).rms < 1e-6
    o, lse = both((q, k, v), block_mask=hidden, block_size=16)
    assert not o.any()
    assert (lse == -torch.inf).all()


def test_rows_that_see_nothing(isa):
    args, kwargs = samples.dense(6, 1, 1, 4, 64, 64, 32, learned=True, block_size=16)
    mask = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    mask[0, 2, 1] = False
    o, lse = both(args, **kwargs, block_mask=mask)
    nothing = torch.zeros(1, 4, 64, dtype=torch.bool)
    nothing[0, 2, 16:32] = True
    assert torch.equal(lse == -torch.inf, nothing)
    assert torch.equal(~o.any(-1), nothing)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("shared", [True, False])
def test_poison_in_blocks_that_are_not_set(isa, value, shared):
    """Nothing of a block that no row of a head sees is read, whatever its neighbours see."""
    (q, k, v), _ = samples.dense(7, 1, 2, 3, 130, 200, 64)
    for size in (16, 48, 64):
        shape = (1, 1 if shared else 6, -(-130 // size), -(-200 // size))
        mask = torch.rand(shape, generator=samples.rng(size)) < 0.5
        bad = mask.shape[-1] // 2
        mask[..., bad] = False
        for causal in (True, False):
            kwargs = {"block_mask": mask, "block_size": size, "causal": causal}
            clean = both((q, k, v), **kwargs)
            k_bad, v_bad = k.clone(), v.clone()
            k_bad[:, :, bad * size : (bad + 1) * size] = value
            v_bad[:, :, bad * size : (bad + 1) * size] = value
            got = both((q, k_bad, v_bad), **kwargs)
            assert compare.same_bits(got[0], clean[0])
            assert compare.same_bits(got[1], clean[1])


def test_poison_reaches_the_rows_whose_block_is_set_and_no_other(isa):
    (q, k, v), _ = samples.dense(8, 1, 1, 4, 64, 64, 32)
    mask = torch.rand((1, 4, 4, 4), generator=samples.rng(1)) < 0.5
    kwargs = {"block_mask": mask, "block_size": 16, "causal": False}
    clean = both((q, k, v), **kwargs)[0]
    v[:, :, 37, 5] = torch.nan
    o = both((q, k, v), **kwargs)[0]
    hit = mask[..., 2].repeat_interleave(16, -1)
    assert torch.equal(o[..., 5].isnan(), hit)
    assert compare.same_bits(o.masked_fill(o.isnan(), 0), clean.masked_fill(o.isnan(), 0))


CHANGES = {
    "a block of one head": lambda m, kw: m[0, 1, 1].logical_not_(),
    "its column": lambda m, kw: m.copy_(m.roll(1, -1)),
    "its row": lambda m, kw: m.copy_(m.roll(1, -2)),
    "its head": lambda m, kw: m.copy_(m.roll(1, 1)),
    "its batch": lambda m, kw: m.copy_(m.roll(1, 0)),
    "the mask": lambda m, kw: m.fill_(True),
    "the sinks": lambda m, kw: kw.update(sinks=0),
    "the window": lambda m, kw: kw.update(window=None),
    "causality": lambda m, kw: kw.update(causal=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_sensitive_to_every_term(change):
    args, kwargs = samples.dense(
        9, 2, 2, 2, 70, 130, 64, blocks="batch heads", block_size=16, sinks=3, window=60
    )
    got = compare.run("attention", args, kwargs)[0]
    limit = compare.tolerances("attention", args, kwargs, (got,))[0]
    other = {**kwargs, "block_mask": kwargs["block_mask"].clone()}
    CHANGES[change](other["block_mask"], other)
    assert compare.distance(compare.reference("attention", args, other)[0], got).rms > 20 * limit


def test_numpy():
    args, kwargs = samples.dense(10, 1, 2, 2, 33, 70, 32, blocks="heads", block_size=16)
    mask = kwargs.pop("block_mask")
    arrays = [x.numpy() for x in args]
    got = ops.attention(*arrays, block_mask=mask.numpy(), **kwargs)
    assert np.array_equal(got, ops.attention(*args, block_mask=mask, **kwargs).numpy())


Q, K, ALL = torch.zeros(2, 4, 70, 32), torch.zeros(2, 2, 130, 32), torch.ones
ERRORS = [
    (ALL(2, 4, 2, 3), {}, TypeError, "attention(block_mask): expected bool, got float32"),
    (ALL(2, 3, dtype=bool), {}, ValueError, "attention(block_mask): expected 4 axes"),
    (ALL(2, 4, 2, 2, dtype=bool), {}, ValueError,
     "attention(block_mask): expected [2|1, 4|1, 2, 3], got shape (2, 4, 2, 2)"),
    (ALL(2, 2, 2, 3, dtype=bool), {}, ValueError,
     "attention(block_mask): expected [2|1, 4|1, 2, 3], got shape (2, 2, 2, 3)"),
    (ALL(3, 4, 2, 3, dtype=bool), {}, ValueError, "got shape (3, 4, 2, 3)"),
    (ALL(2, 4, 2, 3, dtype=bool), {"block_size": 32}, ValueError,
     "attention(block_mask): expected [2|1, 4|1, 3, 5]"),
    (ALL(2, 4, 2, 3, dtype=bool), {"block_size": 0}, ValueError,
     "attention(block_size): expected 1 or more, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "kwargs", "kind", "told"), ERRORS)
def test_errors(mask, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.attention(Q, K, K, block_mask=mask, **kwargs)
