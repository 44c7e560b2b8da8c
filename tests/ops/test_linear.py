# SPDX-License-Identifier: Apache-2.0
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
PAIRS = [(a, b) for a in samples.DTYPES for b in samples.DTYPES]
ROWS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 67)
DEPTHS = (0, 1, 7, 8, 15, 16, 17, 31, 130, 512)
OUTPUTS = (0, 1, 5, 6, 7, 95, 96, 97, 193)


def check(args, kwargs, label):
    """A handful of sums may all cancel; then their usual size is the scale."""
    compare.check_levels("linear", args, kwargs, label, floor=args[0].shape[1] ** 0.5)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_grid(pair):
    grid = samples.cover(
        1,
        40,
        rows=ROWS,
        depth=DEPTHS,
        outputs=OUTPUTS,
        bias=(True, False),
        layout=("plain", "rows", "wide"),
    )
    for i, case in enumerate(grid):
        args, kwargs = samples.linear(i, dtype=pair[0], weight_dtype=pair[1], **case)
        check(args, kwargs, case)


@pytest.mark.parametrize("depth", [1, 15, 16, 17, 130])
def test_every_small_width(depth):
    for outputs in (*range(1, 8), 97):
        args, kwargs = samples.linear(depth, 67, depth, outputs)
        check(args, kwargs, outputs)


@pytest.mark.parametrize("pair", PAIRS[::4], ids=str)
@pytest.mark.parametrize("depth", [17, 130, 1025])
def test_row_bits_do_not_depend_on_the_other_rows(isa, pair, depth):
    (x, w, b), _ = samples.linear(depth, 67, depth, 97, *pair)
    whole = ops.linear(x, w, b)
    for rows in range(1, 68):
        assert compare.same_bits(ops.linear(x[67 - rows :], w, b), whole[67 - rows :]), rows
        assert compare.same_bits(ops.linear(x[:rows], w, b), whole[:rows]), rows
    assert compare.same_bits(ops.linear(x.repeat(9, 1), w, b), whole.repeat(9, 1))


def test_columns_do_not_depend_on_the_other_columns(isa):
    (x, w, b), _ = samples.linear(3, 9, 130, 97)
    whole = ops.linear(x, w, b)
    for n in range(97):
        assert compare.same_bits(ops.linear(x, w[n : n + 1], b[n : n + 1]), whole[:, n : n + 1])


def test_threads_leave_no_trace(isa):
    (x, w, b), _ = samples.linear(4, 300, 512, 200)
    torch.set_num_threads(1)
    one = ops.linear(x, w, b)
    torch.set_num_threads(2)
    assert compare.same_bits(ops.linear(x, w, b), one)


def test_poison_in_one_row_stays_there(isa):
    (x, w, b), _ = samples.linear(5, 9, 130, 97)
    clean = ops.linear(x, w, b)
    x[4, 129] = torch.nan
    got = ops.linear(x, w, b)
    assert got[4].isnan().all()
    rest = torch.arange(9) != 4
    assert compare.same_bits(got[rest], clean[rest])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_number_passes_unchanged(isa, dtype):
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).view(-1, 1)
    x = x[x.isfinite().squeeze(1) & (x != 0).squeeze(1)]
    want = x
    if isa == "avx512_bf16" and dtype == torch.bfloat16:
        want = torch.where(x.abs() < torch.finfo(dtype).tiny, 0, x)
    assert compare.same_bits(ops.linear(x, torch.ones(1, 1, dtype=dtype)), want)
    wide = x.float()
    assert torch.equal(ops.linear(wide, torch.ones(1, 1, dtype=dtype)), wide)
    special = torch.tensor([[torch.inf], [-torch.inf], [torch.nan]], dtype=dtype)
    got = ops.linear(special, torch.ones(1, 1, dtype=dtype))
    assert got[:2].equal(special[:2])
    assert got[2].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_round_to_nearest_even(isa, dtype):
    gen = samples.rng(6)
    exact = torch.randn(4096, 1, generator=gen) * 2.0 ** torch.randint(
        -30, 18, (4096, 1), generator=gen
    )
    # Two halves whose fp32 sum is `exact` reach the final rounding unharmed.
    high = exact.to(dtype)
    keep = high.isfinite().squeeze(1)
    low = (exact - high.float()).to(dtype)
    x = torch.cat([high, low], 1)[keep]
    got = ops.linear(x, torch.ones(1, 2, dtype=dtype))
    assert torch.equal(got, x.float().sum(1, keepdim=True).to(dtype))


@given(
    st.integers(1, 70),
    st.integers(0, 140),
    st.integers(1, 110),
    st.sampled_from(PAIRS),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_random_shapes(rows, depth, outputs, pair, bias, seed):
    args, kwargs = samples.linear(seed, rows, depth, outputs, *pair, bias)
    check(args, kwargs, (rows, depth, outputs, pair, bias))


def test_sensitive_to_every_term():
    (x, w, b), _ = samples.linear(7, 17, 130, 97)
    limit = compare.tolerances("linear", (x, w, b), {}, (x,))[0]
    whole = compare.reference("linear", (x, w, b), {})[0]
    dropped = {
        "bias": (x, w, None),
        "last of the depth": (x[:, :-1], w[:, :-1], b),
        "tail of the depth": (x[:, :128], w[:, :128], b),
        "first of the depth": (x[:, 1:], w[:, 1:], b),
    }
    for term, args in dropped.items():
        other = compare.reference("linear", args, {})[0]
        assert compare.distance(other, whole).rms > 20 * limit, term


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy(dtype):
    gen = np.random.default_rng(8)
    x, w = gen.standard_normal((5, 33)).astype(dtype), gen.standard_normal((7, 33)).astype(dtype)
    got = ops.linear(x, w)
    assert isinstance(got, np.ndarray)
    assert got.dtype == dtype
    again = ops.linear(torch.from_numpy(x), torch.from_numpy(w))
    assert np.array_equal(got, again.numpy())
    assert np.array_equal(
        ops.linear(x[::2], w, w[:, 0].copy()), ops.linear(x, w, w[:, 0].copy())[::2]
    )


def test_single_column_of_any_stride():
    x = torch.randn(1, 5, generator=samples.rng(9)).T  # [5, 1], strides (1, 5)
    assert torch.equal(ops.linear(x, torch.full((2, 1), 2.0)), (2 * x).expand(5, 2))


X, W = torch.zeros(3, 16), torch.zeros(5, 16)
ERRORS = [
    (
        (X.double(), W),
        TypeError,
        "linear(x): expected one of float32, bfloat16, float16, got float64",
    ),
    (
        (X, W.int()),
        TypeError,
        "linear(weight): expected one of float32, bfloat16, float16, got int32",
    ),
    (
        (X, W, torch.zeros(5).half()),
        TypeError,
        "linear(bias): expected float32, as weight, got float16",
    ),
    ((X[0], W), ValueError, "linear(x): expected 2 axes [T K], got shape (16,)"),
    ((X, W[:, :8]), ValueError, "linear(weight): expected K = 16 in [N K], got shape (5, 8)"),
    ((X, W, torch.zeros(4)), ValueError, "linear(bias): expected N = 5 in [N], got shape (4,)"),
    (
        (X, torch.zeros(16, 5).T),
        ValueError,
        "linear(weight): expected stride 1 along the last axis, got strides (1, 5);"
        " call .contiguous() first",
    ),
    ((X, W.to("meta")), ValueError, "linear(weight): expected a tensor on cpu, got meta"),
    ((X.to("meta"), W), ValueError, "linear(weight): expected a tensor on meta, got cpu"),
    (
        (X.clone().requires_grad_(), W),
        ValueError,
        "linear(inputs): expected tensors without requires_grad, got one that requires grad;"
        " the op has no backward; call it under torch.no_grad()",
    ),
    (([1.0], W), TypeError, "linear(x): expected a tensor, got list"),
    ((X, None), TypeError, "linear(weight): expected a tensor, got None"),
]


@pytest.mark.parametrize(("args", "kind", "text"), ERRORS, ids=[e[2][:50] for e in ERRORS])
def test_errors(args, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        ops.linear(*args)


def test_no_grad_lets_a_parameter_pass():
    with torch.no_grad():
        assert ops.linear(X.clone().requires_grad_(), W).shape == (3, 5)


# Rows of one, two and three vectors of sixteen to a block, depths of which a leaf is one step, a
# chunk and a few, outputs around a block, a line and a strip.
MANY = [
    (32, 128, 1),
    (33, 127, 64),
    (47, 129, 7),
    (48, 255, 8),
    (49, 256, 9),
    (63, 257, 65),
    (64, 300, 15),
    (65, 512, 16),
    (97, 1023, 17),
    (112, 2048, 33),
    (145, 2049, 24),
    (161, 4111, 70),
    (400, 1030, 130),
]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("size", MANY, ids=str)
def test_many_rows_have_the_bits_of_rows_alone(isa, size, pair):
    """Many rows are packed and their sums made by leaves of the tree; the tree is that of one."""
    (x, w, b), _ = samples.linear(sum(size), *size, *pair)
    y = ops.linear(x, w, b)
    bare = ops.linear(x, w)
    compare.check("linear", (x, w, b), {}, size, floor=size[1] ** 0.5, got=(y,))
    for row in {0, 15, 16, 31, size[0] // 2, size[0] - 2, size[0] - 1}:
        assert compare.same_bits(ops.linear(x[row : row + 1], w, b)[0], y[row]), row
        assert compare.same_bits(ops.linear(x[row : row + 1], w)[0], bare[row]), row
    few = size[0] // 2
    assert compare.same_bits(ops.linear(x[few:], w, b), y[few:])


def test_rows_beyond_one_packing_have_the_bits_of_rows_alone(isa):
    """A deep product packs some hundreds of rows at a time."""
    (x, w, b), _ = samples.linear(10, 300, 24000, 3)
    y = ops.linear(x, w, b)
    for row in (0, 191, 192, 193, 299):
        assert compare.same_bits(ops.linear(x[row : row + 1], w, b)[0], y[row]), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [1, 31, 64, 250, 512])
def test_short_depths_have_the_bits_of_rows_alone(isa, depth, dtype):
    """Many rows of a short depth end their sums together; the sums are those of one row."""
    for rows, outputs in ((9, 4), (12, 7), (13, 96), (79, 33)):
        x, w, bias = (
            torch.randn(*s).to(dtype) for s in ((rows, depth), (outputs, depth), (outputs,))
        )
        y = ops.linear(x, w, bias)
        compare.check("linear", (x, w, bias), {}, (depth, rows, outputs), got=(y,))
        for row in (0, 8, rows - 1):
            assert compare.same_bits(ops.linear(x[row : row + 1], w, bias)[0], y[row])
