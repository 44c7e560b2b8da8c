# SPDX-License-Identifier: Apache-2.0
"""Tiers: what is put comes back whole from wherever it is, and only what is needed moves."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace import PagePool
from headrace.memory.disk import Disk
from headrace.memory.host import Host
from headrace.memory.layout import Layout, quantise
from headrace.memory.segment import Record
from headrace.memory.tiers import Tiers

L, PAGES = 2, 12
RECORD = Record(b"s" * 16, 0, 0, 16, 0, (), b"")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn]


def pool_of(dtype=torch.float32, pages=PAGES):
    pool = PagePool(L, pages, 2, 16, page_size=16, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    for x in (pool.k, pool.v, pool.k_scale, pool.v_scale):
        if x is not None:
            x.copy_(torch.randn(x.shape, generator=g) * 3)
    return pool


def tiers_of(pool, tmp_path=None, host=0, codec="same", near=4, **kinds):
    layout = Layout.of(pool, codec)
    disk = Disk(tmp_path, layout, 0, segment_bytes=1 << 16, **kinds) if tmp_path else None
    tiers = Tiers(layout, host_blocks=host, disk=disk)
    if near:
        tiers.attach(pool, near)
    return tiers


def put(tiers, pool, pages):
    blocks = [tiers.layout.empty() for _ in pages]
    for block, page in zip(blocks, pages, strict=True):
        tiers.layout.pack(pool, page, block)
    return tiers.put(blocks, [RECORD] * len(pages))


def bits(pool, layer, page):
    tensors = (pool.k, pool.v, pool.k_scale, pool.v_scale)
    return [x[layer, page].clone().view(torch.uint8) for x in tensors if x is not None]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["host", "disk", "disk, flushed"])
def test_every_layer_comes_back_bit_for_bit(tmp_path, dtype, where):
    pool = pool_of(dtype)
    sources = pool.take(6)
    tiers = tiers_of(pool, None if where == "host" else tmp_path, host=8 * (where == "host"))
    want = {(n, p): bits(pool, n, p) for n in range(L) for p in sources}
    numbers = put(tiers, pool, sources)
    if where == "disk, flushed":
        tiers.flush()
    for x in (pool.k, pool.v):
        x.view(torch.uint8).fill_(0xFF)
    for layer in range(L):
        asked = [numbers[i] for i in ((3, 0, 5, 1), (2, 4))[layer]]
        pages, faults = tiers.fetch(asked, layer)
        assert not faults
        for b, page in zip(asked, pages, strict=True):
            assert same(bits(pool, layer, page), want[layer, sources[b]])
    assert tiers.hits == 0
    assert tiers.moved_bytes == 6 * tiers.layout.part_bytes
    tiers.close()
    assert pool.live_pages == 6


def test_int8_is_within_half_a_step_of_every_head(tmp_path):
    pool = pool_of()
    pool.k[0, 0, 1] *= 100  # a loud head costs the others nothing
    pool.v[1, 0, 0] = 0
    (page,) = pool.take(1)
    before = pool.k[:, page].clone(), pool.v[:, page].clone()
    tiers = tiers_of(pool, tmp_path, codec="int8")
    put(tiers, pool, [page])
    for layer in range(L):
        (at,), _ = tiers.fetch([0], layer)
        for x, want in zip((pool.k, pool.v), before, strict=True):
            step = want[layer].abs().amax((1, 2), keepdim=True) / 254
            assert ((x[layer, at] - want[layer]).abs() <= step * 1.0001).all()
    assert tiers.layout.part_bytes < 0.3 * Layout.of(pool).part_bytes
    tiers.close()


@example([3.4028234663852886e38])
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_quantise_bounds_its_error_or_says_nan(numbers):
    x = torch.tensor(numbers)
    codes, scale = quantise(x)
    back = codes * scale
    if not torch.isfinite(x).all():
        assert back.isnan().all()
    else:
        most = float(x.abs().max())
        assert float((back.double() - x.double()).abs().max()) <= most / 253.9 + 2.0**-100


def test_int8_of_quantised_pages_is_refused():
    with pytest.raises(ValueError, match=r"archive\(codec\): expected 'same' .* quantised already"):
        Layout.of(pool_of(torch.int8), "int8")
    with pytest.raises(ValueError, match=r"archive\(codec\): expected same or int8, got 'zip'"):
        Layout.of(pool_of(), "zip")


def test_host_memory_keeps_the_newest_and_the_disk_has_all(tmp_path):
    pool = pool_of()
    tiers = tiers_of(pool, tmp_path, host=2)
    put(tiers, pool, [0, 1, 2, 3])
    assert [tiers.place(b).host >= 0 for b in range(4)] == [False, False, True, True]
    assert all(tiers.place(b).disk >= 0 for b in range(4))
    tiers.fetch([0, 2, 3], 0)
    assert (tiers.from_host, tiers.from_disk, tiers.forgotten) == (2, 1, 0)
    tiers.close()


def test_host_memory_alone_forgets_the_oldest():
    pool = pool_of()
    want = [bits(pool, 0, p) for p in range(3)]
    tiers = tiers_of(pool, host=2)
    put(tiers, pool, [0, 1, 2])
    pages, faults = tiers.fetch([0, 1, 2], 0)
    assert pages[0] == -1
    assert not faults
    assert tiers.forgotten == 1
    assert same(bits(pool, 0, pages[1]), want[1])
    assert same(bits(pool, 0, pages[2]), want[2])
    assert tiers.host.nbytes == 2 * tiers.layout.block_bytes


def test_slabs_are_taken_as_they_fill(monkeypatch):
    monkeypatch.setattr("headrace.memory.host.SLAB", 1)
    pool = pool_of()
    host = Host(Layout.of(pool), 3)
    assert (host.nbytes, host.take(), host.take()) == (0, 0, 1)
    assert host.nbytes == 2 * host.layout.block_bytes
    assert (host.take(), host.take()) == (2, -1)
    host.free(1)
    assert host.take() == 1


def test_what_is_near_does_not_move_again_and_the_idle_goes_first():
    pool = pool_of()
    tiers = tiers_of(pool, host=8, near=3)
    put(tiers, pool, list(range(6)))
    first = tiers.fetch([0, 1, 2], 0).pages
    moved = tiers.moved_bytes
    assert tiers.fetch([2, 0], 0).pages == [first[2], first[0]]
    assert tiers.moved_bytes == moved
    assert tiers.hits == 2
    with pytest.raises(ValueError, match=r"^recall\(pages\): expected 1 pages .*, got 0 of 3; "):
        tiers.fetch([0, 3], 0)
    assert tiers.moved_bytes == moved
    tiers.unpin([0, 1, 2], 0)  # 0 and 2 are pinned twice
    assert tiers.fetch([3], 0).pages == [first[1]]
    assert tiers.near(0) == {0: first[0], 2: first[2], 3: first[1]}
    assert tiers.near(1) == {}
    assert (
        tiers.fetch([3, 4, 5], 1).pages == tiers._near.pages
    )  # a page holds a block for each layer


def test_a_block_asked_for_twice_is_fetched_once():
    pool = pool_of()
    tiers = tiers_of(pool, host=8, near=2)
    put(tiers, pool, [0, 1])
    pages, _ = tiers.fetch([1, 1, 0], 0)
    assert pages[0] == pages[1] != pages[2]
    assert tiers.from_host == 2


def test_a_damaged_block_is_left_out_and_the_others_come(tmp_path):
    pool = pool_of()
    want = [bits(pool, 1, p) for p in range(3)]
    tiers = tiers_of(pool, tmp_path)
    put(tiers, pool, [0, 1, 2])
    tiers.flush()
    with open(tmp_path / "000000.blocks", "r+b") as file:
        file.seek(tiers.layout.block_bytes + tiers.layout.part_bytes + 5)
        file.write(b"?!")
    pages, faults = tiers.fetch([0, 1, 2], 1)
    assert pages[1] == -1
    assert [f.slot for f in faults] == [1]
    assert same(bits(pool, 1, pages[0]), want[0])
    assert same(bits(pool, 1, pages[2]), want[2])
    assert 1 not in tiers.near(1)
    assert tiers.fetch([1], 0) == ([-1], [])  # known by now
    tiers.close()


def test_prefetch_reads_ahead_what_only_the_disk_has(tmp_path):
    pool = pool_of()
    tiers = tiers_of(pool, tmp_path, host=1, queue=2)
    put(tiers, pool, [0, 1, 2, 3])
    tiers.flush()
    want = bits(pool, 0, 1)
    assert tiers.prefetch([0, 1, 2, 3], 0) == 2
    pages, _ = tiers.fetch([1, 3], 0)
    assert same(bits(pool, 0, pages[0]), want)
    assert tiers.disk.reads == 2
    assert tiers_of(pool, host=2, near=0).prefetch([], 0) == 0
    tiers.close()


def test_dropped_blocks_are_gone_everywhere(tmp_path):
    pool = pool_of()
    tiers = tiers_of(pool, tmp_path, host=2)
    put(tiers, pool, [0, 1, 2])
    tiers.fetch([1], 0)
    tiers.unpin([1], 0)
    tiers.drop([1, 0])
    assert tiers.fetch([0, 1], 0).pages == [-1, -1]
    assert put(tiers, pool, [3]) == [3]
    assert tiers.fetch([3], 0).faults == []
    tiers.close()


def test_after_a_restart_the_numbers_go_by_age(tmp_path):
    pool = pool_of()
    tiers = tiers_of(pool, tmp_path)
    put(tiers, pool, [0, 1, 2])
    tiers.drop([0])
    tiers.flush()
    put(tiers, pool, [3])  # in the slot of block 0
    tiers.close()
    want = [bits(pool, 0, p) for p in (1, 2, 3)]
    again = tiers_of(pool, tmp_path)
    assert [number for number, _ in again.adopt()] == [0, 1, 2]
    pages, _ = again.fetch([0, 1, 2], 0)
    assert all(same(bits(pool, 0, p), w) for p, w in zip(pages, want, strict=True))
    again.close()


def test_a_full_disk_takes_nothing(tmp_path, monkeypatch):
    pool = pool_of()
    tiers = tiers_of(pool, tmp_path, host=4)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("os.posix_fallocate", full)
        with pytest.raises(OSError, match=r"room for a segment of .* got No space left on device"):
            put(tiers, pool, [0])
    assert len(tiers) == 0
    assert tiers.host.nbytes == 0
    assert put(tiers, pool, [0]) == [0]
    tiers.close()


def test_no_tier_at_all_is_refused():
    with pytest.raises(ValueError, match=r"archive\(tier\): expected room in host memory or on a"):
        Tiers(Layout.of(pool_of()))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_near_pages_always_hold_what_the_table_says(data):
    pool = pool_of(pages=6)
    tiers = tiers_of(pool, host=20, near=3)
    layout = tiers.layout
    for i in range(8):
        block = layout.empty()
        block.copy_(torch.from_numpy(np.full(block.shape, i + 1, np.uint8)))
        tiers.put([block], [RECORD])
    pinned: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 15))):
        layer = data.draw(st.integers(0, L - 1))
        if pinned and data.draw(st.booleans()):
            b, n = pinned.pop(data.draw(st.integers(0, len(pinned) - 1)))
            tiers.unpin([b], n)
            continue
        asked = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True))
        held = {b for b, n in pinned if n == layer}
        if len(held | set(asked)) > 3:
            with pytest.raises(ValueError, match="pages that no stream uses"):
                tiers.fetch(asked, layer)
        else:
            tiers.fetch(asked, layer)
            pinned += [(b, layer) for b in asked]
        for n in range(L):
            assert {b for b, m in pinned if m == n} <= set(tiers.near(n))
            for b, page in tiers.near(n).items():
                assert (pool.k[n, page].view(torch.uint8) == b + 1).all()
