# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the multi-adapter ops on a CPU, as in test_cuda_emulated."""

from __future__ import annotations

import ctypes

import pytest
import torch
from headrace.kernels.lora import cuda

from tests.gpu_compile import emulation
from tests.ops import adapters, compare, samples

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler on PATH")


@pytest.fixture
def library():
    return emulation.library()


def result(name, args, kwargs, library):
    """What the launcher makes of a copy of y."""
    y = args[-1].clone()
    bound, axes = compare.bind(name, (*args[:-1], y), kwargs)
    getattr(cuda, name)(bound, axes, [], library)
    return y


def check(name, args, kwargs, library, label=""):
    want = compare.reference(name, args, kwargs)
    got = result(name, args, kwargs, library)
    compare.check(name, args, kwargs, label, got=(got,), want=want)
    slots = args[3][:, None] if name == "lora" else args[5]
    idle = (slots < 0).all(1)
    assert compare.same_bits(got[idle], args[-1][idle]), label


def test_structures_match(library):
    assert library.headrace_cuda_lora_bytes() == ctypes.sizeof(cuda.Lora)


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_stack(dtype, library):
    grid = samples.cover(
        1,
        10,
        tokens=(0, 1, 5),
        depth=(16, 67, 1032),
        outputs=(45, 64, 520),
        rank=(1, 9, 17),
        mix=("uniform", "distinct", "none"),
        weight_dtype=samples.DTYPES,
        layout=("plain", "rows"),
        trained=(True, False),
    )
    for i, case in enumerate(grid):
        check("lora", *adapters.stack(i, dtype=dtype, **case), library, case)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_pool(bits, library):
    grid = samples.cover(
        2,
        12,
        tokens=(1, 3, 6),
        depth=(32, 96, 1056),
        widths=((64,), (45, 51), (32, 32, 32), (1, 543)),
        rank=(1, 5, 18),
        several=(1, 2, 3),
        group=(32,),
        dtype=samples.DTYPES,
        epilogue=("", "bias"),
    )
    for i, case in enumerate(grid):
        check("lora_rows", *adapters.pool(i, bits=bits, **case), library, case)
    if bits == 8:
        check("lora_rows", *adapters.pool(90, depth=70, widths=(25,), bits=8, group=5), library)


@pytest.mark.parametrize("epilogue", ["gain", "bias gain base"])
def test_dora(epilogue, library):
    for dtype in samples.DTYPES:
        call = adapters.pool(4, 9, widths=(64, 45), epilogue=epilogue, dtype=dtype)
        check("lora_rows", *call, library)


def test_rows_have_the_same_bits_alone_and_in_any_mix(library):
    for bits in (None, 4):
        args, kwargs = adapters.pool(6, 9, 96, (64, 32), 6, 20, several=2, bits=bits)
        whole = result("lora_rows", args, kwargs, library)
        for pick in ([0], [8, 3], torch.randperm(9).tolist()):
            part = (args[0][pick], *args[1:5], args[5][pick].contiguous(), args[6], args[7][pick])
            mine = kwargs | {"weights": kwargs["weights"][pick].contiguous()}
            assert compare.same_bits(result("lora_rows", part, mine, library), whole[pick])


@pytest.mark.parametrize(("mix", "bits"), [("identical", 4), ("runs", None)])
def test_rows_among_many_have_the_bits_of_few(mix, bits, library):
    """More rows than fill a device go by the eight, and read weights once for those that agree."""
    args, kwargs = adapters.pool(
        12, 131, 32, (24, 40), 3, 5, several=2, bits=bits, epilogue="" if bits else "bias"
    )
    slots = args[5][torch.arange(131) // 3].contiguous()  # groups of eight end inside runs
    if mix == "identical":
        slots[:] = torch.tensor([2, 0])
    args = (*args[:5], slots, *args[6:])
    check("lora_rows", args, kwargs, library, (mix, bits))
    whole = result("lora_rows", args, kwargs, library)
    for rows in (slice(0, 1), slice(7, 10), slice(129, 131)):
        part = (args[0][rows], *args[1:5], slots[rows], args[6], args[7][rows])
        mine = kwargs | {"weights": kwargs["weights"][rows]}
        assert compare.same_bits(result("lora_rows", part, mine, library), whole[rows]), rows


def test_the_bridge_need_not_be_zero(library, monkeypatch):
    """What was in the bridge before, and beyond each rank, leaves no trace."""
    args, kwargs = adapters.pool(7, 5)
    want = result("lora_rows", args, kwargs, library)
    empty = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        return empty(self, *size, **options).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert compare.same_bits(result("lora_rows", args, kwargs, library), want)


def test_views_that_are_not_aligned(library):
    """x, y and the pool begin in the middle of a word: the same sums, by element."""
    args, kwargs = adapters.pool(8, 4, 64, (64,), dtype=torch.float16)

    def shifted(x):
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    moved = tuple(shifted(x) if i in (0, 1, 2, 7) else x for i, x in enumerate(args))
    want = compare.reference("lora_rows", args, kwargs)
    bound, axes = compare.bind("lora_rows", moved, kwargs)
    cuda.lora_rows(bound, axes, [], library)
    compare.check("lora_rows", args, kwargs, got=(moved[-1],), want=want)


def test_what_is_not_there_counts_as_none(library):
    args, kwargs = adapters.pool(9, 4, mix="identical", adapters=2)
    x, a, b, rows, indptr, slots, scale, y = args
    wrong = slots.clone()
    wrong[1], wrong[2] = 2, 10**6
    got = result("lora_rows", (x, a, b, rows, indptr, wrong, scale, y), kwargs, library)
    assert compare.same_bits(got[1:3], y[1:3])
    whole = result("lora_rows", args, kwargs, library)
    assert compare.same_bits(got[[0, 3]], whole[[0, 3]])
    lost = rows.clone()
    lost[int(indptr[1])] = len(a)  # the first rank row of adapter 1
    fewer = b.clone()
    fewer[rows[int(indptr[1])].long()] = 0
    gone = result("lora_rows", (x, a, b, lost, indptr, slots, scale, y), kwargs, library)
    zero = result("lora_rows", (x, a, fewer, rows, indptr, slots, scale, y), kwargs, library)
    assert compare.distance(gone, zero.double()).rms < 1e-6
