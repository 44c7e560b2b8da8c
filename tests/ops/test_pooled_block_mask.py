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
from tests.ops import compare, samples
from tests.ops.masks import same_choice

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs):
    """Every level keeps what the reference keeps, scores that differ by rounding aside."""
    for level in levels.of_op("pooled_block_mask"):
        with headrace.use_isa(level):
            same_choice(args, kwargs, ops.pooled_block_mask(*args, **kwargs))


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(dtype):
    grid = samples.cover(
        3,
        24,
        batch=(1, 2, 3),
        kv_heads=(1, 2),
        group=(1, 2, 3, 8),
        q_len=(0, 1, 5, 63, 64, 65, 130, 257),
        k_len=(0, 1, 31, 63, 64, 65, 130, 257),
        dim=(16, *samples.HEAD_DIMS),
        layout=(*samples.LAYOUTS, "heads last"),
        block_size=(1, 3, 16, 64, 1000),
        share=(0.0, 0.2, 0.5, 1.0),
        blocks=(None, None, 0, 1, 4, 1000),
        window=(None, None, 1, 40, 100),
        sinks=(0, 0, 1, 17, 1000),
        local=(0, 0, 1, 20, 1000),
        causal=(True, False),
    )
    for i, case in enumerate(grid):
        check_levels(*samples.pooled_block_mask(i, dtype=dtype, **case))


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    kwargs = dict(
        block_size=draw(st.integers(1, 80)),
        share=draw(st.floats(0, 1)),
        blocks=draw(st.none() | st.integers(0, 20)),
        window=draw(st.none() | st.integers(1, 150)),
        sinks=draw(st.integers(0, 80)),
        local=draw(st.integers(0, 80)),
        causal=draw(st.booleans()),
    )
    args, kwargs = samples.pooled_block_mask(
        draw(st.integers(0, 2**20)),
        draw(st.integers(0, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 140)),
        draw(st.integers(0, 140)),
        16 * draw(st.integers(1, 4)),
        draw(st.sampled_from(samples.DTYPES)),
        **kwargs,
    )
    check_levels(args, kwargs)


def exact(seed, *shape):
    """Small whole numbers: means, their centre and scores have no rounding, and many are equal."""
    return torch.randint(-1, 2, shape, generator=samples.rng(seed)).float()


@pytest.mark.parametrize("causal", [True, False])
def test_ties_go_to_the_lowest_index(isa, causal):
    q, k = exact(1, 2, 4, 128, 16), exact(2, 2, 2, 256, 16)
    for size in (4, 16):
        for blocks in (1, 2, 3, 7, 11):
            kwargs = {"blocks": blocks, "block_size": size, "causal": causal}
            want = compare.reference("pooled_block_mask", (q, k), kwargs)[0]
            assert torch.equal(ops.pooled_block_mask(q, k, **kwargs), want), kwargs
    mask = ops.pooled_block_mask(q, torch.ones_like(k), blocks=3, block_size=16, causal=False)
    assert mask[..., :3].all()
    assert not mask[..., 3:].any()
    minus = torch.where(k > 0, 0.0, -0.0)  # both zeros are one number
    mask = ops.pooled_block_mask(q, minus, blocks=3, block_size=16, causal=False)
    assert mask[..., :3].all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.25, 0.5, 0.75, 1.0])
def test_how_many(isa, share):
    (q, k), _ = samples.pooled_block_mask(3, 1, 1, 2, 64, 160, 32)
    mask = ops.pooled_block_mask(q, k, share=share, block_size=16, causal=False)
    assert (mask.sum(-1) == max(1, int(10 * share + 0.5))).all()
    mask = ops.pooled_block_mask(q, k, share=share, block_size=16)
    for i in range(4):  # query block i sees key blocks 0 to 6 + i
        assert (mask[:, :, i].sum(-1) == max(1, int((7 + i) * share + 0.5))).all()
        assert not mask[:, :, i, 7 + i :].any()
    assert not ops.pooled_block_mask(q, k, blocks=0, block_size=16).any()


def test_what_is_always_kept(isa):
    (q, k), _ = samples.pooled_block_mask(4, 1, 1, 1, 64, 160, 32)
    q, k = torch.ones_like(q), torch.linspace(-1, 1, 160)[:, None].expand_as(k).contiguous()
    kept = lambda **kw: [  # noqa: E731
        r.nonzero().flatten().tolist()
        for r in ops.pooled_block_mask(q, k, block_size=16, blocks=3, **kw)[0, 0]
    ]
    assert kept()[0] == [4, 5, 6]
    assert kept(sinks=17)[0] == [0, 1, 6]
    assert kept(sinks=16, window=40)[0] == [0, 5, 6]
    assert kept(sinks=100)[0] == [0, 1, 2, 3, 4, 5, 6]
    assert kept(local=2)[0] == [4, 5, 6]
    k = -k
    assert kept()[0] == [0, 1, 2]
    assert kept(local=1)[0] == [0, 1, 6]
    assert kept(local=2)[0] == [0, 5, 6]
    assert kept(local=100)[0] == [0, 1, 2, 3, 4, 5, 6]
    assert kept(local=100, window=20)[3] == [7, 8, 9]
    assert kept(window=20)[3] == [7, 8, 9]
    assert kept(causal=False, local=2)[1] == [6, 7, 8]


def test_rows_that_see_no_key(isa):
    (q, k), _ = samples.pooled_block_mask(5, q_len=64, k_len=20, dim=32)
    mask = ops.pooled_block_mask(q, k, block_size=16, sinks=4, local=3)
    assert not mask[:, :, :2].any()
    assert mask[:, :, 2:].any(-1).all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_bad_key_counts_least_and_stays_in_its_block(isa, value):
    (q, k), _ = samples.pooled_block_mask(6, 1, 1, 2, 64, 160, 32, block_size=16)
    q = q.abs()
    clean = k.clone()
    clean[:, :, 48:64] = -30.0
    kwargs = {"blocks": 4, "block_size": 16}
    want = ops.pooled_block_mask(q, clean, **kwargs)
    k[:, :, 50, 3] = value
    got = ops.pooled_block_mask(q, k, **kwargs)
    assert not got[..., 3].any()
    same_choice((q, k), kwargs, got)
    assert torch.equal(got, want)


def test_the_common_part_of_keys_costs_no_digits(isa):
    """Keys far from 0 and close together: what centring is for."""
    (q, k), _ = samples.pooled_block_mask(7, 1, 1, 1, 64, 256, 64, block_size=16)
    kwargs = {"blocks": 4, "block_size": 16, "causal": False}
    far = k + 256.0
    near = far - 256.0  # the rounding of `far` is in both
    got, want = (ops.pooled_block_mask(q, x, **kwargs) for x in (far, near))
    assert torch.equal(got, want)


CHANGES = {
    "the last row of queries": lambda q, k, kw: q[:, :, -1].mul_(-40),
    "the last row of a block of keys": lambda q, k, kw: k[:, :, 95].mul_(-40),
    "the right head": lambda q, k, kw: k.copy_(k.roll(1, 1)),
    "the right batch": lambda q, k, kw: k.copy_(k.roll(1, 0)),
    "causality": lambda q, k, kw: kw.update(causal=False),
    "the window": lambda q, k, kw: kw.update(window=None),
    "the sinks": lambda q, k, kw: kw.update(sinks=0),
    "what is local": lambda q, k, kw: kw.update(local=0),
    "how many": lambda q, k, kw: kw.update(blocks=4),
    "the block size": lambda q, k, kw: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_sensitive_to_every_term(change):
    kwargs = {"blocks": 5, "window": 140, "sinks": 3, "local": 3, "block_size": 16}
    (q, k), _ = samples.pooled_block_mask(8, 2, 2, 2, 130, 200, 64)
    same_choice((q, k), kwargs, ops.pooled_block_mask(q, k, **kwargs))
    other = (q.clone(), k.clone())
    CHANGES[change](*other, kwargs_other := dict(kwargs))
    got = ops.pooled_block_mask(*other, **kwargs_other)
    if change == "the block size":
        got = ops.pooled_block_mask(q, k, **{**kwargs, "block_size": 15})
        got = got[:, :, :9, :13]
    with pytest.raises(AssertionError):
        same_choice((q, k), kwargs, got)


def test_alone_and_in_a_batch(isa):
    (q, k), kwargs = samples.pooled_block_mask(9, 3, 2, 2, block_size=16)
    whole = ops.pooled_block_mask(q, k, **kwargs)
    torch.set_num_threads(1)
    assert torch.equal(ops.pooled_block_mask(q, k, **kwargs), whole)
    for b in range(3):
        alone = ops.pooled_block_mask(q[b : b + 1, 2:], k[b : b + 1, 1:], **kwargs)
        assert torch.equal(alone, whole[b : b + 1, 2:])


def test_poison_between_rows_is_not_read(isa):
    for layout in ("rows", "wide", "heads last"):
        (q, k), kwargs = samples.pooled_block_mask(10, layout=layout, block_size=16)
        copies = ops.pooled_block_mask(q.clone(), k.clone(), **kwargs)
        assert torch.equal(ops.pooled_block_mask(q, k, **kwargs), copies), layout


def test_serves_attention(isa):
    (q, k, v), _ = samples.dense(11, 1, 2, 2, 130, 200, 64)
    mask = ops.pooled_block_mask(q, k, share=0.3, block_size=16)
    args, kwargs = (q, k, v), {"block_mask": mask, "block_size": 16}
    compare.check("attention", args, kwargs)
    assert ops.attention(*args, **kwargs).any(-1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy(dtype):
    (q, k), _ = samples.pooled_block_mask(12)
    arrays = q.numpy().astype(dtype), k.numpy().astype(dtype)
    mask = ops.pooled_block_mask(*arrays)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, ops.pooled_block_mask(*map(torch.from_numpy, arrays)).numpy())


Q, K = torch.zeros(2, 4, 70, 32), torch.zeros(2, 2, 130, 32)
ERRORS = [
    ((Q.double(), K.double()), {}, TypeError,
     "pooled_block_mask(q): expected one of float32, bfloat16, float16, got float64"),
    ((Q, K.half()), {}, TypeError, "pooled_block_mask(k): expected float32, as q, got float16"),
    ((Q[0], K), {}, ValueError, "pooled_block_mask(q): expected 4 axes"),
    ((Q, K[:1]), {}, ValueError, "pooled_block_mask(k): expected B = 2"),
    ((Q[:, :3], K), {}, ValueError,
     "pooled_block_mask(q): expected query heads that are a multiple of 2 kv heads, got 3"),
    ((Q[..., :24], K[..., :24]), {}, NotImplementedError, "pooled_block_mask(q): "),
    ((Q.mT, K), {}, ValueError, "pooled_block_mask(q): expected stride 1 along the last axis"),
    ((Q, K), {"share": 1.5}, ValueError,
     "pooled_block_mask(share): expected a number from 0 to 1, got 1.5"),
    ((Q, K), {"share": float("nan")}, ValueError, "pooled_block_mask(share)"),
    ((Q, K), {"blocks": -1}, ValueError, "pooled_block_mask(blocks): expected 0 or more, got -1"),
    ((Q, K), {"block_size": 0}, ValueError, "pooled_block_mask(block_size): expected 1 or more"),
    ((Q, K), {"window": 0}, ValueError, "pooled_block_mask(window): expected 1 or more, got 0"),
    ((Q, K), {"sinks": -1}, ValueError, "pooled_block_mask(sinks): expected 0 or more, got -1"),
    ((Q, K), {"local": -1}, ValueError, "pooled_block_mask(local): expected 0 or more, got -1"),
    ((Q, K), {"blocks": 0.5}, TypeError, "pooled_block_mask(blocks): expected an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.pooled_block_mask(*args, **kwargs)
