# SPDX-License-Identifier: Apache-2.0
"""Summaries and the dial: appended or computed at once they agree, and no bound is ever crossed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import ops
from headrace.memory.dial import Masses, dial, estimate, masses, missed
from headrace.memory.recall import turned
from headrace.memory.summary import FIELDS, Index, Summary, spread, unrotated


def made(seed, *shape, gain=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * gain


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_append_then_summarise_is_recompute(pieces, seed):
    n = sum(pieces)
    k, v, raw = (made(seed + i, 2, 3, n, 16) for i in range(3))
    whole = Summary.of(k, v, raw)
    parts = [Summary.of(*p) for p in zip(*(x.split(pieces, 2) for x in (k, v, raw)), strict=True)]
    grown = parts[0]
    for part in parts[1:]:
        grown = grown.merge(part)
    assert grown.count == whole.count == n
    a, b = grown.fields("bounds", k), whole.fields("bounds", k)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert torch.equal(a[2:4], b[2:4])  # extremes are exact
    torch.testing.assert_close(a[0], raw.mean(-2), rtol=1e-4, atol=1e-6)
    assert torch.equal(grown.fields("mean", k)[0], a[0])


@pytest.mark.parametrize("first", [0, 5, 1000])
@pytest.mark.parametrize("half", [4, 8, None])
def test_unrotated_keys_are_those_before_append(first, half):
    freq = None if half is None else 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    k = made(1, 32, 2, 16)
    pages = torch.zeros(2, 2, 16, 16), torch.zeros(2, 2, 16, 16)
    where = torch.tensor([[i // 16, i % 16, first + i] for i in range(32)])
    ops.append(k, k, *pages, where, inv_freq=freq)
    for page in range(2):
        back = unrotated(pages[0][page].mT, first + 16 * page, freq)
        want = k[16 * page : 16 * page + 16].transpose(0, 1)
        torch.testing.assert_close(back, want, rtol=1e-5, atol=1e-5)
    steps = torch.arange(first, first + 32)
    torch.testing.assert_close(
        turned(k, steps, freq)[:16].transpose(0, 1), pages[0][0].mT, rtol=1e-5, atol=1e-5
    )


def blocks(seed, n=12, p=16, d=16, hkv=2, gain=1.0, near=False):
    """Keys [Hkv, n, P, D], of blocks with a mean of their own, and their fields."""
    k = made(seed, hkv, n, p, d, gain=gain) * (0.1 if near else 1.0)
    k = k + made(seed + 1, hkv, n, 1, d, gain=gain)
    v = made(seed + 2, hkv, n, p, d)
    f = Summary.of(k, v, k).fields("bounds", k)
    return k, v, dict(zip(FIELDS["bounds"], f, strict=True))


def bounds_of(q, f, p, scale):
    counts = torch.full((f["low"].shape[1],), p)
    return masses(q, f["centre"], f["low"], f["high"], f["spread"], counts, scale)


def exact(q, k, scale):
    """Log mass [W * Hq, n]."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[0], 0)
    return (torch.einsum("whd,hnpd->whnp", q.double(), k) * scale).logsumexp(-1).flatten(0, 1)


@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 16, 33]),
    st.sampled_from([16, 64]),
    st.sampled_from([0.01, 1.0, 10.0]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_true_mass_lies_within_its_bounds(seed, p, d, gain, near):
    k, _, f = blocks(seed, p=p, d=d, gain=gain, near=near)
    q = made(seed + 9, 3, 4, d, gain=gain)
    m, true = bounds_of(q, f, p, d**-0.5), exact(q, k, d**-0.5)
    room = 2e-6 * true.abs().clamp_min(1)  # of scores in fp32
    assert (m.low <= true + room).all()
    assert (true <= m.high + room).all()
    group = k.double().repeat_interleave(2, 0)
    most = (torch.einsum("whd,hnpd->whnp", q.double(), group) * d**-0.5).amax(-1).flatten(0, 1)
    assert (most <= m.peak + 2e-6 * most.abs().clamp_min(1)).all()
    if p == 1:  # one key is its own mean
        assert (m.high - m.low).max() < 1e-3 * max(1.0, gain**2)


@pytest.mark.parametrize("places", [1, 3, 5])
def test_blocks_seen_from_several_places_are_bounded_by_the_query_of_theirs(places):
    _, _, f = blocks(3, n=11)
    q = made(7, places, 2, 4, 16)
    q = q / q.norm(dim=-1, keepdim=True) * q[:1].norm(dim=-1, keepdim=True)  # turned, not longer
    where = np.random.default_rng(places).integers(0, places, 11)
    where[:places] = range(places)
    rows = [np.flatnonzero(where == s) for s in range(places)]
    groups = torch.full((places, max(map(len, rows))), -1, dtype=torch.int32)
    for s, row in enumerate(rows):
        groups[s, : len(row)] = torch.from_numpy(row)
    counts = torch.arange(1, 12)
    fields = [f[name] for name in ("centre", "low", "high", "spread")]
    got = masses(q, *fields, counts, 0.25, groups)
    for s, row in enumerate(rows):
        want = masses(q[s], *(x[:, row] for x in fields), counts[row], 0.25)
        torch.testing.assert_close(got.low[:, row], want.low)
        torch.testing.assert_close(got.high[:, row], want.high)


def test_adversarial_blocks_stay_within_their_bounds():
    """All keys equal, one far from all others, and keys in two heaps."""
    q = made(0, 5, 2, 16, gain=3)
    k = torch.zeros(2, 3, 32, 16)
    k[:, 0] = 1.5
    k[:, 1, 7] = made(1, 2, 16, gain=4)
    k[:, 2, :16] = made(2, 2, 1, 16)
    k[:, 2, 16:] = -k[:, 2, :16]
    f = Summary.of(k, k, k).fields("bounds", k)
    m, true = bounds_of(q, dict(zip(FIELDS["bounds"], f, strict=True)), 32, 1.0), exact(q, k, 1.0)
    assert (m.low <= true + 1e-4).all()
    assert (true <= m.high + 1e-4).all()
    assert (m.high - true)[:, 0].max() < 1e-2


def test_spread_is_never_below_the_truth_and_close_to_it():
    for n, d in ((1, 16), (5, 16), (64, 32)):
        k = made(n, 3, n, d) * made(1, d)
        centre = k.double().mean(-2)
        got = spread(k, centre)
        apart = k.double() - centre[:, None]
        far = apart.norm(dim=-1).amax(-1)
        wide = torch.linalg.matrix_norm(apart, 2) / n**0.5
        assert (got[:, 0] >= far).all()
        assert (got[:, 1] >= wide).all()
        assert (got[:, 1] <= 1.25 * wide + 1e-9).all()
        assert not got[:, 2:].any()


@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_row_captures_its_share(seed, p, proven, with_near):
    k, _, f = blocks(seed, near=True, gain=2.0)
    q = made(seed + 9, 2, 4, 16)
    m, true = bounds_of(q, f, 16, 0.25), exact(q, k, 0.25)
    near = made(seed + 3, 8, gain=3) if with_near else None
    got = dial(m, p, near=near, proven=proven)
    assert got.chosen.tolist() == sorted(set(got.chosen.tolist()))
    seen = torch.full((8, 1), -torch.inf) if near is None else near[:, None]
    total = torch.cat([true, seen], 1).logsumexp(1)
    kept = torch.cat([true[:, got.chosen], seen], 1).logsumexp(1)
    share = float((kept - total).exp().min())
    assert 1 - share <= got.missed + 1e-6
    assert got.captured >= p - 1e-9
    if proven:
        assert share >= p - 1e-6
        assert got.missed <= 1 - p + 1e-9
    rest = [i for i in range(12) if i not in got.chosen.tolist()]
    after = missed(kept, m.high[:, rest])
    assert 1 - share - 1e-6 <= after <= got.missed + 1e-6


def test_one_row_takes_as_few_blocks_as_will_do():
    low = torch.tensor([[0.5, 0.1, 0.25, 0.15]]).log().double()
    m = Masses(low, low)
    for p, want in ((0, []), (0.5, [0]), (0.51, [0, 2]), (0.9, [0, 2, 3]), (1, [0, 1, 2, 3])):
        got = dial(m, p)
        assert got.chosen.tolist() == want, p
        assert got.captured == pytest.approx(1 - got.missed)
    near = torch.tensor([1.0]).log()  # half of everything
    assert dial(m, 0.5, near=near).chosen.tolist() == []
    assert dial(m, 0.7, near=near).chosen.tolist() == [0]
    index, count = ops.select(low[0].float(), "mass", mass=0.6)  # the op's own rule, without bounds
    assert index[:count].tolist() == dial(m, 0.6, proven=False).chosen.tolist()


def test_dial_of_nothing_and_of_bad_shares():
    none = torch.empty(4, 0, dtype=torch.float64)
    got = dial(Masses(none, none), 0.9, near=torch.zeros(4))
    assert (got.chosen.tolist(), got.captured, got.missed) == ([], 1.0, 0.0)
    assert missed(torch.zeros(4), none) == 0.0
    with pytest.raises(ValueError, match=r"^dial\(p\): expected a share from 0 to 1, got 1.5"):
        dial(Masses(none, none), 1.5)


def test_estimate_is_attention_to_centroids_and_merges_with_what_is_exact():
    k, v, f = blocks(3, p=16)
    q = made(4, 3, 4, 16)
    o, lse = estimate(q, f["centre"], f["value"], torch.full((12,), 16), 0.25)
    flat = [x.mean(2, keepdim=True).expand_as(x).flatten(1, 2) for x in (k, v)]
    dense = [x.repeat_interleave(2, 0).double() for x in flat]
    score = torch.einsum("whd,hnd->whn", q.double(), dense[0]) * 0.25
    torch.testing.assert_close(lse.double(), score.logsumexp(-1), rtol=1e-5, atol=1e-5)
    want = torch.einsum("whn,hnd->whd", score.softmax(-1), dense[1])
    torch.testing.assert_close(o.double(), want, rtol=1e-4, atol=1e-5)
    merged, total = ops.merge_states(o, lse, o, lse)
    torch.testing.assert_close(merged, o)
    torch.testing.assert_close(total, lse + float(np.log(2)))


def test_estimating_the_rest_is_better_than_leaving_it_out():
    k, v, f = blocks(5, n=60, near=True, gain=2.0)
    q = made(6, 4, 4, 16)
    keys, values = (x.repeat_interleave(2, 0).double() for x in (k, v))
    score = torch.einsum("whd,hnpd->whnp", q.double(), keys) * 0.25
    want = torch.einsum("whn,hnd->whd", score.flatten(2).softmax(-1), values.flatten(1, 2))
    m = bounds_of(q, f, 16, 0.25)
    some = dial(m, 0.5, proven=False).chosen
    rest = torch.tensor([i for i in range(60) if i not in some.tolist()])
    lse = score[:, :, some].flatten(2).logsumexp(-1)
    weights = score[:, :, some].flatten(2).softmax(-1)
    o = torch.einsum("whn,hnd->whd", weights, values[:, some].flatten(1, 2))
    left = estimate(
        q,
        f["centre"][:, rest].contiguous(),
        f["value"][:, rest],
        torch.full((len(rest),), 16),
        0.25,
    )
    both, _ = ops.merge_states(o.float().contiguous(), lse.float(), *left)
    assert (both - want).norm() < 0.2 * (o - want).norm()


def test_an_index_grows_keeps_cuts_and_copies():
    index = Index("mean", 2, 2, 16)
    fields = [made(i, 1, 2, 2, 16) for i in range(150)]
    for i, f in enumerate(fields):
        index.add(i, 10 * i, 5 * i, 10, f)
    assert len(index) == 150
    assert index.nbytes == 150 * (index.summary_bytes + 32)
    assert torch.equal(index.rows("mean", 1), torch.stack([f[0, 1] for f in fields], 1))
    assert torch.equal(index.row(149), fields[149])
    other = index.copy()
    other.keep(np.arange(150) % 3 == 1)
    assert other.blocks.tolist() == list(range(1, 150, 3))
    assert torch.equal(other.rows("mean", 0)[:, 2], fields[7][0, 0])
    other.add(999, 0, 0, 1, fields[0])
    index.cut(3)
    assert (len(index), len(other)) == (3, 51)
    assert index.starts.tolist() == [0, 10, 20]
