# SPDX-License-Identifier: Apache-2.0
"""Debug mode: a bad view is refused by name before anything runs; off, nothing is looked at."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

import headrace
from headrace import ops
from headrace.memory.pool import PagePool
from tests import warm

UNLIMITED = 2**62


def view(*entries):
    """Arguments of one query over a pool of 6 pages of 16 slots."""
    pages = torch.zeros(6, 1, 16, 16)
    table = torch.tensor(
        [
            [page, first, count, 0, UNLIMITED, order, UNLIMITED]
            for page, first, count, order in entries
        ]
    )
    indptr = torch.tensor([0, len(entries)], dtype=torch.int32)
    one = torch.tensor([0, 1], dtype=torch.int32)
    return torch.zeros(1, 2, 16), pages, pages.clone(), table, indptr, one, torch.tensor([99])


GOOD = ((0, 0, 4, 0), (1, 0, 16, 4), (0, 4, 12, 30))
BAD = {
    "overlap": (((0, 0, 4, 0), (1, 0, 16, 4), (0, 3, 5, 30)), "slots of page 0 both in entry 0"),
    "twice": (((2, 0, 16, 0), (2, 0, 16, 16)), "every slot once in list 0"),
    "backwards": (((0, 0, 4, 8), (1, 0, 16, 4)), "order 4 after 8 in entry 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_views_are_refused_in_debug_mode_only(case):
    entries, told = BAD[case]
    ops.paged_attention(*view(*entries))
    with headrace.debug(), pytest.raises(ValueError, match=told):
        ops.paged_attention(*view(*entries))
    with headrace.debug(), headrace.debug(False):
        ops.paged_attention(*view(*entries))


def test_good_views_pass():
    with headrace.debug():
        ops.paged_attention(*view(*GOOD))
        ops.paged_attention(*view((0, 5, 0, 9), *GOOD))  # an empty entry is nothing


def test_lists_are_looked_at_one_by_one():
    """Two streams may share a page; each list has a time of its own."""
    q, k, v, entries, _, _, pos = view((0, 0, 16, 50), (0, 0, 16, 3))
    each = torch.tensor([0, 1, 2], dtype=torch.int32)
    with headrace.debug():
        ops.paged_attention(q.repeat(2, 1, 1), k, v, entries, each, each, pos.repeat(2))


def test_free_pages_are_refused():
    pool = PagePool(2, 4, 1, 16, 16)
    held, lost = pool.take(2)
    pool.drop([lost])
    q, _, _, _, _, one, pos = view((0, 0, 1, 0))
    (k, v), _ = pool.layer(1)
    new = torch.ones(1, 1, 16)
    for page in (held, lost):
        where = torch.tensor([[page, 0, 0]])
        entries = torch.tensor([[page, 0, 1, 0, UNLIMITED, 0, UNLIMITED]])
        with headrace.debug():
            if page == held:
                ops.append(new, new, k, v, where)
                ops.paged_attention(q, k, v, entries, one, one, pos)
                continue
            before = k[page].clone()
            with pytest.raises(ValueError, match=rf"append\(where\): .* page {page}, free"):
                ops.append(new, new, k, v, where)
            sums, row = torch.zeros(1, 1, 16, 16), torch.zeros(1).int()
            with pytest.raises(ValueError, match=rf"append_absorb\(where\): .* page {page}, free"):
                ops.append_absorb(new, new, k, v, where, where * 0, sums, None, one, row)
            assert torch.equal(k[page].isnan(), before.isnan())
            with pytest.raises(ValueError, match=rf"paged_attention\(entries\): .* page {page}"):
                ops.paged_attention(q, k, v, entries, one, one, pos)


def test_a_slot_written_twice_is_refused():
    new, pages = torch.ones(3, 1, 16), torch.zeros(2, 1, 16, 16)
    where = torch.tensor([[0, 3, 0], [1, 3, 0], [0, 3, 1]])
    ops.append(new, new, pages, pages.clone(), where)
    with headrace.debug(), pytest.raises(ValueError, match="slot 3 of page 0 for tokens 0 and 2"):
        ops.append(new, new, pages, pages.clone(), where)


def test_streams_run_in_debug_mode():
    """Evictions, forks and rollbacks make no view that the checks would refuse."""
    model = headrace.models.load("bytes-stream")
    with headrace.debug():
        engine = headrace.wrap(
            model,
            memory=headrace.Sink(4) + headrace.Window(60),
            positions=headrace.InCache(),
            pool_pages=24,
            page_size=16,
        )
        with engine.open() as stream:
            stream.feed(list(range(100)))
            fork = stream.fork()
            mark = stream.mark()
            stream.feed(list(range(50)))
            fork.feed(list(range(30)))
            stream.rollback(mark)
            stream.feed(list(range(90)))
            fork.close()


def test_variable():
    code = "from headrace import audit; print(audit.on)"
    for value, told in (("1", "True"), ("0", "False"), ("", "False")):
        done = subprocess.run(
            [*warm.python(*warm.TORCH), "-c", code],
            env={**os.environ, "HEADRACE_DEBUG": value},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == told, done.stderr
