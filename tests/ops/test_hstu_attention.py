# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, samples, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "hstu_attention"
RULES = dict(
    causal=(True, True, False),
    max_attn_len=(0, 0, 1, 7, 30, 200),
    contextual_seq_len=(0, 0, 1, 5, 400),
    min_full_attn_seq_len=(0, 3, 20),
    sinks=(0, 0, 4, 50),
    targets=(None, 0, 3, 70),
)


def run(args, kwargs):
    return getattr(torch.ops.headrace, OP)(*args, **kwargs)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(dtype):
    grid = samples.cover(
        1,
        24,
        lengths=((1,), (65, 0, 63), (2, 131), (197,)),
        heads=(1, 2, 3),
        dim=(16, 48, 64, 112, 256),
        v_dim=(16, 32, 80, 128),
        layout=samples.LAYOUTS,
        scaled=(False, True),
        split=(2048, 1, 17, 64),
        **RULES,
    )
    for i, case in enumerate(grid):
        args, kwargs = sequences.hstu_attention(i, dtype=dtype, **case)
        compare.check_levels(OP, args, kwargs, case, floor=1e-3)


def published(t, o, n, targets, causal, max_attn_len, contextual, min_full):
    """The rule as its authors publish it, for one pair, step by step."""
    row, col, top = t, o, n
    if contextual > 0:
        row, col, top = (x - contextual + 1 for x in (row, col, top))
        row, col = max(row, 0), max(col, 0)
    top -= targets
    row, col = min(row, top), min(col, top)
    away = row - col if causal else abs(row - col)
    seen = away > 0
    if max_attn_len > 0:
        seen &= away <= max_attn_len or (min_full > 0 and row >= top - min_full)
    return t == o or seen or (contextual > 0 and row == 0 and col < top)


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("contextual", [0, 1, 4])
def test_who_sees_whom(isa, targets, contextual):
    """With queries and values of 1 and one key of interest, o says whether it is seen."""
    n, one = 19, torch.tensor([0, 19], dtype=torch.int32)
    v = torch.zeros(n, 1, 32)
    v[torch.arange(n), 0, torch.arange(n)] = 1.0
    x = torch.ones(n, 1, 16)
    for causal in (True, False):
        for reach in (0, 1, 5, 16, 40):
            for full in (0, 2, 6):
                rule = (causal, reach, contextual, full)
                o = ops.hstu_attention(
                    x, x, v, one, max_seq_len=1, causal=causal, max_attn_len=reach,
                    contextual_seq_len=contextual, min_full_attn_seq_len=full,
                    num_targets=torch.tensor([targets], dtype=torch.int32),
                )  # fmt: skip
                want = [[published(t, o, n, targets, *rule) for o in range(n)] for t in range(n)]
                assert torch.equal(o[:, 0, :n] != 0, torch.tensor(want)), rule


def test_scale_and_pinned_prefix(isa):
    (q, k, v, ptr, *_), _ = sequences.hstu_attention(1, (40,), heads=1)
    t, o = torch.arange(40)[:, None], torch.arange(40)[None]
    seen = (o <= t) & ((t - o <= 6) | (o < 3))
    s = torch.nn.functional.silu(0.3 * q[:, 0].double() @ k[:, 0].double().T) * seen
    want = s @ v[:, 0].double() / 55
    got = ops.hstu_attention(q, k, v, ptr, max_seq_len=55, alpha=0.3, max_attn_len=6, sinks=3)
    assert compare.distance(got[:, 0], want).rms < 1e-6
    scale = torch.rand(40)
    got = ops.hstu_attention(
        q, k, v, ptr, max_seq_len=55, alpha=0.3, max_attn_len=6, sinks=3, attn_scale=scale
    )
    assert compare.distance(got[:, 0], want * 55 * scale[:, None].double()).rms < 1e-6


def chunks_of(args, kwargs, cuts):
    """The rows of one sequence, asked a chunk at a time against a cache that grows."""
    q, k, v = args[:3]
    out = []
    for a, b in zip([0, *cuts], [*cuts, len(q)], strict=True):
        new, old = (torch.tensor([0, x], dtype=torch.int32) for x in (b - a, b))
        scale = None if args[7] is None else args[7][a:b].clone()
        out.append(run((q[a:b], k[:b], v[:b], old, new, None, None, scale), kwargs))
    return torch.cat(out)


@given(
    st.integers(1, 150),
    st.sets(st.integers(1, 149), max_size=4),
    st.integers(0, 40),
    st.integers(0, 5),
    st.sampled_from([2048, 16, 7]),
    st.sampled_from(samples.DTYPES),
    st.sampled_from(_C.available_isas()),
)
def test_chunks_equal_the_whole_bit_for_bit(n, cuts, reach, sinks, split, dtype, level):
    rule = dict(max_attn_len=reach, sinks=sinks, split=split)
    args, kwargs = sequences.hstu_attention(n, (n,), dtype=dtype, scaled=True, **rule)
    with headrace.use_isa(level):
        got = chunks_of(args, kwargs, sorted(c for c in cuts if c < n))
        assert compare.same_bits(got, run(args, kwargs))


@pytest.mark.parametrize("kept", [20, 33])
def test_a_ring_equals_the_whole_bit_for_bit(isa, kept):
    """A prefix and a ring, streamed, against the whole history, four million tokens in as well."""
    n, prefix, reach = 150, 3, kept - 1
    rule = dict(contextual_seq_len=prefix, max_attn_len=reach, sinks=prefix, split=16)
    (q, k, v, *_), kwargs = sequences.hstu_attention(kept, (n,), **rule)
    one = torch.tensor([0, 1], dtype=torch.int32)
    ring_k, ring_v = (x.new_full((prefix + kept, *x.shape[1:]), torch.nan) for x in (k, v))
    order = torch.full((prefix + kept,), -1)
    for t in range(n):
        slot = t if t < prefix else prefix + (t - prefix) % kept
        ring_k[slot], ring_v[slot], order[slot] = k[t], v[t], t
        used = int((order >= 0).sum())
        size = torch.tensor([0, used], dtype=torch.int32)
        args = (q[t : t + 1], ring_k[:used], ring_v[:used], size, one)
        got = run((*args, None, order[:used].clone(), None), kwargs)
        if t < prefix:  # the prefix sees all that there is, so only of what came so far
            continue
        end = torch.tensor([0, t + 1], dtype=torch.int32)
        want = run((q[t : t + 1], k[: t + 1], v[: t + 1], end, one), kwargs)
        assert compare.same_bits(got, want), t
    far = torch.where(order < prefix, order, order + 2**42)
    compare.check(OP, (*args, None, far, None), kwargs)
    assert compare.distance(run((*args, None, far, None), kwargs), got).rms < 1e-6


def test_targets_asked_against_the_cache(isa):
    args, kwargs = sequences.hstu_attention(5, (90, 40), targets=8, max_attn_len=20)
    whole = run(args, kwargs)
    rows = torch.cat([torch.arange(82, 90), torch.arange(122, 130)])
    got = run((args[0][rows], *args[1:4], samples.indptr([8, 8]), *args[5:]), kwargs)
    assert compare.same_bits(got, whole[rows])


def test_bits_do_not_depend_on_other_sequences_or_threads(isa):
    for split in (2048, 32):
        lengths = (67, 130, 1, 300)
        args, kwargs = sequences.hstu_attention(6, lengths, targets=4, max_attn_len=50, split=split)
        whole = run(args, kwargs)
        for b in range(4):
            s = slice(int(args[3][b]), int(args[3][b + 1]))
            alone = (*(x[s] for x in args[:3]), samples.indptr([lengths[b]]), None)
            alone += (args[5][b : b + 1].clone(), None, None)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert compare.same_bits(run(alone, kwargs), whole[s])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_hidden_is_not_read_into_a_row(isa, bad):
    args, kwargs = sequences.hstu_attention(7, (140,), targets=5, max_attn_len=9, split=32)
    clean = run(args, kwargs)
    for at in (0, 50, 134, 139):
        k, v = args[1].clone(), args[2].clone()
        k[at], v[at] = bad, bad
        seen = torch.tensor([published(t, at, 140, 5, True, 9, 0, 0) for t in range(140)])
        got = run((args[0], k, v, *args[3:]), kwargs)
        assert compare.same_bits(got[~seen], clean[~seen])
        assert not got[seen].isfinite().any()


def test_large_logits(isa):
    x = torch.tensor([-1e30, -200.0, -90.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 90.0, 200.0, 1e30])
    q = torch.zeros(11, 1, 16)
    q[:, 0, 0] = x
    one = torch.zeros(11, 1, 16)
    one[..., 0] = 1.0
    o = ops.hstu_attention(
        q, one, one, torch.arange(12, dtype=torch.int32), max_seq_len=1, alpha=1.0
    )
    want = torch.nn.functional.silu(x.double())
    assert torch.allclose(o[:, 0, 0].double(), want, rtol=5e-7, atol=1e-30)


@given(
    st.lists(st.integers(0, 80), max_size=4),
    st.integers(0, 9),
    st.one_of(st.none(), st.integers(1, 20)),
    st.fixed_dictionaries({k: st.sampled_from(x) for k, x in RULES.items()}),
    st.integers(1, 100),
    st.integers(0, 2**20),
)
def test_random_batches(lengths, news, kept, rules, split, seed):
    news = tuple(min(news, n) for n in lengths)
    args, kwargs = sequences.hstu_attention(
        seed, tuple(lengths), news, kept=kept, split=split, v_dim=16, **rules
    )
    compare.check(OP, args, kwargs, floor=1e-3)


def test_numpy():
    x = np.random.default_rng(1).standard_normal((9, 2, 32)).astype(np.float32)
    ptr = np.array([0, 4, 9], dtype=np.int32)
    got = ops.hstu_attention(x, x, x, ptr, max_seq_len=8)
    t = torch.from_numpy(x)
    want = ops.hstu_attention(t, t, t, torch.from_numpy(ptr), max_seq_len=8)
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, want.numpy())


X, PTR = torch.zeros(5, 2, 32), torch.tensor([0, 5], dtype=torch.int32)
ORDER = torch.tensor([0, 1, 5, 6, 7])
ERRORS = [
    (dict(max_seq_len=0), ValueError, "max_seq_len): expected 1 or more, got 0"),
    (dict(max_attn_len=-1), ValueError, "max_attn_len): expected 0 or more, got -1"),
    (dict(sinks=-1), ValueError, "sinks): expected 0 or more, got -1"),
    (dict(alpha=float("nan")), ValueError, "alpha): expected a finite number, got nan"),
    (
        dict(q=X[:2]),
        ValueError,
        "q): expected Lq = 5 in [Lq H D], as there are keys, got 2;"
        " give q_indptr when q holds new rows only",
    ),
    (
        dict(q=X[..., :8], k=X[..., :8]),
        NotImplementedError,
        "q): expected one of the head dimensions multiples of 16 from 16 to 256, got 8",
    ),
    (dict(k=X.half()), TypeError, "k): expected float32, as q, got float16"),
    (
        dict(k_indptr=PTR + 1),
        ValueError,
        "q_indptr): expected offsets that rise from 0 to 5, got others",
    ),
    (
        dict(k_indptr=PTR + 1, q_indptr=PTR),
        ValueError,
        "k_indptr): expected offsets that rise from 0 to 5, got others",
    ),
    (
        dict(k=X[:3], v=X[:3], k_indptr=PTR.clamp(max=3), q_indptr=PTR),
        ValueError,
        "q_indptr): expected at most 3 queries, as there are tokens, got 5 in sequence 0",
    ),
    (
        dict(num_targets=torch.tensor([6], dtype=torch.int32)),
        ValueError,
        "num_targets): expected 0 to 5, got 6 in sequence 0",
    ),
    (
        dict(k_order=ORDER.clamp(max=6)),
        ValueError,
        "k_order): expected every index once in a sequence, got 6 twice",
    ),
    (
        dict(k_order=ORDER - 1),
        ValueError,
        "k_order): expected indices in [0, 2**61), got -1 for key 0",
    ),
]


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=[e[2][:40] for e in ERRORS])
def test_errors(change, kind, text):
    with pytest.raises(kind) as raised:
        ops.hstu_attention(**dict(q=X, k=X, v=X, k_indptr=PTR, max_seq_len=8) | change)
    assert str(raised.value) == f"hstu_attention({text}"
