# SPDX-License-Identifier: Apache-2.0
"""Rank rows never fragment, and the bank evicts what is cheapest to miss."""

import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.adapters.bank_rows import FreeRows, GreedyDual


def numbers(extents):
    return [row for first, count in extents for row in range(first, first + count)]


def test_a_hundred_thousand_loads_and_unloads_never_fragment():
    pool, chance = FreeRows(1024), random.Random(0)
    held, free = [], set(range(1024))
    for step in range(100_000):
        rank = chance.choice((1, 2, 3, 4, 8, 16, 31, 64))
        while rank > pool.free:  # only too few rows are a reason to refuse
            rows = held.pop(chance.randrange(len(held)))
            pool.give(rows)
            free.update(numbers(rows))
        rows = pool.take(rank)
        mine = numbers(rows)
        assert len(mine) == rank
        assert free.issuperset(mine)
        free.difference_update(mine)
        held.append(rows)
        if step % 1000 == 0:
            assert pool.free == len(free)
            assert numbers(pool.runs()) == sorted(free)
            assert all(a + n < b for (a, n), (b, _) in pairwise(pool.runs()))
    for rows in held:
        pool.give(rows)
    assert pool.runs() == [(0, 1024)]


@given(st.lists(st.integers(1, 9), max_size=30), st.data())
def test_rows_are_handed_out_once_and_come_back(ranks, data):
    pool, held = FreeRows(40), []
    for rank in ranks:
        if rank > pool.free:
            with pytest.raises(ValueError, match="rows"):
                pool.take(rank)
            if held:
                pool.give(held.pop(data.draw(st.integers(0, len(held) - 1))))
            continue
        held.append(pool.take(rank))
        assert sum(n for _, n in held[-1]) == rank
    everything = numbers(pool.runs()) + [row for rows in held for row in numbers(rows)]
    assert sorted(everything) == list(range(40))


def test_the_shortest_run_that_fits_is_used_and_several_only_where_none_fits():
    pool = FreeRows(20)
    a, b, c, d, _e = (pool.take(n) for n in (5, 3, 6, 2, 4))
    pool.give(b)
    pool.give(d)
    pool.give(a)  # joins b
    assert pool.runs() == [(0, 8), (14, 2)]
    assert pool.take(2) == [(14, 2)]
    pool.give(d)
    assert pool.take(9) == [(0, 8), (14, 1)]
    assert c == [(8, 6)]


def one(cost):
    return SimpleNamespace(rank=1, cost=cost, worth=0.0, used=0)


def out(policy, cached, count=1):
    chosen = policy.choose(cached, lambda some: len(some) >= count)
    for item in chosen:
        policy.evicted(item)
        cached.remove(item)
    return chosen


def test_equal_costs_are_least_recently_used():
    policy, (a, b, c) = GreedyDual(), (one(1.0) for _ in range(3))
    for item in (a, b, c, a):
        policy.use(item)
    cached = [a, b, c]
    assert out(policy, cached) == [b]
    policy.use(c)
    assert out(policy, cached) == [a]
    assert policy.choose([], lambda some: bool(some)) is None


def test_a_dear_one_outlives_cheap_ones_but_not_for_ever():
    policy, dear = GreedyDual(), one(3.0)
    policy.use(dear)
    cached, gone = [dear], 0
    while dear in cached:
        cheap = one(1.0)
        policy.use(cheap)
        cached.append(cheap)
        out(policy, cached)
        gone += 1
    assert gone == 3  # as much cost as its own had to go by
