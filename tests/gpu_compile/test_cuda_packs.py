# SPDX-License-Identifier: Apache-2.0
"""Attention on tensor cores, run on a CPU as in test_cuda_emulated: splits that read the same keys
are put together, each is in one pack, and nothing in a result tells.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import pytest
import torch
from headrace.kernels.attention import cuda
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gpu_compile import emulation
from tests.ops import compare, samples, views
from tests.ops.paged import any_mix, batch, edited, one_by_one, replaced
from tests.ops.samples import StreamShape

OP = "paged_attention"
BF16 = torch.bfloat16
LOW = (torch.bfloat16, torch.float16)

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler on PATH")


@dataclass
class Packing:
    """The emulated library, which keeps what a launch put together: rows, by pack."""

    library: ctypes.CDLL
    packs: list[list[int]] | None = None
    splits: int = 0

    def __getattr__(self, name):
        return getattr(self.library, name)

    def headrace_cuda_paged_attention(self, call, stream):
        code = self.library.headrace_cuda_paged_attention(call, stream)
        held = ctypes.cast(call, ctypes.POINTER(cuda.Decode)).contents
        ints = ctypes.POINTER(ctypes.c_int32)
        starts, splits = (ctypes.cast(x, ints) for x in (held.starts, held.splits))
        self.splits = starts[held.rows * held.lists]
        self.packs = None
        if held.packs:
            packs = ctypes.cast(held.packs, ints)
            members = [packs[1 + i] for i in range(packs[0] * held.fit)]
            named = sorted(i for i in members if i >= 0)
            assert named == list(range(self.splits)), "every split is in one pack"
            cut = [members[i : i + held.fit] for i in range(0, len(members), held.fit)]
            self.packs = [[splits[4 * i] for i in pack if i >= 0] for pack in cut]
        return code


@pytest.fixture
def packing():
    return Packing(emulation.library())


def launch(call, library=None):
    bound, axes = compare.bind(OP, *call)
    outs = [torch.full_like(o, torch.nan) for o in compare.run(OP, *call)]
    cuda.paged_attention(bound, axes, outs, library or emulation.library())
    return tuple(outs)


def check(call, library=None):
    together = launch(call, library)
    alone = one_by_one(*call, run=lambda *args, **kwargs: launch((args, kwargs)))
    assert all(map(compare.same_bits, together, alone))
    compare.check(OP, *call, got=together)


def sizes(packing):
    return sorted((len(pack) for pack in packing.packs), reverse=True)


def test_a_prefix_is_read_once_for_as_many_rows_as_a_product_takes(packing):
    """Four splits in common, of 4 query heads a row: four rows to a product of 16."""
    call = batch(1, prefix=8, own=[1] * 6, group=4, split=32, dtype=BF16)
    check(call, packing)
    assert packing.splits == 6 * 5
    assert sizes(packing) == 4 * [4] + 4 * [2] + 6 * [1]
    assert [0, 1, 2, 3] in packing.packs


@pytest.mark.parametrize(("group", "fit"), [(1, 16), (2, 8), (3, 5), (7, 2), (8, 2)])
def test_how_many_rows_a_product_takes(group, fit, packing):
    call = batch(2, prefix=4, own=[0] * 18, group=group, heads=1, split=4096, dtype=BF16)
    check(call, packing)
    full, rest = divmod(18, fit)
    assert sizes(packing) == [fit] * full + [rest] * (rest > 0)


@pytest.mark.parametrize("group", [9, 16, 17, 33])
def test_groups_that_leave_no_room_are_not_packed(group, packing):
    call = batch(3, prefix=4, own=[1, 2], group=group, heads=1, split=32, dtype=BF16)
    check(call, packing)
    assert packing.packs is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16], ids=str)
@pytest.mark.parametrize("kv", [torch.float32, torch.float16, BF16], ids=str)
def test_which_dtypes_are_packed(dtype, kv, packing):
    args, kwargs = batch(4, prefix=4, own=[1, 2], split=32)
    q, k, v, *rest = args
    check(((q.to(dtype), k.to(kv), v.to(kv), *rest), kwargs), packing)
    tensor_cores = (dtype, kv) in [(BF16, BF16), (torch.float16, BF16), 2 * (torch.float16,)]
    assert (packing.packs is not None) == tensor_cores


@pytest.mark.parametrize("each", [True, False], ids=["slot", "page"])
@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_codes(dtype, fmt, each, packing):
    call = views.quantised(batch(5, prefix=7, own=[1, 0, 3], split=48, dtype=dtype), fmt, each)
    check(call, packing)
    assert [0, 1, 2] in packing.packs


@pytest.mark.parametrize("dim", [16, 64, 80, 128, 144, 256])
@pytest.mark.parametrize("fmt", [None, *views.FORMATS], ids=str)
def test_every_width(dim, fmt, packing):
    call = batch(dim, prefix=5, own=[2, 3], dim=dim, group=5, split=32, dtype=torch.float16)
    check(call if fmt is None else views.quantised(call, fmt), packing)
    assert [0, 1] in packing.packs


@settings(max_examples=12)
@given(st.data())
def test_any_mix(data):
    case = any_mix(data, [16, 50, 64, 130]) | dict(
        heads=data.draw(st.integers(1, 2)),
        reach=data.draw(st.sampled_from([samples.UNLIMITED, 20])),
        dim=16,
        dtype=data.draw(st.sampled_from(LOW)),
    )
    call = batch(2, **case)
    if len(call[0][0]):
        check(call)


def test_rows_of_a_stream_share_what_they_see_alike(packing):
    """But the last entries, of which later rows see more."""
    call = batch(6, prefix=0, own=[8], rows=[4], group=4, split=16, dtype=BF16)
    check(call, packing)
    assert sizes(packing) == 7 * [4] + 4 * [1]


def test_a_view_that_was_cut_otherwise_shares_nothing(packing):
    """A stream of more than 64 parts has longer ones: 64 pages of 16 in parts of 16 or of 32."""
    args, kwargs = batch(7, prefix=40, own=[30, 2, 3], group=4, split=16, dtype=BF16)
    check((args, kwargs), packing)
    assert max(len(pack) for pack in packing.packs) == 2
    assert all(0 not in pack for pack in packing.packs if len(pack) > 1)


def test_orders_do_not_part_what_is_read_alike(packing):
    """Nor does the reach: rows see whole pages of both."""
    args, kwargs = batch(8, prefix=6, own=[1, 1], split=32, dtype=BF16)
    ends = args[4]
    moved = args[3].clone()
    moved[ends[1] :, 5] -= 5
    moved[ends[1] :, 6] = 1000
    check((replaced(args, entries=moved), kwargs), packing)
    assert packing.packs.count([0, 1]) == 3


@pytest.mark.parametrize("column", [1, 2, 3, 4])  # first slot, count, origin, cap
def test_what_is_read_otherwise_is_read_alone(column, packing):
    args, kwargs = batch(9, prefix=6, own=[1, 1], split=32, tail=9, dtype=BF16)
    moved = args[3].clone()
    at = int(args[4][1]) + 2  # of the second pair of pages
    if column == 1:
        moved[at, 1], moved[at, 2] = 1, 15
    elif column == 2:
        moved[at, 2] = 15
    else:
        moved[at, column] = 7
    check((replaced(args, entries=moved), kwargs), packing)
    assert packing.packs.count([0, 1]) == 2


def test_two_prefixes_in_one_batch(packing):
    """Rows meet wherever they stand in the batch."""
    args, kwargs = batch(15, prefix=4, own=[1] * 4, split=32, dtype=BF16)
    moved, ends = args[3].clone(), args[4]
    for b in (1, 3):  # the same pages, told at another origin
        moved[ends[b] : ends[b] + 4, 3] += 32
    check((replaced(args, entries=moved), kwargs), packing)
    assert packing.packs.count([0, 2]) == packing.packs.count([1, 3]) == 2


def test_more_rows_than_one_turn_of_a_block(packing):
    call = batch(
        10, prefix=2, own=[0] * 530, group=1, heads=1, dim=16, split=4096, dtype=torch.float16
    )
    together = launch(call, packing)
    compare.check(OP, *call, got=together)
    assert sizes(packing) == 33 * [16] + [2]  # 512 and 18
    assert all(
        torch.equal(x[:1], y) for x, y in zip(together, launch(first_row(call)), strict=True)
    )


def first_row(call):
    args, kwargs = call
    one = torch.tensor([0, 1], dtype=torch.int32)
    alone = dict(q=args[0][:1], q_pos=args[6][:1], q_indptr=one)
    return replaced(args, entry_indptr=args[4][:2], entries=args[3][: args[4][1]], **alone), kwargs


def test_lists_per_head_share_by_head(packing):
    call = views.per_head(11, batch(11, prefix=6, own=[1, 2], split=32, dtype=BF16), False)
    check(call, packing)


def test_some_rows_left_to_another_kernel(packing):
    """Rows of long streams are in no pack, and are not written."""
    call = batch(12, prefix=6, own=[1, 3, 1], rows=[1, 9, 1], split=32, dtype=BF16)
    bound, axes = compare.bind(OP, *call)
    whole = launch(call)
    outs = [torch.full_like(o, torch.nan) for o in whole]
    cuda.paged_attention(bound, axes, outs, packing, few=8)
    assert [0, 10] in packing.packs
    for some, every in zip(outs, whole, strict=True):
        assert compare.same_bits(some[[0, 10]], every[[0, 10]])
        assert some[1:10].isnan().all()


def test_nan_of_one_stream_stays_there():
    (q, *rest), kwargs = batch(13, prefix=6, own=[1, 2, 1], split=32, dtype=BF16)
    q = q.clone()
    q[1] = torch.nan
    check(((q, *rest), kwargs))
    o, _ = launch(((q, *rest), kwargs))
    assert o[1].isnan().all()
    assert o[[0, 2]].isfinite().all()


@pytest.mark.parametrize("fmt", [None, *views.FORMATS], ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_lse_keeps_the_digits_of_fp32(dtype, fmt):
    """A query that was rounded once turned would be off by a hundred times as much."""
    call = samples.paged(1, [StreamShape(640, 16)], dim=128, page_size=64, dtype=dtype)
    call = call if fmt is None else views.quantised(call, fmt)
    want = compare.reference(OP, *call)[1]
    assert (launch(call)[1].double() - want).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_weights_keep_their_digits(dtype):
    """Values that cancel: what weights of 16 bits would lose shows whole."""
    args, kwargs = samples.paged(2, [StreamShape(600, 8)], dim=64, page_size=64, dtype=dtype)
    args[2][:] = args[2].sign() * 64 + 0.0
    args = replaced(args, q=args[0] * 0.05)
    want = compare.reference(OP, args, kwargs)[0]
    got = launch((args, kwargs))[0].double()
    step = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert ((got - want).abs() <= step * want.abs() + 64 * 2.0**-15).all()


@pytest.mark.parametrize("code", range(0, 256, 16))
@pytest.mark.parametrize("fmt", views.FORMATS, ids=str)
def test_every_code_reads_exactly(fmt, code):
    """16 of them, one to a token and row: its value, out of a value page, is what comes out."""
    codes = (torch.arange(16, dtype=torch.uint8) + code).view(fmt)
    k = torch.zeros(16, 1, 16, 16, dtype=torch.uint8).view(fmt)
    v = k.clone()
    v[:, 0, 3, 0] = codes
    entries = torch.tensor([[i, 3, 1, 0, 2**62, 0, 2**62] for i in range(16)])
    ends, q = torch.arange(17, dtype=torch.int32), torch.ones(16, 1, 16, dtype=BF16)
    one = torch.ones(16, 1, 1)
    call = (q, k, v, entries, ends, ends, torch.zeros(16).long()), {"k_scale": one, "v_scale": one}
    o, _ = launch(call)
    assert torch.equal(o[:, 0, 0].float().nan_to_num(9e9), codes.float().nan_to_num(9e9))


def test_edits_of_a_table_change_the_packs(packing):
    """A plan is of the call: the same tensors, edited between two launches."""
    args, kwargs = batch(14, prefix=4, own=[1, 1], split=32, dtype=BF16)
    launch((args, kwargs), packing)
    assert packing.packs.count([0, 1]) == 2
    launch((edited(args, 3, lambda x: x + torch.arange(len(x)) // 5), kwargs), packing)
    assert [0, 1] not in packing.packs
