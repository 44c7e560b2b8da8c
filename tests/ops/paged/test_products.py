# SPDX-License-Identifier: Apache-2.0
"""Queries of bf16 over pages of bf16 and int8, whose products have a form of their own where the
processor multiplies pairs: odd counts and starts, every width, bits, lse, what is not finite."""

from __future__ import annotations

import pytest
import torch
from headrace.kernels.attention.reference import COUNT, FIRST, PAGE

from tests.ops import compare, samples, views
from tests.ops.paged import both, replaced
from tests.ops.samples import StreamShape

pytestmark = pytest.mark.usefixtures("guarded", "two_threads")
OP = "paged_attention"
FORMATS = [None, torch.int8]


def form(seed, streams, fmt, **case):
    call = samples.paged(seed, streams, dtype=torch.bfloat16, **case)
    return call if fmt is None else views.quantised(call, fmt, True)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dim", [16, 32, 48, 80, 112, 256])
def test_every_width_and_odd_counts(fmt, dim):
    streams = [StreamShape(1, 1), StreamShape(67, 3, 17, 3), StreamShape(130, 5, 39, 1)]
    for group in (1, 3, 7):
        args, kwargs = form(dim + group, streams, fmt, dim=dim, group=group, page_size=64)
        compare.check_levels(OP, args, kwargs, (fmt, dim, group))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_lse_keeps_the_digits_of_fp32(isa, fmt):
    """A query that was rounded once turned would be off by a hundred times as much."""
    args, kwargs = form(1, [StreamShape(640, 64)], fmt, dim=128, page_size=64)
    _, lse = both(args, **kwargs)
    want = compare.reference(OP, args, kwargs)[1]
    assert (lse.double() - want).abs().max() <= 2e-5


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("window", [None, 13, 40])
def test_bits_of_a_row_alone_and_in_a_chunk(isa, fmt, window):
    """Pairs of keys are the same whatever the other rows of the chunk see."""
    args, kwargs = form(2, [StreamShape(90, 9, window, 3)], fmt, group=2, page_size=32)
    o, lse = both(args, **kwargs)
    for row in range(9):
        alone = replaced(
            args,
            q=args[0][row : row + 1],
            q_indptr=torch.tensor([0, 1], dtype=torch.int32),
            q_pos=args[6][row : row + 1],
        )
        one = both(alone, **kwargs)
        assert compare.same_bits(one[0][0], o[row])
        assert compare.same_bits(one[1][0], lse[row])


@pytest.mark.parametrize(("first", "count"), [(0, 7), (3, 8), (3, 7), (63, 1)])
def test_slots_beside_an_odd_range_are_never_multiplied(isa, first, count):
    args, kwargs = form(3, [StreamShape(64, 1)], None, kv_heads=1, page_size=64)
    entries = args[3][:1].clone()
    entries[0, FIRST], entries[0, COUNT] = first, count
    args = replaced(args, entries=entries, entry_indptr=torch.tensor([0, 1], dtype=torch.int32))
    want = both(args, **kwargs)
    page, seen = int(entries[0, PAGE]), torch.zeros(64, dtype=torch.bool)
    seen[first : first + count] = True
    k, v = args[1].clone(), args[2].clone()
    k[page][:, :, ~seen], v[page][:, ~seen] = torch.nan, torch.inf
    got = both(replaced(args, k_pages=k, v_pages=v), **kwargs)
    assert all(map(compare.same_bits, got, want))
    compare.check(OP, args, kwargs, (first, count), got=got)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_says_so(isa, fmt, bad):
    args, kwargs = form(4, [StreamShape(70, 2)], fmt, group=2)
    clean = both(args, **kwargs)
    q = args[0].clone()
    q[0, 1, 3] = bad
    o, lse = both(replaced(args, q=q), **kwargs)
    assert not o[0, 1].isfinite().any()
    assert not lse[0, 1].isfinite()
    assert compare.same_bits(o[1], clean[0][1])
    assert compare.same_bits(o[0, 0], clean[0][0, 0])


def test_dense_prefill_of_odd_lengths(isa):
    for length, window, sinks in ((1, None, 0), (67, 13, 3), (131, 64, 5), (200, None, 0)):
        args, kwargs = samples.dense(5, 1, 2, 4, length, length, 80, torch.bfloat16)
        kwargs |= {"window": window, "sinks": sinks}
        compare.check("attention", args, kwargs, (length, window, sinks))


@pytest.mark.parametrize("code", [-128, 127, None], ids=str)
def test_codes_and_queries_at_their_ends(isa, code):
    """The largest sums of digits: every element of a query is its largest, of either sign."""
    args, kwargs = form(6, [StreamShape(131, 3)], torch.int8, dim=256, group=3, page_size=64)
    q, k, v = args[0].clone(), args[1].clone(), args[2].clone()
    q[:] = torch.where(q < 0, -1.5, 1.5) if code is None else 1.5
    for pages in (k, v):
        pages[:] = torch.where(pages < 0, -128, 127) if code is None else code
    args = replaced(args, q=q, k_pages=k, v_pages=v)
    compare.check(OP, args, kwargs | {"scale": 1e-3}, code)


def test_scales_of_either_sign(isa):
    args, kwargs = form(7, [StreamShape(150, 4, 70, 2)], torch.int8, group=4, page_size=32)
    for name in ("k_scale", "v_scale"):
        kwargs[name] = kwargs[name] * (torch.arange(kwargs[name].shape[-1]) % 3 - 1.0)
    compare.check(OP, args, kwargs, "signs")


@pytest.mark.parametrize("page_size", [16, 32, 48, 80])
def test_pages_of_codes_that_are_no_whole_tile(isa, page_size):
    for dim in (48, 64, 128):
        args, kwargs = form(
            8,
            [StreamShape(3 * page_size + 5, 2)],
            torch.int8,
            dim=dim,
            group=4,
            page_size=page_size,
        )
        compare.check(OP, args, kwargs, (page_size, dim))
