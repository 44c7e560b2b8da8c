# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from headrace import ops
from headrace.adapters import quantize_rows
from tests.ops import adapters, compare, samples
from tests.ops.adapters import result

pytestmark = pytest.mark.usefixtures("two_threads")
ARGS = ("x", "a", "b", "rows", "row_indptr", "slots", "scale", "y")


def check(args, kwargs, label=""):
    want = compare.reference("lora_rows", args, kwargs)
    got = result("lora_rows", args, kwargs)
    compare.check("lora_rows", args, kwargs, label, got=(got,), want=want)
    idle = (args[5] < 0).all(1)
    assert compare.same_bits(got[idle], args[7][idle]), label


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_grid(isa, dtype):
    grid = samples.cover(
        2,
        30,
        tokens=(0, 1, 2, 5, 16, 33, 65),
        depth=(1, 16, 67, 513),
        widths=((45,), (64, 16, 16), (7, 130), (2049,), (1, 1, 1, 1)),
        adapters=(1, 3, 20),
        rank=(1, 4, 8, 17, 40),
        mix=adapters.MIXES,
        several=(1, 1, 2, 4),
        weight_dtype=samples.DTYPES,
        epilogue=("", "bias", ""),
    )
    for i, case in enumerate(grid):
        check(*adapters.pool(i, dtype=dtype, **case), case)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes(isa, bits):
    grid = samples.cover(
        3,
        12,
        tokens=(1, 3, 4, 21),
        depth=(32, 64, 576),
        widths=((64,), (64, 96), (32, 32, 32), (2080,), (45, 51), (4100, 28)),
        rank=(1, 5, 16, 33),
        several=(1, 2),
        group=(32,),
        dtype=samples.DTYPES,
    )
    for i, case in enumerate(grid):
        check(*adapters.pool(i, bits=bits, **case), case)
    check(*adapters.pool(90, depth=70, widths=(25,), bits=8, group=5))
    check(*adapters.pool(91, depth=192, widths=(96,), bits=bits, group=96))
    for group, tokens in itertools.product((64, 128), (3, 21)):
        for widths in ((128,), (45, 83), (96, 160), (4224,)):
            case = dict(tokens=tokens, depth=384, widths=widths, rank=21, bits=bits, group=group)
            check(*adapters.pool(92, **case), case)


@pytest.mark.parametrize("epilogue", ["gain", "gain base", "bias gain base"])
def test_dora(isa, epilogue):
    for dtype in samples.DTYPES:
        for tokens in (1, 30):
            check(*adapters.pool(4, tokens, widths=(64, 45), epilogue=epilogue, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_stack(isa, dtype):
    """The same adapters, stacked or in rank rows: the same bits."""
    (x, a, b, slots, scale, y), kwargs = adapters.stack(5, 40, 100, 130, 4, 20, dtype=dtype)
    want = result("lora", (x, a, b, slots, scale, y), kwargs)
    rows = torch.arange(80, dtype=torch.int32)
    indptr = torch.arange(0, 81, 20, dtype=torch.int32)
    pooled = (a.flatten(0, 1)[:, None], b.mT.reshape(80, 130), rows, indptr)
    got = result(
        "lora_rows",
        (x, *pooled, slots[:, None], scale, y),
        {"ranks": kwargs["ranks"][:, None].contiguous()},
    )
    assert compare.same_bits(got, want)


@pytest.mark.parametrize("widths", [(64, 32), (45, 51), (96, 160), (4128,)], ids=str)
def test_rows_do_not_depend_on_the_batch(isa, widths):
    codes = ((None, 32), (8, 32), (4, 32), (8, 6), (4, 96), (8, 64), (4, 64))
    pools = [(torch.float32, *of) for of in codes if sum(widths) % of[1] == 0]
    for dtype, bits, group in [*pools, (torch.bfloat16, None, 32)]:
        args, kwargs = adapters.pool(
            6,
            70,
            192,
            widths,
            6,
            21,
            several=2,
            dtype=dtype,
            bits=bits,
            group=group,
            epilogue="bias",
        )
        whole = result("lora_rows", args, kwargs)
        x, a, b, rows, indptr, slots, scale, y = args
        for pick in ([0], [69, 3], list(range(20, 45)), torch.randperm(70).tolist()):
            part = (x[pick], a, b, rows, indptr, slots[pick].contiguous(), scale, y[pick])
            mine = kwargs | {"weights": kwargs["weights"][pick].contiguous()}
            assert compare.same_bits(result("lora_rows", part, mine), whole[pick]), pick


def test_place_in_the_pool_leaves_no_trace(isa):
    (x, a, b, rows, indptr, slots, scale, y), kwargs = adapters.pool(7, 30, rank=12)
    want = result("lora_rows", (x, a, b, rows, indptr, slots, scale, y), kwargs)
    moved = torch.randperm(len(a), generator=samples.rng(8))
    place = moved.argsort()
    args = (x, a[moved], b[moved], place[rows.long()].int(), indptr, slots, scale, y)
    assert compare.same_bits(result("lora_rows", args, kwargs), want)


def test_several_adapters_are_a_sum_rounded_once():
    args, kwargs = adapters.pool(9, 12, several=3)
    x, a, b, rows, indptr, slots, scale, y = args
    total = torch.zeros_like(y).double()
    for w in range(3):
        one = (x, a, b, rows, indptr, slots[:, w : w + 1].contiguous(), scale, torch.zeros_like(y))
        own = kwargs | {"weights": kwargs["weights"][:, w : w + 1].contiguous()}
        total += compare.reference("lora_rows", one, own)[0]
    got = result("lora_rows", args, kwargs)
    assert compare.distance(got, y.double() + total).rms < 1e-6


@pytest.mark.parametrize("term", ["weights", "bias", "gain", "base_bias", "slice_ends", "ranks"])
def test_sensitive_to(term):
    several, epilogue = (2, "bias") if term == "weights" else (1, "bias gain base")
    args, kwargs = adapters.pool(
        10, 20, widths=(30, 15), several=several, mix="distinct", epilogue=epilogue
    )
    want = result("lora_rows", args, kwargs)
    changed = dict(kwargs)
    if term == "slice_ends":
        args[2].nan_to_num_(1.0)
        changed[term] = torch.tensor([29, 45], dtype=torch.int32)
    elif term == "ranks":
        changed[term] = (kwargs[term] - 1).clamp(min=0)
    else:
        changed[term] = kwargs[term] * 1.05
    assert compare.distance(result("lora_rows", args, changed), want).rms > 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_rows(bits):
    weights = samples.normal(samples.rng(1), 5, 3, 192)
    weights[1, 1] = 0
    codes, scales = quantize_rows(weights, bits, 64)
    from headrace.kernels.lora.reference import unpack

    back = unpack(codes, scales, torch.float32)
    step = scales.repeat_interleave(64, -1)
    assert ((back - weights).abs() <= step * 0.5001).all()
    assert (back[1, 1] == 0).all()
    for bad, told in (((bits, 50), "group"), ((3, 64), "bits")):
        with pytest.raises(ValueError, match=rf"quantize_rows\({told}\)"):
            quantize_rows(weights, *bad)
    with pytest.raises(ValueError, match=r"quantize_rows\(weights\)"):
        quantize_rows(weights * torch.inf, bits, 64)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (dict(b=torch.zeros(24, 45).half()), TypeError, r"lora_rows\(b\): expected"),
        (dict(slots=torch.zeros(5, 5).int()), NotImplementedError, r"1 to 4 adapters"),
        (dict(slots=torch.full((5, 1), 9).int()), ValueError, r"slots\): expected values in"),
        (dict(rows=torch.full((1,), 99).int()), ValueError, r"lora_rows\(row"),
        (dict(slice_ends=torch.tensor([44]).int()), ValueError, r"rise to 45"),
        (dict(a_scale=torch.zeros(1, 1, 1)), ValueError, r"a_scale\): expected"),
        (dict(bias=torch.zeros(2, 45)), ValueError, r"epilogue\): expected the rows"),
        (dict(ranks=torch.full((4, 1), 99).int()), ValueError, r"ranks\): expected 0 to"),
    ],
)
def test_mistakes(change, kind, told):
    args, kwargs = adapters.pool(11, mix="identical")
    given = dict(zip(ARGS, args, strict=True)) | kwargs | change
    before = given["y"].clone()
    with pytest.raises(kind, match=told):
        ops.lora_rows(**given)
    assert compare.same_bits(given["y"], before)


def test_rows_outside_the_pool_are_refused():
    args, _ = adapters.pool(12, mix="identical")
    rows = args[3].clone()
    rows[-1] = len(args[1])
    with pytest.raises(ValueError, match=r"lora_rows\(rows\): expected values in"):
        ops.lora_rows(*args[:3], rows, *args[4:])
