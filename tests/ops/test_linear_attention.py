# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from headrace import _C, ops
from tests.ops import compare, samples, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
NAME = "linear_attention"
NAMES = ("q", "k", "v", "state", "norm", "indptr", "rows")
KINDS = {"normed": {}, "retention": {"normed": False, "decay": True, "feature": 0}}


def check(args, kwargs, label=""):
    """Output and states within tolerance; rows of absent streams keep their bits."""
    before = args[3].clone()
    # Rows that no stream has are NaN, so only the others are compared.
    want = (*compare.reference_out(NAME, args, kwargs), *compare.reference(NAME, args, kwargs))
    out = compare.run(NAME, args, kwargs)
    got = (*out, *(x for x in args[3:5] if x is not None))
    compare.check(NAME, args, kwargs, label, got=got, want=want)
    rest = [i for i in range(before.shape[0]) if i not in args[6].tolist()]
    assert compare.same_bits(args[3][rest], before[rest])


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(isa, dtype):
    grid = samples.cover(
        1,
        20,
        lengths=((0,), (1,), (2, 0, 1), (31, 33), (65,), (5, 67, 1)),
        kv_heads=(1, 2, 4),
        dim=(16, 48, 128),
        v_dim=(16, 64, 80),
        layout=("plain", "swapped", "rows", "wide"),
        keys=(True, True, False),
        raw=(False, True),
        rope=(False, True),
        decay=(False, True),
    )
    for i, case in enumerate(grid):
        normed = i % 3 > 0
        # The normaliser stays away from zero only where phi does.
        args, kwargs = sequences.linear_attention(
            i, dtype=dtype, normed=normed, feature=i % 3, **case
        )
        check(args, kwargs, case)


@pytest.mark.parametrize("chunk", [1, 2, 7, 32, 33])
@pytest.mark.parametrize("decay", [False, True])
def test_bits_do_not_depend_on_the_chunks(isa, chunk, decay):
    (q, k, v, state, norm, _, rows), kwargs = sequences.linear_attention(4, (67,), decay=decay)
    kwargs["feature"] = "relu"
    parts, rolling, sums = [], state.clone(), norm.clone()
    for t in range(0, 67, chunk):
        x = [y[t : t + chunk] for y in (q, k, v)]
        indptr = torch.tensor([0, x[0].shape[0]]).int()
        parts.append(ops.linear_attention(*x, rolling, sums, indptr, rows, **kwargs))
    indptr = torch.tensor([0, 67]).int()
    whole = ops.linear_attention(q, k, v, state, norm, indptr, rows, **kwargs)
    assert compare.same_bits(torch.cat(parts), whole)
    assert compare.same_bits(rolling, state)
    assert compare.same_bits(sums, norm)


def outcome(args, kwargs):
    """The result, and states and norms after it, of a call on copies of these."""
    state, norm = (x if x is None else x.clone() for x in args[3:5])
    out = compare.run(NAME, (*args[:3], state, norm, *args[5:]), kwargs)
    return [x for x in (*out, state, norm) if x is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_neighbours_leave_no_trace(isa, kind):
    lengths = (30, 1, 41)
    args, kwargs = sequences.linear_attention(
        8, lengths, dim=64, v_dim=80, rope=True, **KINDS[kind]
    )
    torch.set_num_threads(1)
    one = outcome(args, kwargs)
    for threads in (2, 8):
        torch.set_num_threads(threads)
        for x, y in zip(one, outcome(args, kwargs), strict=True):
            assert compare.same_bits(x, y), threads
    q, k, v, state, norm, indptr, rows = args
    for b, n in enumerate(lengths):
        t, row = slice(int(indptr[b]), int(indptr[b + 1])), int(rows[b])
        mine = [x[t] for x in (q, k, v)]
        at = torch.tensor([0, n]).int(), rows[b : b + 1]
        options = kwargs | {"offset": kwargs["offset"][t]}
        out, *kept = outcome((*mine, state, norm, *at), options)
        assert compare.same_bits(out, one[0][t]), b
        for x, y in zip(kept, one[1:], strict=True):
            assert compare.same_bits(x[row], y[row]), b


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_stream_and_time(isa, kind):
    args, kwargs = sequences.linear_attention(9, (9, 8), **KINDS[kind])
    want, k = outcome(args, kwargs), args[1].clone()
    k[3] = torch.nan
    got = outcome((args[0], k, *args[2:]), kwargs)
    mine, other = args[6].tolist()
    assert compare.same_bits(got[0][:3], want[0][:3])
    assert got[0][3:9].isnan().all()
    assert compare.same_bits(got[0][9:], want[0][9:])
    for x, y in zip(got[1:], want[1:], strict=True):
        assert x[mine].isnan().all()
        assert compare.same_bits(x[other], y[other])


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 36), max_size=3),
    st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    st.sampled_from([(16, 48), (80, 16), (32, 96)]),
    st.sampled_from(_C.available_isas()),
    st.fixed_dictionaries({x: st.booleans() for x in ("keys", "rope", "decay", "raw")}),
    st.sampled_from([(True, 1), (True, 2), (False, 0), (False, 1)]),
)
def test_random_streams(lengths, heads, dims, isa, options, kind):
    args, kwargs = sequences.linear_attention(
        len(lengths), tuple(lengths), *heads, *dims, normed=kind[0], feature=kind[1], **options
    )
    with headrace.use_isa(isa):
        check(args, kwargs, (lengths, heads, dims, isa, options, kind))


def test_numpy():
    args, kwargs = sequences.linear_attention(10, (5, 3), rope=True, decay=True)
    want = outcome(args, kwargs)
    arrays = [x.numpy() for x in args]
    got = ops.linear_attention(*arrays, **{n: x.numpy() for n, x in kwargs.items()})
    assert isinstance(got, np.ndarray)
    for x, y in zip((got, *arrays[3:5]), want, strict=True):
        assert compare.same_bits(torch.from_numpy(x), y)


def test_hybrid_forcing_means_are_sums_with_a_count():
    (q, _, _, state, norm, indptr, rows), kwargs = sequences.linear_attention(
        5, (9,), kv_heads=4, keys=False, rope=True
    )
    n, row = 50, int(rows[0])
    count = torch.full((state.shape[0],), n)
    turn = {x: kwargs[x] for x in ("inv_freq", "offset")}
    got = ops.linear_attention(
        q, None, None, state, norm, indptr, rows, raw=True, count=count, eps=0.1, **turn
    )
    half = turn["inv_freq"].numel()
    angle = (turn["offset"].double()[:, None] * turn["inv_freq"])[:, None]
    x = q.double()
    a, b = x[..., :half], x[..., half : 2 * half]
    hat = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    hat = torch.cat([*hat, x[..., 2 * half :]], -1)
    top = torch.einsum("thd,hdv->thv", hat, state[row].double() / n)
    under = torch.einsum("thd,hd->th", x.relu(), norm[row].double() / n) + 0.1
    torch.testing.assert_close(got.double(), top / under[..., None], rtol=1e-4, atol=1e-4)


def test_drift_of_ten_thousand_chunks():
    gen = samples.rng(6)
    state, exact = torch.zeros(1, 1, 16, 16), torch.zeros(16, 16, dtype=torch.float64)
    at = torch.tensor([0, 4]).int(), torch.zeros(1).int()
    for _ in range(10_000):
        k, v = (torch.randn(4, 1, 16, generator=gen) + 0.3 for _ in range(2))
        ops.linear_attention(k, k, v, state, None, *at, feature="relu")
        exact += k[:, 0].double().relu().T @ v[:, 0].double()
    assert compare.distance(state[0, 0], exact).rms < 1e-4


PARTS = ("norm", "decay", "rope", "raw", "state", "feature", "causal", "eps", "count", "scale")


@pytest.mark.parametrize("part", PARTS)
def test_every_term_counts(part):
    args, kwargs = sequences.linear_attention(
        7, (9,), rope=True, decay=True, normed=part != "scale", eps=0.5, scale=0.5
    )
    kwargs["count"] = torch.full((3,), 4)
    want = compare.reference_out(NAME, args, kwargs)
    changed = list(args)
    if part == "norm":
        changed[4] = None
    elif part == "state":
        changed[3] = torch.zeros_like(args[3])
    elif part == "rope":
        kwargs["offset"] = kwargs["offset"].flip(0)
    elif part == "causal":
        changed[1], changed[2] = args[1].flip(0), args[2].flip(0)
    elif part == "decay":
        kwargs["log_decay"] = None
    else:
        kwargs[part] = {"raw": True, "feature": 2, "eps": 0.1, "count": None, "scale": 1.0}[part]
    got = compare.run(NAME, tuple(changed), kwargs)
    with pytest.raises(AssertionError):
        compare.check(NAME, args, kwargs, got=got, want=want)


INV_FREQ = torch.ones(17).double()
ERRORS = [
    (
        {"q": torch.zeros(14, 4, 32).double()},
        TypeError,
        "q): expected one of float32, bfloat16, float16, got float64",
    ),
    ({"q": torch.zeros(14, 3, 32)}, ValueError, "q): expected a multiple of 2 heads, got 3"),
    ({"k": torch.zeros(14, 2, 32).half()}, TypeError, "k): expected float32, as q, got float16"),
    (
        {"k": torch.zeros(13, 2, 32)},
        ValueError,
        "k): expected T = 14 in [T Hkv D], got shape (13, 2, 32)",
    ),
    ({"v": None}, ValueError, "v): expected both of k and v, or neither, got one"),
    (
        {"state": torch.zeros(5, 2, 32, 48).half()},
        TypeError,
        "state): expected float32, got float16",
    ),
    (
        {"norm": torch.zeros(5, 2, 16)},
        ValueError,
        "norm): expected D = 32 in [S Hkv D], got shape (5, 2, 16)",
    ),
    (
        {"norm": torch.zeros(4, 2, 32)},
        ValueError,
        "norm): expected S = 5 in [S Hkv D], got shape (4, 2, 32)",
    ),
    (
        {"offset": torch.arange(14)},
        ValueError,
        "offset): expected both of inv_freq and offset, or neither, got one",
    ),
    (
        {"offset": torch.arange(14), "inv_freq": INV_FREQ},
        ValueError,
        "inv_freq): expected at most 16 frequencies, got 17",
    ),
    (
        {"k": None, "v": None, "log_decay": torch.zeros(2)},
        ValueError,
        "log_decay): expected None where no keys come in, got a decay",
    ),
    (
        {"log_decay": torch.zeros(4)},
        ValueError,
        "log_decay): expected Hkv = 2 in [Hkv], got shape (4,)",
    ),
    (
        {"q": torch.zeros(14, 4, 24), "k": torch.zeros(14, 2, 24),
         "state": torch.zeros(5, 2, 24, 48), "norm": torch.zeros(5, 2, 24)},
        NotImplementedError,
        "q): expected one of D a multiple of 16 up to 512, got 24",
    ),
    (
        {"state": torch.zeros(5, 2, 32, 528), "v": torch.zeros(14, 2, 528)},
        NotImplementedError,
        "state): expected one of Dv a multiple of 16 up to 512, got 528",
    ),
    (
        {"indptr": torch.tensor([0, 3, 2, 14]).int()},
        ValueError,
        "indptr): expected offsets that rise from 0 to 14, got others",
    ),
    (
        {"rows": torch.tensor([0, 1, 1]).int()},
        ValueError,
        "rows): expected distinct rows in [0, 5), got 1 for stream 2",
    ),
    (
        {"rows": torch.tensor([0, 1, 5]).int()},
        ValueError,
        "rows): expected distinct rows in [0, 5), got 5 for stream 2",
    ),
    ({"feature": "gelu"}, ValueError, "feature): expected none, relu or elu1, got gelu"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=[e[2][:50] for e in ERRORS])
def test_mistakes(change, kind, text):
    given_ = dict(zip(NAMES, sequences.linear_attention(1)[0], strict=True)) | change
    before = {n: given_[n].clone() for n in ("state", "norm")}
    with pytest.raises(kind) as raised:
        ops.linear_attention(**given_)
    assert str(raised.value) == f"linear_attention({text}"
    for name, x in before.items():
        assert compare.same_bits(given_[name], x)
