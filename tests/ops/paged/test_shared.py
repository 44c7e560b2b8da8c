# SPDX-License-Identifier: Apache-2.0
"""Streams whose lists begin alike read what they share once; nothing in a result tells."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from headrace.kernels.attention import least
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import ops
from tests.ops import compare, samples
from tests.ops.paged import SIZE, any_mix, batch, one_by_one

pytestmark = pytest.mark.usefixtures("two_threads")


def check(args, kwargs, label=""):
    together = ops.paged_attention(*args, **kwargs)
    for a, b in zip(together, one_by_one(args, kwargs), strict=True):
        assert compare.same_bits(a, b), label
    compare.check("paged_attention", args, kwargs, label, got=together)


@pytest.mark.parametrize("split", [40, 64, 100, 4096])
@pytest.mark.parametrize(
    "case",
    [
        dict(prefix=8, own=[1, 2, 3]),
        dict(prefix=8, own=[0, 0, 5, 1]),  # some see the prefix and nothing else
        dict(prefix=9, own=[2] * 40),  # more than one item takes
        dict(prefix=6, own=[3, 1, 4], rows=[3, 1, 2]),
        dict(prefix=5, own=[2, 2], cap=50, ahead=1000),
        dict(prefix=5, own=[2, 3], tail=7),
        dict(prefix=7, own=[1, 2], group=1, heads=3),
        dict(prefix=4, own=[4, 6], reach=20),
    ],
    ids=str,
)
def test_bits_are_those_of_streams_alone(isa, case, split):
    check(*batch(1, split=split, **case), case)


@given(st.data())
def test_any_mix(data):
    case = any_mix(data, [16, 50, 64, 130, 4096])
    (q, *rest), kwargs = batch(2, **case)
    if len(q):
        check((q, *rest), kwargs, case)


def test_two_prefixes_in_one_batch(isa):
    """Groups are found wherever their members stand in the batch."""
    (q, k, v, entries, owners, rows, pos), kwargs = batch(3, prefix=6, own=[1, 1, 1, 1], split=64)
    entries = entries.clone()
    for b in (1, 3):  # these share another prefix: the same pages, told at another origin
        entries[owners[b] : owners[b] + 6, 3] += 32
    check((q, k, v, entries, owners, rows, pos), kwargs)


def test_a_list_that_parts_early_is_not_dragged_along(isa):
    (q, k, v, entries, owners, rows, pos), kwargs = batch(4, prefix=8, own=[1, 1, 1])
    entries = entries.clone()
    entries[owners[1] + 5, 0] = entries[owners[1] + 8, 0]  # stream 1 leaves after five pages
    check((q, k, v, entries, owners, rows, pos), kwargs)


def test_nan_of_one_stream_stays_there(isa):
    (q, *rest), kwargs = batch(5, prefix=6, own=[1, 2, 1])
    q = q.clone()
    q[1] = torch.nan
    check((q, *rest), kwargs)
    o, _ = ops.paged_attention(q, *rest, **kwargs)
    assert o[1].isnan().all()
    assert o[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(isa, dtype):
    (q, k, v, *rest), kwargs = batch(6, prefix=7, own=[1, 0, 3], split=50)
    check((q.to(dtype), k.to(dtype), v.to(dtype), *rest), kwargs)


def test_lists_per_head(isa):
    """Every head has a list of its own; heads of other streams share with it."""
    (q, k, v, entries, owners, rows, pos), kwargs = batch(7, prefix=6, own=[1, 2, 1], split=40)
    lists, twice = [], [0]
    for b in range(3):
        mine = entries[owners[b] : owners[b + 1]]
        for head in range(2):
            lists.append(mine if head == 0 else mine[:5])  # the second head keeps less
            twice.append(twice[-1] + len(lists[-1]))
    args = (q, k, v, torch.cat(lists), torch.tensor(twice, dtype=torch.int32), rows, pos)
    check(args, kwargs)


def slots_seen(bound, heads):
    """(head, page, slot) that any query sees, one by one; heads: of a page, or 1 for all alike."""
    q_order = bound["q_pos"] if bound["q_order"] is None else bound["q_order"]
    each = (len(bound["entry_indptr"]) - 1) // (len(bound["q_indptr"]) - 1)
    found = set()
    for i, (first, last) in enumerate(pairwise(bound["entry_indptr"].tolist())):
        b = i // each
        rows = q_order[bound["q_indptr"][b] : bound["q_indptr"][b + 1]].tolist()
        for page, slot, count, *_, at, reach in bound["entries"][first:last].tolist():
            found |= {
                (i % heads, page, slot + n)
                for n in range(count)
                if any(0 <= row - at - n < reach for row in rows)
            }
    return len(found)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1), (3, 1), (1, 3), (3, 3)]), st.booleans())
def test_bytes_are_those_of_the_slots_that_are_read(seed, lists, few):
    """Each slot counts once, whichever lists and entries have it, and in whatever pieces."""
    own, each = lists
    gen = samples.rng(seed)
    below = lambda most, n: torch.randint(most, (n,), generator=gen)  # noqa: E731
    rows, held = [0, *below(4, 3).cumsum(0).tolist()], [0, *below(5, 3 * each).cumsum(0).tolist()]
    entries = torch.zeros(held[-1], 7, dtype=torch.int64)
    entries[:, 0], entries[:, 1], entries[:, 2] = (below(n, held[-1]) for n in (4, 8, 9))
    entries[:, 4], entries[:, 5], entries[:, 6] = 99, below(40, held[-1]), 1 + below(60, held[-1])
    pages = [torch.zeros(4, own, *page) for page in ((32, SIZE), (SIZE, 32))]
    # The orders of a chunk rise by one, as those of what is fed do.
    pos = [at + torch.arange(n) for at, n in zip(below(60, 3).tolist(), steps(rows), strict=True)]
    heads = max(own, each)
    bound = ops.specs()["paged_attention"].bind(
        torch.zeros(rows[-1], heads, 32), *pages, entries, torch.tensor(held, dtype=torch.int32),
        torch.tensor(rows, dtype=torch.int32), torch.cat(pos),
    )  # fmt: skip
    axes = ops.specs()["paged_attention"].check(bound)
    apart = own if each > 1 else 1  # heads of a page that lists of their own look at
    words = 2 * slots_seen(bound, apart) * (own if each == 1 else 1) * 32
    with pytest.MonkeyPatch.context() as patch:
        if few:
            patch.setattr(least, "PAIRS", 2)
        assert ops.specs()["paged_attention"].bytes(axes, bound) == 4 * (
            words + 2 * bound["q"].numel()
        )


def steps(ends):
    return [b - a for a, b in pairwise(ends)]


def test_bytes_of_a_shared_prefix_count_once():
    args, _ = batch(0, 3, [2, 1, 4], tail=5)
    bound = ops.specs()["paged_attention"].bind(*args)
    slots = 2 * SIZE + 5 + 7 * SIZE
    moved = ops.specs()["paged_attention"].bytes(ops.specs()["paged_attention"].check(bound), bound)
    assert moved == 4 * (2 * slots * 2 * 32 + 2 * 3 * 8 * 32)
