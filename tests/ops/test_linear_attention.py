# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace import ops
from tests.ops import compare, samples, sequences

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
NAME = "linear_attention"


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


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"q": torch.zeros(14, 4, 32).double()}, TypeError, r"\(q\): expected one of float32"),
        ({"q": torch.zeros(14, 3, 32)}, ValueError, r"\(q\): expected a multiple of 2 heads"),
        ({"v": None}, ValueError, "both of k and v"),
        ({"offset": torch.arange(14)}, ValueError, "both of inv_freq and offset"),
        ({"state": torch.zeros(5, 2, 32, 40), "k": None, "v": None}, NotImplementedError, "of 16"),
        ({"indptr": torch.tensor([0, 3, 2, 14]).int()}, ValueError, "rise from 0 to 14"),
        ({"rows": torch.tensor([0, 1, 1]).int()}, ValueError, "distinct rows"),
        ({"rows": torch.tensor([0, 1, 5]).int()}, ValueError, "got 5 for stream 2"),
        ({"feature": "gelu"}, ValueError, r"\(feature\): expected none, relu or elu1, got gelu"),
    ],
)
def test_mistakes(change, kind, told):
    names = ("q", "k", "v", "state", "norm", "indptr", "rows")
    given = dict(zip(names, sequences.linear_attention(1)[0], strict=True)) | change
    before = given["state"].clone()
    with pytest.raises(kind, match=told):
        ops.linear_attention(**given)
    assert compare.same_bits(given["state"], before)
