# SPDX-License-Identifier: Apache-2.0
"""A window that sends what it evicts to an archive, and what a stream recalls of it."""

import copy
from dataclasses import dataclass

import pytest
import torch

from headrace import Absolute, Archive, InCache, InMemory, OnDisk, Sink, debug, oracle, wrap
from headrace.memory.regions import Region
from headrace.memory.segment import Segment
from headrace.memory.table import Table
from headrace.streams import call

from .archived import NEAR, Seen, compare, dense, engine, tokens
from .tiny import TinyDecoder


@pytest.mark.parametrize("positions", [Absolute(), InCache()], ids=repr)
@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize("sink_logits", [False, True])
def test_recall_of_everything_is_full_attention(tmp_path, positions, tier, sink_logits):
    model = TinyDecoder(sink_logits=sink_logits)
    read, more = tokens(211), tokens(60, 1)
    with engine(
        Archive("mean", InMemory() if tier == "memory" else OnDisk(tmp_path)), positions, model
    ) as e:
        stream = e.open()
        stream.feed(read)
        assert len(stream._shelf.index) > 5
        got = stream.recall([1])
        assert got.tokens == [211 - 4 - 39] * 2  # all that the next query cannot see
        logits = stream.feed(more, logits=True).logits
    want = oracle(model, torch.cat([read, more]), Seen(211, ((4, 211 - 39),)), positions)
    compare(logits, want, 211)


def test_without_a_recall_nothing_differs_and_nothing_moves(tmp_path, monkeypatch):
    read = tokens(300)
    with engine() as plain, engine(Archive("mean", OnDisk(tmp_path))) as e:
        want = plain.open().feed(read, logits=True).logits
        stream = e.open()
        assert torch.equal(stream.feed(read, logits=True).logits, want)
        e.archive.flush()
        tiers = e.archive.tiers
        assert (tiers.moved_bytes, tiers.disk.reads, tiers.near_pages) == (0, 0, 0)
        assert e.pool.live_pages == len(stream.pages)
        first, calls = stream.fork(), []
        real = call.by_layer
        monkeypatch.setattr(call, "by_layer", lambda *a: calls.append(real(*a)) or calls[-1])
        first.feed([1])
        assert calls == [[]]


@pytest.mark.parametrize("positions", [Absolute(), InCache()], ids=repr)
def test_each_layer_sees_the_blocks_that_it_chose(positions):
    model = TinyDecoder()
    read, more = tokens(400), tokens(30, 1)
    with engine(Archive("mean"), positions, model) as e:
        stream = e.open()
        stream.feed(read)
        index = stream._shelf.index
        got = stream.recall(more, top=3)
        assert [len(blocks) for blocks in got.blocks] == [3, 3]
        assert e.archive.tiers.moved_bytes == 6 * e.archive.tiers.layout.part_bytes
        again = stream.recall(more, top=3)
        assert again.blocks == got.blocks
        assert e.archive.tiers.moved_bytes == 6 * e.archive.tiers.layout.part_bytes  # were near
        tail = (stream._shelf.end, 400 - 39)
        logits = stream.feed(more, logits=True).logits
        spans = [
            [(int(index.starts[b]), int(index.starts[b] + index.counts[b])) for b in blocks]
            for blocks in again.blocks
        ]
    assert spans[0] != spans[1]
    number = torch.arange(430)
    masks = [Seen(400, (*some, tail)).keeps(number[:, None], number) for some in spans]
    compare(logits, _by_layer_oracle(model, torch.cat([read, more]), masks, positions), 400)


def _by_layer_oracle(model, both, masks, positions):
    """The definition, as `oracle` has it, with a mask [T, T] for each layer."""
    number = torch.arange(len(both))
    double = copy.deepcopy(model).double()

    def attend(layer, q, k, v):
        seen = masks[layer]
        distance = positions.distance(number[:, None], number[None], seen)
        q, k, v = dense._heads(q, k, v)
        turn = dense._turn(distance, model.inv_freq, q.dtype)
        pairs = dense._pairs(q), dense._pairs(k).conj(), turn
        scores = torch.einsum("hti,hji,tji->htj", *pairs).real
        return (dense._softmax(scores, seen, None) @ v).transpose(0, 1)

    with torch.inference_mode():
        return double(both, attend)


def test_a_stream_opened_again_by_name_answers_from_its_archive(tmp_path):
    model, read, more = TinyDecoder(), tokens(211), tokens(20, 1)
    with engine(Archive("bounds", OnDisk(tmp_path)), model=model) as e:
        stream = e.open(archive="cam")
        stream.feed(read)
        e.open(archive="other").feed(read[:90])
        e.open().feed(read[:90])  # no name: gone with the process
        end = stream._shelf.end
        first = stream._shelf.index
        facts = first.starts.tolist(), first.counts.tolist(), first.origins.tolist()
        rows = first.rows("mean", 1).clone(), first.rows("spread", 0).clone()
    with engine(Archive("bounds", OnDisk(tmp_path)), model=model) as e:
        assert len(e.archive.tiers.disk.records) < 20
        with pytest.raises(ValueError, match=rf"^open\(position\): expected {end} or more"):
            e.open(archive="cam", position=3)
        stream = e.open(archive="cam")
        with pytest.raises(ValueError, match="expected a name that no open stream has, got 'cam'"):
            e.open(archive="cam")
        assert stream.position == end
        index = stream._shelf.index
        assert (index.starts.tolist(), index.counts.tolist(), index.origins.tolist()) == facts
        assert torch.equal(index.rows("mean", 1), rows[0])
        assert torch.equal(index.rows("spread", 0), rows[1])
        got = stream.recall(more)
        assert got.tokens == [end - 4] * 2
        with debug():  # what was recalled is older than the new sinks, and stands before them
            logits = stream.feed(more, logits=True).logits
        stream.close()
        again = e.open(archive="cam")  # closed and opened within one process
        assert again._shelf.index.starts.tolist() == facts[0]

    # What it must equal: keys as they were, a window and sinks that begin anew.
    @dataclass(frozen=True)
    class Fresh(Region):
        def keeps(self, query, key):
            old = (query < end) & NEAR.keeps(query, key)
            new = (query >= end) & (key >= 4) & (key <= query)
            return old | new

    want = oracle(model, torch.cat([read[:end], more]), Fresh(), Absolute())
    compare(logits, want, end)


def test_a_fork_shares_what_is_archived_and_both_go_on():
    with engine(Archive("mean", InMemory())) as e:
        stream = e.open()
        stream.feed(tokens(200))
        shared = len(stream._shelf.index)
        stream.recall([5], top=2)
        side = stream.fork()
        want = stream.feed([7], logits=True).logits
        assert torch.equal(side.feed([7], logits=True).logits, want)  # sees the same
        stream.feed(tokens(50))
        assert len(side._shelf.index) == shared < len(stream._shelf.index)
        blocks = stream._shelf.index.blocks.tolist()
        stream.close()
        tiers = e.archive.tiers
        assert all(not tiers.gone(b) for b in blocks[:shared])
        assert all(tiers.gone(b) for b in blocks[shared:])
        side.recall([5], top=2)
        side.close()
        assert all(tiers.gone(b) for b in blocks)
        assert e.pool.live_pages == tiers.near_pages


def test_a_rollback_takes_the_archive_back():
    with engine(Archive("mean", InMemory())) as e:
        stream = e.open()
        stream.feed(tokens(200))
        mark, before = stream.mark(), stream._shelf.index.starts.tolist()
        stream.feed(tokens(100, 1))
        stream.recall([1])
        stream.rollback(mark)
        assert stream._shelf.index.starts.tolist() == before
        assert stream._recalled is None
        stream.feed(tokens(100, 2))
        starts = stream._shelf.index.starts.tolist()
        assert starts == sorted(set(starts))
        stream.recall([1])
        got = stream.feed(tokens(9, 3), logits=True).logits
    both = torch.cat([tokens(200), tokens(100, 2), tokens(9, 3)])
    compare(got, oracle(TinyDecoder(), both, Seen(300, ((4, 261),)), Absolute()), 300)


def test_a_full_disk_fails_the_step_and_nothing_is_lost(tmp_path, monkeypatch):
    tier = OnDisk(tmp_path, segment_bytes=1)
    with engine(Archive("mean", tier)) as e:
        stream = e.open()
        stream.feed(tokens(120))
        state = stream.tokens, len(stream._shelf.index), e.pool.live_pages

        def full(*args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as m:
            m.setattr("os.posix_fallocate", full)
            with pytest.raises(OSError, match="expected room for a segment") as told:
                stream.feed(tokens(100, 1))
            assert "\n" not in str(told.value)
        assert (stream.tokens, len(stream._shelf.index), e.pool.live_pages) == state
        stream.feed(tokens(100, 1))
        stream.recall([1])
        got = stream.feed([9], logits=True).logits
    both = torch.cat([tokens(120), tokens(100, 1), torch.tensor([9])])
    compare(got, oracle(TinyDecoder(), both, Seen(220, ((4, 181),)), Absolute()), 220)


def test_a_failing_step_archives_nothing(monkeypatch):
    with engine(Archive("mean", InMemory())) as e:
        stream = e.open()
        stream.feed(tokens(200))
        before, blocks = len(stream._shelf.index), len(e.archive.tiers)
        real = Table.__dict__["window_spans"]
        count = iter(range(3))

        def breaks(self):
            if next(count, None) is None:
                raise KeyboardInterrupt
            return real(self)

        with monkeypatch.context() as m:
            m.setattr(Table, "window_spans", breaks)
            with pytest.raises(KeyboardInterrupt):
                stream.feed(tokens(200, 1))
        assert (len(stream._shelf.index), len(e.archive.tiers)) == (before, blocks)
        assert stream._shelf._staged == []


def test_damage_is_named_left_out_and_not_found_again(tmp_path):
    with engine(Archive("mean", OnDisk(tmp_path))) as e:
        stream = e.open()
        stream.feed(tokens(200))
        e.archive.flush()
        layout, total = e.archive.tiers.layout, len(stream._shelf.index)
        with open(tmp_path / "000000.blocks", "r+b") as file:
            file.seek(2 * layout.block_bytes + 3)
            file.write(b"??")
        got = stream.recall([1])
        assert [str(f) for f in got.faults] == [
            "000000.blocks, block 2: layer 0 has a wrong checksum"
        ]
        assert [len(b) for b in got.blocks] == [total - 1] * 2  # of no layer
        assert len(stream._shelf.index) == total - 1
        assert e.archive.faults == got.faults
        assert stream.recall([1]).faults == []
        assert torch.isfinite(stream.feed([1], logits=True).logits).all()


def test_the_end_of_an_archive_stays_when_its_blocks_go(tmp_path):
    with engine(Archive("mean", OnDisk(tmp_path))) as e:
        stream = e.open(archive="a")
        stream.feed(tokens(300))
        shelf, mark = stream._shelf, stream.mark()
        end = int(shelf.index.starts[-1] + shelf.index.counts[-1])
        assert shelf.end == end > 200
        shelf.drop(shelf.index.blocks[-2:].tolist())
        assert shelf.end == end  # whose tokens are gone, but were archived
        twin = stream.fork()
        assert twin._shelf.end == end
        twin._shelf.drop(twin._shelf.index.blocks.tolist())
        assert (len(twin._shelf.index), twin._shelf.end) == (0, end)
        stream.feed(tokens(60, 1))
        assert shelf.end > end
        stream.rollback(mark)
        assert shelf.end == end
        stream.close()
        again = e.open(archive="a")
        assert again._shelf.end == end - 32  # what the disk has


def test_what_cannot_be_asked_gets_one_line(tmp_path):
    with pytest.raises(
        TypeError,
        match=r"^wrap\(memory\): expected an Archive, Fold, Keep, Rest or Window behind >>",
    ):
        NEAR >> Sink(3)
    with pytest.raises(ValueError, match=r"^wrap\(memory\): expected regions >> Archive"):
        wrap(TinyDecoder(), memory=Archive())
    with pytest.raises(ValueError, match=r"^Archive\(index\): expected mean or bounds, got 'x'"):
        Archive("x")
    with pytest.raises(TypeError, match=r"^Archive\(tier\): expected InMemory"):
        Archive("mean", "disk")
    with pytest.raises(ValueError, match=r"^Archive\(pages\): expected 1 or more, got 0"):
        Archive("mean", pages=0)
    with engine() as e:
        stream = e.open()
        with pytest.raises(ValueError, match=r"^recall\(stream\): expected one with an archive"):
            stream.recall([1])
        with pytest.raises(ValueError, match=r"^open\(archive\): expected None, got 'x'; wrap"):
            e.open(archive="x")
    with engine(Archive("mean", pages=3)) as e:
        stream = e.open(history=True)
        stream.feed(tokens(300))
        got = stream.recall([1], top=3)
        with pytest.raises(ValueError, match=r"^recall\(pages\): expected \d+ pages .* 3 of 3"):
            stream.recall([1])
        assert stream._recalled is got
        assert not got._released
        with pytest.raises(ValueError, match=r"an Archive with index .bounds., got .mean"):
            stream.recall([1], mass=0.5)
        with pytest.raises(ValueError, match=r"^recall\(top\): expected None beside mass"):
            stream.recall([1], mass=0.5, top=2)
        with pytest.raises(ValueError, match=r"^recall\(mass\): expected a share from 0 to 1"):
            stream.recall([1], mass=1.5)
        with pytest.raises(ValueError, match=r"^recall\(bound\): expected proven, sampled, est"):
            stream.recall([1], mass=0.5, bound="sure")
        with pytest.raises(ValueError, match=r"^recall\(bound\): expected a mass beside it"):
            stream.recall([1], top=2, bound="sampled")
        with pytest.raises(ValueError, match=r"^recall\(question\): expected at least one token"):
            stream.recall([], top=1)
        with pytest.raises(NotImplementedError, match=r"^update\(memory\): .* without an Archive"):
            stream.update([1])
        assert repr(e.memory).startswith("Sink(tokens=4) + Window(tokens=40) >> Archive(")


@pytest.mark.parametrize("codec", ["same", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_every_pool_dtype_and_codec_recalls_nearly_full_attention(dtype, codec):
    if codec == "int8" and dtype == torch.int8:
        with pytest.raises(ValueError, match="quantised already"):
            engine(Archive("mean", InMemory(codec=codec)), dtype=dtype)
        return
    read, more = tokens(211), tokens(20, 1)
    with engine(Archive("bounds", InMemory(codec=codec)), dtype=dtype) as e:
        stream = e.open()
        stream.feed(read)
        stream.recall([1])
        got = stream.feed(more, logits=True).logits
    want = oracle(TinyDecoder(), torch.cat([read, more]), Seen(211, ((4, 172),)), Absolute())
    error = (got.double() - want[211:]).norm() / want[211:].norm()
    assert error < (2e-6 if (dtype, codec) == (torch.float32, "same") else 0.06), float(error)


def test_segments_are_closed_with_the_engine(tmp_path, monkeypatch):
    closed = []
    real = Segment.close
    monkeypatch.setattr(Segment, "close", lambda self: (closed.append(1), real(self)))
    e = engine(Archive("mean", OnDisk(tmp_path)))
    e.open().feed(tokens(200))
    e.close()
    e.close()
    assert closed == [1]
