# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace import ops
from tests.ops import adapters, compare, samples
from tests.ops.adapters import result

pytestmark = pytest.mark.usefixtures("two_threads")


def check(args, kwargs, label=""):
    want = compare.reference("lora", args, kwargs)
    got = result("lora", args, kwargs)
    compare.check("lora", args, kwargs, label, got=(got,), want=want)
    idle = args[3] < 0
    assert compare.same_bits(got[idle], args[5][idle]), label


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(isa, dtype):
    grid = samples.cover(
        1,
        36,
        tokens=(0, 1, 2, 7, 16, 33, 63, 65),
        depth=(0, 1, 16, 64, 513, 1216),
        outputs=(0, 1, 17, 64, 130, 2049),
        adapters=(1, 2, 5, 40),
        rank=(1, 4, 8, 16, 17, 64),
        mix=adapters.MIXES,
        weight_dtype=samples.DTYPES,
        ranks=(True, False),
        layout=("plain", "rows", "wide"),
        trained=(True, False),
    )
    for i, case in enumerate(grid):
        check(*adapters.stack(i, dtype=dtype, **case), case)


@pytest.mark.parametrize(
    ("tokens", "depth", "outputs", "count", "rank", "mix"),
    [
        (512, 256, 192, 8, 16, "uniform"),
        (64, 2049, 1216, 64, 16, "distinct"),
        (96, 64, 64, 1024, 3, "distinct"),
        (3, 11008, 320, 2, 256, "uniform"),
        (1, 130, 4096, 1, 512, "identical"),
    ],
)
def test_sizes_of_models(tokens, depth, outputs, count, rank, mix):
    check(*adapters.stack(7, tokens, depth, outputs, count, rank, mix, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_depend_on_the_batch(isa, dtype):
    """Alone, in any mix, with other neighbours: the same bits."""
    (x, a, b, slots, scale, y), kwargs = adapters.stack(
        3, tokens=70, depth=150, outputs=200, adapters=6, rank=21, dtype=dtype
    )
    whole = result("lora", (x, a, b, slots, scale, y), kwargs)
    for rows in ([0], [5, 4], [69], list(range(10, 30)), torch.randperm(70).tolist()):
        part = (x[rows], a, b, slots[rows], scale, y[rows])
        assert compare.same_bits(result("lora", part, kwargs), whole[rows]), rows
    same = torch.full_like(slots, 2)  # the others move to one adapter, a row of slot 2 stays
    t = int((slots == 2).nonzero()[0])
    assert compare.same_bits(result("lora", (x, a, b, same, scale, y), kwargs)[t], whole[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_leave_no_trace(isa, dtype):
    for tokens, rank in ((1, 64), (3, 9), (90, 16)):
        args, kwargs = adapters.stack(4, tokens, 300, 333, 5, rank, dtype=dtype)
        torch.set_num_threads(1)
        one = result("lora", args, kwargs)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert compare.same_bits(result("lora", args, kwargs), one), (tokens, threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_order_of_b_leaves_no_trace(isa, dtype):
    """Nor few rows: those are read as they lie, where many are packed."""
    for tokens in (3, 40):
        trained, kwargs = adapters.stack(5, tokens, 100, 130, 4, 33, dtype=dtype)
        dense = (*trained[:2], trained[2].mT.contiguous().mT, *trained[3:])
        assert compare.same_bits(result("lora", trained, kwargs), result("lora", dense, kwargs))


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("rank", [2, 3])
def test_digits_of_the_bridge(isa, tokens, rank):
    """1 + 2^-12 less 1: bf16 alone would lose the difference."""
    x = torch.tensor([[1.0, 2.0**-12]]).repeat(tokens, 1).bfloat16()
    a = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])[:rank].bfloat16()
    b = torch.tensor([[1.0, -1.0, 1.0]])[:, :rank].repeat(70, 1).bfloat16()
    slots = torch.zeros(tokens, dtype=torch.int32)
    for up in (b, b.mT.contiguous().mT):
        got = ops.lora(x, a[None], up[None], slots, torch.ones(1))
        assert got.float().eq(2.0**-12).all()


def test_nan_stays_with_its_adapter(isa):
    (x, a, b, slots, scale, y), kwargs = adapters.stack(6, tokens=33, adapters=4, ranks=False)
    whole = result("lora", (x, a, b, slots, scale, y), kwargs)
    a, b = a.clone(), b.clone()
    a[1, 0, 3], b[2, 1, 0] = torch.nan, torch.inf
    got = result("lora", (x, a, b, slots, scale, y), kwargs)
    others = (slots != 1) & (slots != 2)
    assert compare.same_bits(got[others], whole[others])
    assert got[slots == 1].isnan().all()


def test_accumulates_and_returns():
    args, kwargs = adapters.stack(8)
    want = result("lora", args, kwargs)
    y = args[5].clone()
    assert ops.lora(*args[:5], y=y, **kwargs) is y
    assert compare.same_bits(y, want)
    fresh = ops.lora(*args[:5], **kwargs)
    zeros = (*args[:5], torch.zeros_like(y))
    assert compare.same_bits(fresh, result("lora", zeros, kwargs))


def test_numpy():
    (x, a, b, slots, scale, y), kwargs = adapters.stack(9, ranks=False)
    got = ops.lora(*(t.numpy() for t in (x, a, b, slots, scale)), y=y.clone().numpy())
    assert isinstance(got, np.ndarray)
    want = result("lora", (x, a, b, slots, scale, y), kwargs)
    assert compare.same_bits(torch.from_numpy(got), want)


@pytest.mark.parametrize("term", ["scale", "rank", "slot", "a", "b", "y"])
def test_sensitive_to(term):
    args, kwargs = adapters.stack(10, 20, adapters=3, mix="identical", ranks=False)
    x, a, b, slots, scale, y = args
    want = result("lora", args, kwargs)
    other = {
        "scale": lambda: ((x, a, b, slots, scale * 1.01, y), {}),
        "rank": lambda: (args, {"ranks": torch.tensor([9, 9, 8], dtype=torch.int32)}),
        "slot": lambda: ((x, a.nan_to_num(1.0), b.nan_to_num(1.0), slots - 1, scale, y), {}),
        "a": lambda: ((x, a * 1.01, b, slots, scale, y), {}),
        "b": lambda: ((x, a, b.roll(1, 1), slots, scale, y), {}),
        "y": lambda: ((x, a, b, slots, scale, y + 0.01), {}),
    }[term]()
    assert compare.distance(result("lora", *other), want).rms > 1e-3


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (dict(x=torch.zeros(5, 66)), ValueError, r"lora\(a\): expected K = 66"),
        (dict(slots=torch.zeros(5)), TypeError, r"lora\(slots\): expected int32"),
        (dict(slots=torch.full((5,), 3, dtype=torch.int32)), ValueError, r"values in \[-1, 3\)"),
        (dict(slots=torch.full((5,), -2, dtype=torch.int32)), ValueError, r"lora\(slots\): exp"),
        (dict(scale=torch.zeros(4)), ValueError, r"lora\(scale\): expected S = 3"),
        (dict(ranks=torch.full((3,), 10, dtype=torch.int32)), ValueError, r"lora\(ranks\): exp"),
        (dict(y=torch.zeros(5, 45).half()), TypeError, r"lora\(y\): expected float32"),
        (dict(b=torch.zeros(3, 45, 8)), ValueError, r"lora\(b\): expected R = 9"),
    ],
)
def test_mistakes(change, kind, told):
    names = ("x", "a", "b", "slots", "scale")
    args, kwargs = adapters.stack(11, mix="identical")
    given = dict(zip((*names, "y"), args, strict=True)) | kwargs | change
    y, head = given.pop("y"), [given.pop(n) for n in names]
    before = y.clone()
    with pytest.raises(kind, match=told):
        ops.lora(*head, y=y, **given)
    assert compare.same_bits(y, before)


def inexact(args, kwargs):
    return ops.lora(*args[:5], args[5].clone(), exact=False, **kwargs)


@pytest.fixture
def taken_for(monkeypatch):
    """ops.lora takes the level of this CPU for another one."""

    def taken(level):
        there = SimpleNamespace(active_isa=lambda: level)
        monkeypatch.setattr(importlib.import_module("headrace.ops.lora"), "_C", there)

    return taken


@pytest.fixture
def pairs(taken_for):
    taken_for("avx512_bf16")


@pytest.mark.parametrize("ranks", [False, True])
def test_inexact_rows_of_one_adapter_are_two_products_of_torch(ranks, pairs):
    args, kwargs = adapters.stack(
        11, 260, 96, 80, 3, 40, "identical", torch.bfloat16, ranks=False, trained=ranks
    )
    x, a, b, _, scale, y = args
    rank = 33 if ranks else 40
    if ranks:
        kwargs["ranks"] = torch.full((3,), rank, dtype=torch.int32)
        a[2, rank:], b[2, :, rank:] = torch.nan, torch.nan
    want = torch.addmm(y, x @ a[2, :rank].mT, b[2, :, :rank].mT, alpha=float(scale[2]))
    got = inexact(args, kwargs)
    assert compare.same_bits(got, want)
    assert not compare.same_bits(got, result("lora", args, kwargs))
    compare.check("lora", args, kwargs, "inexact", got=(got,))


@pytest.mark.parametrize(
    ("tokens", "rank", "mix", "dtype"),
    [
        (260, 40, "skewed", torch.bfloat16),
        (260, 40, "none", torch.bfloat16),
        (0, 40, "none", torch.bfloat16),
        (260, 16, "identical", torch.bfloat16),
        (200, 40, "identical", torch.bfloat16),
        (260, 40, "identical", torch.float32),
    ],
)
def test_other_inexact_calls_are_the_op(tokens, rank, mix, dtype, pairs):
    args, kwargs = adapters.stack(12, tokens, 96, 80, 3, rank, mix, dtype, ranks=False)
    assert compare.same_bits(inexact(args, kwargs), result("lora", args, kwargs))


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512", "avx512_vnni"])
def test_inexact_calls_are_the_op_where_bf16_does_not_go_in_pairs(level, taken_for):
    taken_for(level)
    args, kwargs = adapters.stack(11, 260, 96, 80, 3, 40, "identical", torch.bfloat16, ranks=False)
    assert compare.same_bits(inexact(args, kwargs), result("lora", args, kwargs))


def test_errors_of_inexact_calls_are_those_of_the_op(pairs):
    args, _ = adapters.stack(13, 260, 96, 80, 3, 40, "identical", torch.bfloat16, ranks=False)
    x, a, b, slots, scale, y = args
    wrong = {
        "slots": ((x, a, b, slots + 1, scale, y), {}),
        "ranks": (args, {"ranks": torch.full((3,), 41, dtype=torch.int32)}),
        "y": ((x, a, b, slots, scale, y[:, 1:]), {}),
        "a": ((x[:, 1:], a, b, slots, scale, y), {}),
        "inputs": ((x, a, b.clone().requires_grad_(), slots, scale, y), {}),
    }
    for name, (given, kwargs) in wrong.items():
        before = given[5].clone()
        with pytest.raises(ValueError, match=rf"lora\({name}\)") as told:
            ops.lora(*given, exact=False, **kwargs)
        with pytest.raises(ValueError, match=rf"lora\({name}\)") as wanted:
            ops.lora(*given, **kwargs)
        assert str(told.value) == str(wanted.value)
        assert compare.same_bits(given[5], before)
