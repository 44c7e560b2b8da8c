# SPDX-License-Identifier: Apache-2.0
"""Eviction by head: what is left is attended to exactly, and the rest of the memory is free."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import PagePool, debug, ops
from headrace.memory.heads import HeadCache, budgets

L, HQ, HKV, D, P = 2, 4, 2, 16, 16
FREQ = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)


def made(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cache(pages=64, dtype=torch.float32, **kinds):
    pool = PagePool(1, pages, 1, D, page_size=P, dtype=dtype)
    if not dtype.is_floating_point:
        pool.k.fill_(99)
    else:
        pool.k.fill_(torch.nan), pool.v.fill_(torch.nan)
    return HeadCache(pool, L, HKV, inv_freq=FREQ, **kinds)


def turn(x, at):
    angle = at.double()[:, None, None] * FREQ
    a, b = x.double().chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def dense(q, k, v, alive):
    """fp64 attention of the last len(q) tokens; alive [Hkv, T] bool of the tokens before them."""
    t, n = len(k), len(q)
    at = torch.arange(t)
    q, k = turn(q, at[-n:]), turn(k, at)
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(HQ // HKV, 1)) / D**0.5
    seen = (at[None] <= at[-n:, None]) & alive.repeat_interleave(HQ // HKV, 0)[:, None]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.double().repeat_interleave(HQ // HKV, 1))


def pages_for(counts):
    return sum(-(-n // P) for n in counts)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_kept_is_attended_to_and_free_pages_grow_by_the_rest(data):
    c = cache()
    seed = data.draw(st.integers(0, 999))
    keys, values = made(seed, 0, HKV, D), made(seed, 0, HKV, D)
    alive = torch.zeros(HKV, 0, dtype=torch.bool)
    for step in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.integers(1, 40))
        k, v = made(seed + 10 * step + 1, n, HKV, D), made(seed + 10 * step + 2, n, HKV, D)
        q = made(seed + 10 * step + 3, n, HQ, D)
        c.append(0, k, v)
        keys, values = torch.cat([keys, k]), torch.cat([values, v])
        alive = torch.cat([alive, torch.ones(HKV, n, dtype=torch.bool)], 1)
        with debug():
            got = c.attend(0, q)
        want = dense(q, keys, values, alive)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
        score = made(seed + 10 * step + 4, HKV, int(alive.sum(1).max()))
        lengths = torch.tensor(c.lengths[0], dtype=torch.int32)
        budget = data.draw(st.integers(0, 60))
        index, count = ops.select(score[None], "flat", k=budget, lengths=lengths[None])
        before, had = c.pool.free_pages, list(c.lengths[0])
        freed = c.keep(0, index[0], count[0])
        assert c.lengths[0] == count[0].tolist()
        assert freed == c.pool.free_pages - before == pages_for(had) - pages_for(c.lengths[0])
        assert c.pages == c.pool.live_pages == pages_for(c.lengths[0])
        for head in range(HKV):
            there = alive[head].nonzero()[:, 0]
            alive[head] = False
            alive[head, there[index[0, head, : int(count[0, head])].long()]] = True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_pages_of_any_dtype_move_bit_for_bit(dtype):
    pool = PagePool(1, 32, 1, D, page_size=P, dtype=dtype)
    c = HeadCache(pool, 1, HKV, inv_freq=FREQ)
    k, v, q = made(1, 70, HKV, D), made(2, 70, HKV, D), made(3, 1, HQ, D)
    c.append(0, k, v)
    keep = torch.arange(0, 70, 3, dtype=torch.int32).expand(HKV, -1).contiguous()
    c.keep(0, keep, torch.full((HKV,), keep.shape[1], dtype=torch.int32))
    alive = torch.zeros(HKV, 71, dtype=torch.bool)
    alive[:, keep[0].long()] = alive[:, 70] = True
    c.append(0, k[:1], v[:1])
    want = dense(q, torch.cat([k, k[:1]]), torch.cat([v, v[:1]]), alive)
    assert (c.attend(0, q).double() - want).norm() < 0.08 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_keys_as_they_lie(dtype):
    c = HeadCache(PagePool(1, 32, 1, D, page_size=P, dtype=dtype), 1, HKV)
    k, v = made(1, 50, HKV, D), made(2, 50, HKV, D)
    c.append(0, k, v)
    keep = torch.stack([torch.arange(0, 40, 2), torch.arange(9, 29)]).int()
    c.keep(0, keep, torch.tensor([20, 17], dtype=torch.int32))
    got = c.keys(0)
    assert got.shape == (HKV, 20, D)
    for head, n in enumerate((20, 17)):
        want = k[keep[head, :n].long(), head]
        assert (got[head, :n] - want).abs().max() <= want.abs().max() / (
            127 if dtype.itemsize == 1 else 1e9
        )
        assert not got[head, n:].any()


def test_without_an_order_the_newest_see_one_another():
    c, k, v, q = cache(), made(1, 30, HKV, D), made(2, 30, HKV, D), made(3, 12, HQ, D)
    c.append(0, k, v)
    keep = torch.arange(5, 28, dtype=torch.int32).expand(HKV, -1).contiguous()
    c.keep(0, keep, torch.full((HKV,), 23, dtype=torch.int32))  # two of the newest are gone
    got = c.attend(0, q, causal=False)
    at = torch.arange(30)
    turned, keys = turn(q, at[-12:]), turn(k, at)[5:28]
    scores = torch.einsum("qhd,khd->hqk", turned, keys.repeat_interleave(HQ // HKV, 1)) / D**0.5
    values = v.double()[5:28].repeat_interleave(HQ // HKV, 1)
    want = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_layers_and_heads_have_budgets_of_their_own():
    c = cache()
    for layer in range(L):
        c.append(layer, made(layer, 64, HKV, D), made(9, 64, HKV, D))
    assert c.pages == L * HKV * 4
    score = torch.tensor([[0.0] * 64, [1.0] * 64])
    for layer, total in enumerate(budgets(80, [1, 3])):
        index, count = ops.select(score[None], "flat", k=total, floor=4)
        c.keep(layer, index[0], count[0])
    assert c.lengths == [[4, 16], [4, 56]]
    assert c.pages == 1 + 1 + 1 + 4
    c.close()
    c.close()
    assert c.pool.live_pages == 0


def test_too_few_pages_or_bad_tokens_change_nothing():
    c = cache(pages=5)
    c.append(0, made(0, 20, HKV, D), made(1, 20, HKV, D))
    with pytest.raises(ValueError, match="expected 2 free pages, got 1 of 5"):
        c.append(0, made(0, 20, HKV, D), made(1, 20, HKV, D))
    assert (c.lengths[0], c.ends[0], c.pages) == ([20, 20], 20, 4)
    with pytest.raises(ValueError, match=r"^append\("):
        c.append(0, made(0, 3, HKV, 2 * D), made(1, 3, HKV, 2 * D))
    assert (c.lengths[0], c.pages, c.pool.live_pages) == ([20, 20], 4, 4)
    ints = lambda *x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
    for index, count, told in (
        (ints([0, 20], [0, 1]), ints(2, 2), r"^keep\(index\): expected tokens 0..19 of a head"),
        (ints([0, 1], [-1, 1]), ints(2, 2), "expected tokens 0..19"),
        (ints([0, 1], [1, 1]), ints(2, 2), "expected ascending tokens"),
        (ints([0, 1], [0, 1]), ints(2, 3), "expected tokens 0..19"),
        (ints([0, 1]), ints(2), "expected a row for each of 2 heads"),
    ):
        with pytest.raises(ValueError, match=told):
            c.keep(0, index, count)
        assert c.lengths[0] == [20, 20]
    with pytest.raises(TypeError, match=r"^keep\(index\): expected int32"):
        c.keep(0, torch.zeros(HKV, 1), ints(1, 1))
    with pytest.raises(ValueError, match=r"^attend\(q\): expected 20 tokens or fewer, got 21"):
        c.attend(0, made(0, 21, HQ, D))
    with pytest.raises(ValueError, match=r"^HeadCache\(pool\): expected pages of 1 layer and 1 kv"):
        HeadCache(PagePool(2, 3, 1, D), L, HKV)


@given(st.integers(0, 10**6), st.lists(st.floats(0, 9), min_size=1, max_size=9))
def test_budgets_add_up_and_are_within_one_of_their_share(total, weights):
    if not sum(weights) > 1e-6:
        return
    got = budgets(total, weights)
    assert sum(got) == total
    assert all(abs(b - total * w / sum(weights)) <= 1 for b, w in zip(got, weights, strict=True))


def test_budgets_without_weight():
    with pytest.raises(ValueError, match=r"^budgets\(layers\): expected weights"):
        budgets(3, [0, 0])
