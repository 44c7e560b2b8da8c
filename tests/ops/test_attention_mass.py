# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, masses, samples

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs, label=""):
    compare.check_levels("attention_mass", args, kwargs, label, floor=1e-3)


def test_grid():
    grid = samples.cover(
        31,
        30,
        batch=(1, 2),
        kv_heads=(1, 2, 3),
        group=(1, 2, 5),
        asked=(1, 1, 2, 7, 23, 65),
        keys=(0, 1, 2, 63, 64, 65, 131, 1100),
        dim=(16, 48, 64, 80, 128),
        dtype=samples.DTYPES,
        layout=samples.LAYOUTS,
        ragged=(False, True),
        known=(False, False, True),
        past=(None, None, 0, 20, 5000),
        sharp=(1.0, 0.0, 12.0),
        causal=(True, False),
        reduce=("mean", "sum", "max"),
        exclude=(0, 0, 1, 16, 5000),
        pool=(1, 1, 3, 7, 101),
        pooling=("mean", "max"),
        decay=(1.0, 0.9, 0.0, -1.0),
        scale=(None, 0.3),
    )
    for i, case in enumerate(grid):
        check_levels(*masses.attention_mass(i, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    check_levels(
        *masses.attention_mass(
            draw(st.integers(0, 2**20)),
            draw(st.integers(1, 2)),
            draw(st.integers(1, 2)),
            draw(st.integers(1, 3)),
            draw(st.integers(1, 30)),
            draw(st.integers(0, 140)),
            16 * draw(st.integers(1, 3)),
            ragged=draw(st.booleans()),
            known=draw(st.booleans()),
            past=draw(st.none() | st.integers(0, 150)),
            causal=draw(st.booleans()),
            reduce=draw(st.sampled_from(("mean", "sum", "max"))),
            exclude=draw(st.integers(0, 20)),
            pool=2 * draw(st.integers(0, 4)) + 1,
            pooling=draw(st.sampled_from(("mean", "max"))),
        )
    )


@pytest.mark.parametrize("causal", [False, True])
def test_every_query_spreads_one(isa, causal):
    (q, k), _ = masses.attention_mass(1, 2, 3, 4, 9, 700)
    mass = ops.attention_mass(q, k, causal=causal, reduce="sum")
    assert torch.allclose(mass.sum(-1), torch.full((2, 3), 36.0), atol=1e-4)
    assert (mass >= 0).all()


def test_column_sums_of_softmax(isa):
    """One query: the probabilities themselves; all queries of a prompt: columns of attention."""
    (q, k), _ = masses.attention_mass(2, 1, 1, 1, 90, 90, 32)
    logits = (q[0, 0].double() @ k[0, 0].double().T) / 32**0.5
    logits = logits.masked_fill(torch.ones(90, 90).triu(1).bool(), -torch.inf)
    p = logits.softmax(-1)
    got = ops.attention_mass(q, k, reduce="sum")[0, 0]
    assert compare.distance(got, p.sum(0)).rms < 1e-6
    last = ops.attention_mass(q[:, :, -1:], k)[0, 0]
    assert compare.distance(last, p[-1]).rms < 1e-6


def test_sums_of_attention_save_a_pass(isa):
    """With the logarithms that attention gives, the same as without."""
    (q, k), _ = masses.attention_mass(3, 2, 2, 3, 70, 150)
    _, lse = ops.attention(q, k, k, return_lse=True)
    got = ops.attention_mass(q, k, lse=lse, pool=5, exclude=3)
    want = ops.attention_mass(q, k, pool=5, exclude=3)
    assert compare.distance(got, want).rms < 1e-5


def test_accumulates_over_steps(isa):
    """Token by token with a decay, as a sum over the steps weights them."""
    (q, k), _ = masses.attention_mass(4, 1, 2, 2, 40, 40, 32)
    past = torch.zeros(1, 2, 0)
    want = torch.zeros(1, 2, 40, dtype=torch.float64)
    for t in range(40):
        now = q[:, :, t : t + 1], k[:, :, : t + 1]
        past = ops.attention_mass(*now, past=past, decay=0.8)
        want *= 0.8
        want[..., : t + 1] += compare.reference("attention_mass", now, {})[0]
    assert compare.distance(past, want).rms < 1e-6


def test_large_logits_stay_finite(isa):
    """A row whose logits are all far below 0, and one that sees a key far above the rest."""
    q, k = torch.full((1, 1, 2, 16), 50.0), -torch.ones(1, 1, 90, 16) * 50
    q[0, 0, 1] = -50.0
    k[0, 0, 30] *= 1.5
    mass = ops.attention_mass(q, k, causal=False, reduce="sum")[0, 0]
    assert mass.isfinite().all()
    near = 10000 * 2**-23  # rounding of such logits
    assert abs(float(mass.sum()) - 2) < near
    assert abs(float(mass[30]) - 1.0) < near
    assert torch.allclose(mass[31:], torch.tensor(1 / 89), rtol=near)


def test_what_does_not_count_gives_zero(isa):
    (q, k), _ = masses.attention_mass(5, 3, 2, 2, 4, 80)
    lengths = torch.tensor([0, 3, 71], dtype=torch.int32)
    for b, n in enumerate(lengths.tolist()):
        k[b, :, n:] = torch.nan
    mass = ops.attention_mass(q, k, lengths=lengths, exclude=2, pool=3)
    for b, n in enumerate((0, 1, 69)):
        assert (mass[b, :, n:] == 0).all()
        assert (mass[b, :, :n] > 0).all()
    alone = ops.attention_mass(q[2:], k[2:, :, :71], exclude=2, pool=3)
    assert compare.same_bits(mass[2:, :, :69], alone)


def test_bits_do_not_depend_on_neighbours(isa):
    (q, k), _ = masses.attention_mass(6, 3, 2, 2, 5, 2500, 32)
    whole = ops.attention_mass(q, k, pool=7)
    torch.set_num_threads(1)
    assert compare.same_bits(ops.attention_mass(q, k, pool=7), whole)
    torch.set_num_threads(2)
    for b in range(3):
        one = ops.attention_mass(q[b : b + 1], k[b : b + 1], pool=7)
        assert compare.same_bits(one, whole[b : b + 1])
    head = ops.attention_mass(q[:, 2:], k[:, 1:], pool=7)
    assert compare.same_bits(head, whole[:, 1:])


TERMS = {
    "a query": lambda q, k, kw: q[:, :, -1].neg_(),
    "the first query": lambda q, k, kw: q[:, :, 0].neg_(),
    "a head": lambda q, k, kw: q[:, -1].neg_(),
    "the right kv head": lambda q, k, kw: k.copy_(k.roll(1, 1)),
    "the right batch": lambda q, k, kw: k.copy_(k.roll(1, 0)),
    "the last element": lambda q, k, kw: q[..., -1].add_(3.0),
    "causality": lambda q, k, kw: kw.update(causal=False),
    "mean or sum": lambda q, k, kw: kw.update(reduce="sum"),
    "the largest": lambda q, k, kw: kw.update(reduce="max"),
    "neighbours": lambda q, k, kw: kw.update(pool=1),
    "more neighbours": lambda q, k, kw: kw.update(pool=5),
    "the largest neighbour": lambda q, k, kw: kw.update(pooling="max"),
    "the past": lambda q, k, kw: kw.pop("past"),
    "the decay": lambda q, k, kw: kw.update(decay=1.0),
    "the scale": lambda q, k, kw: kw.update(scale=0.5),
    "the lengths": lambda q, k, kw: kw["lengths"].add_(1),
    "the sums": lambda q, k, kw: kw.update(lse=torch.ones(2, 4, q.shape[2])),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("asked", [3, 33])
def test_sensitive_to_every_term(term, asked):
    options = dict(pool=3, past=20, decay=0.5, exclude=2)
    (q, k), kwargs = masses.attention_mass(7, asked=asked, keys=40, dim=32, **options)
    kwargs["lengths"] = torch.tensor([39, 35], dtype=torch.int32)
    want = compare.reference("attention_mass", (q, k), kwargs)
    compare.check("attention_mass", (q, k), kwargs, want=want)
    other = (q.clone(), k.clone())
    changed = {n: x.clone() if torch.is_tensor(x) else x for n, x in kwargs.items()}
    TERMS[term](*other, changed)
    got = compare.run("attention_mass", other, changed)
    with pytest.raises(AssertionError):
        compare.check("attention_mass", (q, k), kwargs, got=got, want=want)


def test_excluding_is_cutting_before_the_pool(isa):
    """Excluded keys take part in the softmax, not in what is pooled."""
    (q, k), _ = masses.attention_mass(8, keys=60)
    whole = ops.attention_mass(q, k)[..., :50]
    want = torch.nn.functional.avg_pool1d(whole.double(), 5, stride=1, padding=2)
    got = ops.attention_mass(q, k, exclude=10, pool=5)
    assert compare.distance(got, want).rms < 1e-6


def test_numpy():
    (q, k), _ = masses.attention_mass(9)
    got = ops.attention_mass(q.numpy(), k.numpy())
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, ops.attention_mass(q, k).numpy())


Q, K = torch.zeros(2, 4, 3, 32), torch.zeros(2, 2, 9, 32)
PAST = torch.zeros(2, 2, 9)
ERRORS = [
    ((Q.double(), K), {}, TypeError, "attention_mass(q): expected one of float32, bfloat16"),
    ((Q, K.half()), {}, TypeError, "attention_mass(k): expected float32, as q, got float16"),
    ((Q[..., :24], K[..., :24]), {}, NotImplementedError, "attention_mass(q): expected one of"),
    ((Q[..., :0], K[..., :0]), {}, NotImplementedError, "attention_mass(q): expected one of"),
    ((Q[:, :3], K), {}, ValueError, "attention_mass(q): expected query heads that are a"),
    ((Q[:, :, :0], K), {}, ValueError, "attention_mass(q): expected 1 query or more, got 0"),
    ((Q, K[:1]), {}, ValueError, "attention_mass(k): expected B = 2"),
    ((Q, K), {"reduce": "last"}, ValueError, "attention_mass(reduce): expected one of mean"),
    ((Q, K), {"pooling": "min"}, ValueError, "attention_mass(pooling): expected one of mean"),
    ((Q, K), {"pool": 4}, ValueError, "attention_mass(pool): expected an odd number, got 4"),
    ((Q, K), {"exclude": -1}, ValueError, "attention_mass(exclude): expected 0 or more"),
    ((Q, K), {"decay": torch.inf}, ValueError, "attention_mass(decay): expected a finite"),
    ((Q, K), {"scale": torch.nan}, ValueError, "attention_mass(scale): expected a finite"),
    ((Q, K), {"past": PAST, "exclude": 1}, ValueError, "attention_mass(past): expected 8 keys"),
    ((Q, K), {"past": PAST.half()}, TypeError, "attention_mass(past): expected float32"),
    ((Q, K), {"lse": torch.zeros(2, 4, 2)}, ValueError, "attention_mass(lse): expected W = 3"),
    ((Q, K), {"lengths": torch.zeros(2)}, TypeError, "attention_mass(lengths): expected int32"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.attention_mass(*args, **kwargs)


@pytest.mark.parametrize("dim", [32, 80, 128])
def test_many_queries_in_bf16(isa, dim):
    gen = torch.Generator().manual_seed(dim)
    q = torch.randn(2, 4, 9, dim, generator=gen).bfloat16()
    k = torch.randn(2, 2, 70, dim, generator=gen).bfloat16()
    for options in ({}, {"causal": False}):
        compare.check("attention_mass", (q, k), options, (dim, options))
