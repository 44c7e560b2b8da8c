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
from tests.ops import compare, samples, scores

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")


def check_levels(args, kwargs, label=""):
    """Every level keeps exactly what the reference keeps."""
    want = compare.reference("select", args, kwargs)
    for level in levels.of_op("select"):
        with headrace.use_isa(level):
            got = compare.run("select", args, kwargs)
        for g, w in zip(got, want, strict=True):
            assert g.dtype == torch.int32
            assert torch.equal(g, w.int()), (level, label)


@pytest.mark.parametrize("policy", scores.POLICIES)
def test_grid(policy):
    grid = samples.cover(
        5,
        12,
        batch=(1, 2, 3),
        heads=(1, 2, 5),
        size=(0, 1, 5, 16, 63, 64, 65, 131, 700),
        values=("normal", "ties", "odd"),
        dtype=samples.DTYPES,
        layout=samples.LAYOUTS,
        ragged=(False, True),
        ends=(False, False, True),
        forced=(False, True),
        limit=("none", "none", "k", "budget"),
        lowest=(False, True),
        floor=(0, 0, 3, 1000),
        capacity=(None, None, 0, 7, 90),
        threshold=(0.5, -1.0, 0.7),
        share=(0.0, 0.1, 0.5, 1.0),
        mass=(0.0, 0.3, 0.9, 1.0),
    )
    for i, case in enumerate(grid):
        check_levels(*scores.select(i, policy=policy, **case), case)


@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    args, kwargs = scores.select(
        draw(st.integers(0, 2**20)),
        draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 140)),
        draw(st.sampled_from(scores.POLICIES)),
        draw(st.sampled_from(("normal", "ties", "odd"))),
        ragged=draw(st.booleans()),
        ends=draw(st.booleans()),
        forced=draw(st.booleans()),
        limit=draw(st.sampled_from(("none", "k", "budget"))),
        lowest=draw(st.booleans()),
        floor=draw(st.integers(0, 20)),
        share=draw(st.floats(0, 1)),
        mass=draw(st.floats(0, 1)),
        threshold=draw(st.floats(-2, 2, width=32)),
        capacity=draw(st.none() | st.integers(0, 150)),
    )
    check_levels(args, kwargs)


@pytest.mark.parametrize("values", ["normal", "ties", "sorted", "few large", "equal"])
def test_long_rows(isa, values):
    """Rows that are searched by a sample first, also where the sample misleads."""
    n = 70_001
    s = scores.scores(3, 1, 1, n, "ties" if values == "ties" else "normal")
    if values == "sorted":
        s = s.sort().values
    if values == "few large":  # where the sample does not look
        s[..., 7::23] += 100.0
    if values == "equal":
        s = torch.ones_like(s)
    for k in (1, 17, 3000, n // 2, n - 1, n):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            index, count = ops.select(s, k=k, first=5)
            assert count == k
            order = s[0, 0].masked_fill(torch.arange(n) < 5, torch.inf)
            want = order.argsort(descending=True, stable=True)[:k].sort().values
            assert torch.equal(index[0, 0].long(), want), (k, threads)


def test_ties_go_to_the_lowest_index(isa):
    s = torch.tensor([1.0, 2.0, 1.0, 2.0, 2.0, -0.0, 0.0, 0.0])
    assert ops.select(s, k=2)[0].tolist() == [1, 3]
    assert ops.select(s, k=4)[0].tolist() == [0, 1, 3, 4]
    assert ops.select(s, k=6)[0].tolist() == [0, 1, 2, 3, 4, 5]  # both zeros are one number
    assert ops.select(s, k=2, lowest=True)[0].tolist() == [5, 6]


def test_what_is_never_kept_by_score(isa):
    s = torch.tensor([torch.nan, -torch.inf, 3.0, torch.inf, -5.0])
    index, count = ops.select(s, k=5)
    assert (index.tolist(), count.item()) == ([2, 3, 4, -1, -1], 3)
    assert ops.select(s, k=5, lowest=True)[0].tolist() == [1, 2, 4, -1, -1]
    assert ops.select(s, k=5, first=1)[0].tolist() == [0, 2, 3, 4, -1]
    assert ops.select(s, k=5, lengths=torch.tensor([3], dtype=torch.int32))[0][0] == 2


def test_threshold_and_share_and_bounds(isa):
    s = torch.arange(10.0)
    kept = lambda *a, **kw: [i for i in ops.select(s, *a, **kw)[0].tolist() if i >= 0]  # noqa: E731
    assert kept("threshold", threshold=7.0) == [7, 8, 9]
    assert kept("threshold", threshold=2.0, lowest=True) == [0, 1, 2]
    assert kept("threshold", threshold=7.5, floor=4) == [6, 7, 8, 9]
    assert kept("threshold", threshold=3.0, k=2) == [8, 9]
    assert kept("threshold", threshold=8.0, first=2) == [0, 1, 8, 9]
    assert kept("threshold", threshold=8.0, first=2, capacity=3) == [0, 1, 9]
    assert kept("share", share=0.25) == [7, 8, 9]  # 2.5, to the nearest, a half upwards
    assert kept("share", share=0.24) == [8, 9]
    assert kept("share", share=0.0, floor=1) == [9]
    assert kept("top_k", k=3, first=1, last=1) == [0, 8, 9]
    assert kept("top_k", k=3, first=4, capacity=5) == [
        0,
        1,
        2,
        3,
    ]  # more than k, as they are forced
    assert kept("top_k", k=3, first=4) == [0, 1, 2]
    forced = torch.tensor([[1, 3], [8, 8], [-4, 1]], dtype=torch.int32)
    assert kept("top_k", k=4, forced=forced) == [0, 1, 2, 9]


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("mass", [0.01, 0.5, 0.9, 0.999])
def test_mass_is_reached_and_not_by_less(isa, mass, first, counted):
    s = 3 * scores.scores(int(1000 * mass), 2, 2, 501)
    counts = torch.randint(1, 9, (501,), generator=samples.rng(1)).float() if counted else None
    index, count = ops.select(s, "mass", mass=mass, counts=counts, first=first)
    weight = (s.double() - s.double().amax(-1, True)).exp()
    weight = weight * (1.0 if counts is None else counts.double())
    share = weight / weight.sum(-1, True)
    for b in range(2):
        for h in range(2):
            kept = index[b, h, : count[b, h]].long()
            held = share[b, h, kept].sum()
            assert held >= mass - 1e-6
            if len(kept) > first:
                loose = kept[kept >= first]
                worst = loose[s[b, h, loose].argsort(stable=True)[0]]
                assert held - share[b, h, worst] < mass + 1e-6


def test_mass_of_equal_scores(isa):
    s = torch.zeros(8)
    assert ops.select(s, "mass", mass=0.5)[1] == 4
    assert ops.select(s, "mass", mass=0.51)[1] == 5
    counts = torch.tensor([1.0, 1.0, 6.0, 1.0, 1.0, 1.0, 1.0, 4.0])
    assert ops.select(s, "mass", mass=0.5, counts=counts)[0].tolist()[:4] == [0, 1, 2, -1]
    s[3] = torch.inf
    assert ops.select(s, "mass", mass=0.9)[0].tolist()[:2] == [3, -1]


def test_otsu_parts_two_groups(isa):
    gen = samples.rng(2)
    low, high = torch.randn(300, generator=gen), 12 + torch.randn(80, generator=gen)
    s = torch.cat([low, high])[torch.randperm(380, generator=gen)]
    index, count = ops.select(s, "otsu")
    assert count == 80
    assert (s[index[:80].long()] > 6).all()
    assert ops.select(s, "otsu", lowest=True)[1] == 300
    assert ops.select(torch.ones(9), "otsu")[1] == 9  # nothing to part


def test_quota(isa):
    s = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0])
    buckets = torch.tensor([0, 0, 0, 0, 1, 1, 2, -1], dtype=torch.int32)
    kept = lambda **kw: [  # noqa: E731
        i for i in ops.select(s, "quota", buckets=buckets, **kw)[0].tolist() if i >= 0
    ]
    assert kept() == [0, 4, 6]
    assert kept(quota=2) == [0, 1, 4, 5, 6]
    assert kept(quota=1, floor=3) == [0, 1, 2, 4, 6]  # the best three whatever their bucket
    assert kept(quota=2, k=3) == [0, 1, 4]
    assert kept(quota=1, last=2) == [0, 4, 6, 7]
    assert kept(quota=0) == []


def test_flat(isa):
    s = torch.tensor([[[9.0, 8.0, 7.0, 6.0], [3.0, 2.0, 1.0, 0.0], [5.0, 5.0, 5.0, 5.0]]])
    kept = lambda **kw: [  # noqa: E731
        [i for i in row if i >= 0] for row in ops.select(s, "flat", **kw)[0][0].tolist()
    ]
    assert kept(k=6) == [[0, 1, 2, 3], [], [0, 1]]
    assert kept(k=6, floor=1) == [[0, 1, 2, 3], [0], [0]]
    assert kept(k=6, floor=2) == [[0, 1], [0, 1], [0, 1]]
    assert kept(k=1, floor=2) == [[0, 1], [0, 1], [0, 1]]  # the floor before the total
    assert kept(k=5, last=1, capacity=2) == [[0, 3], [3], [3]]
    assert kept(k=100) == [[0, 1, 2, 3]] * 3
    budget = torch.tensor([7], dtype=torch.int32)
    assert kept(budget=budget) == [[0, 1, 2, 3], [], [0, 1, 2]]


CHANGES = {
    "budget": 0, "lengths": 0, "counts": 1, "forced": 1, "first": 0, "last": 0, "lowest": 1,
    "floor": 0, "capacity": 0, "mass": 0.2, "policy": "share",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_sensitive_to_every_term(name):
    (s,), kwargs = scores.select(
        1, policy="mass", mass=0.8, ragged=True, ends=True, forced=True, floor=9, capacity=40,
        limit="budget",
    )  # fmt: skip
    kwargs |= {"lowest": False, "share": 0.3}
    if name in ("counts", "forced", "mass", "lowest", "policy"):
        kwargs |= {"floor": 0, "budget": None}
    if name == "floor":
        kwargs |= {"mass": 0.01, "budget": None, "forced": None, "first": 0, "last": 0}
    s = torch.nan_to_num(s, 0.0)
    check_levels((s,), kwargs)
    changed = {
        "budget": None, "lengths": None, "counts": None, "forced": None, "first": 0, "last": 0,
        "lowest": True, "floor": 0, "capacity": 3, "mass": 0.2, "policy": "share",
    }[name]  # fmt: skip
    want = compare.run("select", (s,), kwargs)
    got = compare.run("select", (s,), kwargs | {name: changed})
    assert not torch.equal(got[1], want[1]) or not torch.equal(got[0], want[0])


def test_rows_alone_and_in_a_batch(isa):
    (s,), kwargs = scores.select(7, 3, 2, 131, "mass", mass=0.7)
    counts = kwargs.pop("counts")
    whole = ops.select(s, counts=counts, **kwargs)
    for b in range(3):
        alone = ops.select(s[b : b + 1, 1:], counts=counts[b : b + 1], **kwargs)
        assert all(torch.equal(a, w[b : b + 1, 1:]) for a, w in zip(alone, whole, strict=True))


def test_fewer_axes():
    s = scores.scores(1, 2, 3, 50)
    index, count = ops.select(s, k=4)
    for b in range(2):
        two = ops.select(s[:, b], k=4)
        assert torch.equal(two[0], index[:, b])
        assert torch.equal(two[1], count[:, b])
        assert torch.equal(ops.select(s[b, 2], k=4)[0], index[b, 2])
    lengths = torch.tensor([7, 20], dtype=torch.int32)
    got = ops.select(s[:, 0], "share", share=0.5, lengths=lengths)
    assert got[1].tolist() == [4, 10]


def test_numpy():
    s = np.array([3.0, 1.0, 2.0], dtype=np.float32)
    index, count = ops.select(s, k=2)
    assert isinstance(index, np.ndarray)
    assert index.tolist() == [0, 2]
    assert count == 2


S = torch.zeros(2, 3, 10)
I32 = torch.zeros(2, 3, 10, dtype=torch.int32)
ERRORS = [
    ((S.double(),), {"k": 1}, TypeError, "select(score): expected one of float32, bfloat16"),
    ((S.mT,), {"k": 1}, ValueError, "select(score): expected stride 1 along the last axis"),
    ((S, "best"), {}, ValueError, "select(policy): expected one of top_k, threshold"),
    ((S, 3), {}, TypeError, "select(policy): expected a string, got int"),
    ((S,), {}, ValueError, "select(k): expected a number, or budget, for policy top_k, got None"),
    ((S,), {"k": -1}, ValueError, "select(k): expected 0 or more, got -1"),
    ((S,), {"k": 1, "budget": I32[:, :, 0]}, ValueError, "select(budget): expected k or budget"),
    ((S, "flat"), {"budget": I32[:, :, 0]}, ValueError, "select(budget): expected one number for"),
    ((S,), {"budget": I32[:, :2, 0]}, ValueError, "select(budget): expected H = 3, or 1, got"),
    ((S, "share"), {"share": 1.5}, ValueError, "select(share): expected a number from 0 to 1"),
    ((S, "mass"), {"mass": float("nan")}, ValueError, "select(mass): expected a number from"),
    ((S, "threshold"), {"threshold": float("nan")}, ValueError, "select(threshold): expected"),
    ((S, "quota"), {}, ValueError, "select(buckets): expected int32 ids for policy quota"),
    ((S, "quota"), {"buckets": I32[..., :9]}, ValueError, "select(buckets): expected N = 10"),
    ((S, "mass"), {"counts": I32}, TypeError, "select(counts): expected float32, got int32"),
    ((S, "mass"), {"counts": S[:, :2]}, ValueError, "select(counts): expected H = 3, or 1"),
    ((S, "otsu"), {"lengths": I32[0, :, 0]}, ValueError, "select(lengths): expected B = 2, or 1"),
    ((S, "otsu"), {"forced": I32[..., :3]}, ValueError, "select(forced): expected 2 in"),
    ((S, "otsu"), {"capacity": -1}, ValueError, "select(capacity): expected 0 or more, got -1"),
    ((S, "otsu"), {"floor": -1}, ValueError, "select(floor): expected 0 or more, got -1"),
    ((S, "otsu"), {"first": 0.5}, TypeError, "select(first): expected an integer, got float"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "told"), ERRORS)
def test_errors(args, kwargs, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        ops.select(*args, **kwargs)
