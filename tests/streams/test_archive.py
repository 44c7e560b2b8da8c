# SPDX-License-Identifier: Apache-2.0
"""A window that sends what it evicts to an archive, and what a stream recalls of it."""

import copy
import importlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace import Absolute, Archive, InCache, InMemory, OnDisk, Sink, Window, oracle, wrap
from headrace.memory import Parked
from headrace.memory.recall import bounds, turned
from headrace.memory.regions import Region
from headrace.memory.sampled import block_masses, by_sample, sampled
from headrace.memory.segment import Segment
from headrace.memory.table import Table
from headrace.streams import call
from headrace.streams.recalling import ask
from headrace.streams.snapshot import snapshot

from .tiny import TinyDecoder

dense = importlib.import_module("headrace.streams.oracle")
NEAR = Sink(4) + Window(40)


def tokens(n, seed=0):
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed))


def engine(archive=None, positions=None, model=None, **kinds):
    memory = NEAR if archive is None else NEAR >> archive
    model = TinyDecoder() if model is None else model
    kinds = {"page_size": 16, "chunk": 32} | kinds
    return wrap(model, memory=memory, positions=positions or Absolute(), **kinds)


@dataclass(frozen=True)
class Seen(Region):
    """NEAR, and from token `since` on also the tokens `spans` (all of them before it)."""

    since: int
    spans: tuple[tuple[int, int], ...]

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        again = torch.zeros_like(query + key, dtype=torch.bool)
        for first, stop in self.spans:
            again |= (key >= first) & (key < stop)
        return NEAR.keeps(query, key) | (again & (query >= self.since))


def compare(got, want, since):
    error = (got.double() - want[since:]).abs().max()
    assert error < 2e-4, float(error)


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


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("bound", ["proven", "sampled", "estimate"])
def test_recall_by_mass_captures_what_it_says(p, bound):
    """The share that every query and head really captures, from all keys of the stream."""
    with engine(Archive("bounds", InMemory(), pages=64)) as e:
        stream = e.open()
        stream.feed(tokens(600))
        question = tokens(5, 3)
        asked = ask(stream, question)
        got = stream.recall(question, mass=p, bound=bound)
        index = stream._shelf.index
        for layer in range(2):
            total = [asked[layer].lse.double()]
            missing = []
            for i, b in enumerate(index.blocks.tolist()):
                tiers = e.archive.tiers
                part = tiers.host[tiers.place(b).host][layer]
                k = tiers.layout.split(part)["k"].mT[:, : int(index.counts[i])].double()
                steps = asked[layer].at + torch.arange(5) - int(index.origins[i])
                q = turned(asked[layer].q.double(), steps, e._inv_freq)
                k = k.repeat_interleave(q.shape[1] // k.shape[0], 0)
                lse = (torch.einsum("whd,hpd->whp", q, k) / 4).logsumexp(-1)
                total.append(lse)
                if b not in got.blocks[layer]:
                    missing.append(lse)
            total = torch.stack(total).logsumexp(0)
            lost = float((torch.stack(missing).logsumexp(0) - total).exp().max()) if missing else 0
            assert lost <= got.missed[layer] + 1e-9
            if bound != "estimate":
                assert 1 - lost >= p - 1e-9
                assert got.missed[layer] <= 1 - p + 1e-9


def test_what_was_sampled_is_seen_reported_shared_and_forgotten():
    """Each layer sees what it chose, in forks and after its pages were out of the pool too."""
    model, read, more = TinyDecoder(), tokens(900), tokens(20, 1)
    for weight in model.q:  # less loud: no page has all the attention
        weight.data.mul_(0.3)
    with engine(Archive("bounds", pages=64), model=model) as e:
        stream = e.open()
        stream.feed(read)
        mark = stream.mark()
        got = stream.recall(more[:3], mass=0.3, bound="sampled")
        assert len(got.told) == 2
        assert got.sure == [0.95] * 2
        assert all(t.missed <= 0.7 and 0 < t.unlike < 0.1 and t.captured > 0.3 for t in got.told)
        assert [len(b) for b in got.blocks] == [32, 32]  # of 52
        again = stream.recall(more[:3], mass=0.3, bound="sampled")
        assert (again.blocks, again.told) == (got.blocks, got.told)
        wide = stream.recall(more[:3], mass=0.3)
        assert wide.sure == [1, 1]
        assert min(map(len, wide.blocks)) > 32
        stream.recall(more[:3], mass=0.3, bound="sampled")
        twin = stream.fork()
        assert twin._recalled.told == got.told
        parked = Parked(e.pool, stream._lease)
        stream._lease = parked.restore()
        want = twin.feed(more, logits=True).logits
        assert torch.equal(stream.feed(more, logits=True).logits, want)
        both = torch.cat([read, more])
        everything = oracle(model, both, Seen(900, ((4, 900 - 39),)), Absolute())[900:]
        assert (want - everything).abs().max() > 1e-3  # something is missing
        twin.close()
        stream.rollback(mark)
        assert stream._recalled is None
        with pytest.raises(
            NotImplementedError, match=r"^snapshot\(stream\): .* without an Archive"
        ):
            snapshot(stream, "nowhere")


def test_a_sample_needs_near_pages_to_look(monkeypatch):
    with engine(Archive("bounds", pages=16)) as e:
        stream = e.open()
        stream.feed(tokens(900))
        got = stream.recall([1], top=4)
        with pytest.raises(
            ValueError, match=r"^recall\(pages\): expected more than 14 pages .* 16 of 16"
        ):
            stream.recall([1], mass=0.9, bound="sampled")
        assert stream._recalled is got  # as it was
        few = stream.recall([1], mass=0.02, bound="sampled")
        assert all(len(blocks) <= 14 for blocks in few.blocks)
        stream.recall([1], top=16)
        with pytest.raises(ValueError, match=r"^recall\(pages\): .* that no stream"):
            stream.recall([1], mass=0.5, bound="sampled")


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


@pytest.mark.parametrize("positions", [Absolute(), InCache()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_a_sample_tells_what_is_missed(positions, dtype):
    with engine(Archive("bounds", pages=64), positions, dtype=dtype) as e:
        stream = e.open()
        stream.feed(tokens(900))
        question = tokens(3, 3)
        asked, shelf = ask(stream, question), stream._shelf
        reach = e.plan.reach if isinstance(positions, InCache) else None
        all_rows = np.arange(len(shelf.index))
        for layer in range(2):
            args = shelf, layer, asked[layer]
            m = bounds(*args, reach, e._inv_freq)
            pages, _ = e.archive.near().fetch(shelf.index.blocks.tolist(), layer)
            true = block_masses(*args, all_rows, pages, reach, e._inv_freq)
            assert (m.low <= true + 1e-3).all()
            assert (true <= m.high + 1e-3).all()
            for n, p in enumerate(pages[:3]):  # by its definition, key after key
                k = e.pool.k[layer, p].float().mT
                k = k if e.pool.k_scale is None else k * e.pool.k_scale[layer, p][..., None]
                shift = int(shelf.index.origins[n])
                if reach is not None:
                    shift = reach - 1 + int(shelf.index.starts[n] + shelf.index.counts[n]) - shift
                steps = asked[layer].at + torch.arange(3) - shift
                steps = steps if reach is None else torch.full((3,), shift)
                q = turned(asked[layer].q.double(), steps, e._inv_freq)
                k = k[:, : int(shelf.index.counts[n])].double()
                k = k.repeat_interleave(q.shape[1] // k.shape[0], 0)
                want = (torch.einsum("whd,hpd->whp", q, k) / 4).logsumexp(-1).flatten()
                torch.testing.assert_close(true[:, n], want, rtol=1e-4, atol=1e-4)
            e.archive.near().unpin(shelf.index.blocks.tolist(), layer)
            chosen = all_rows[::3]
            rest = np.setdiff1d(all_rows, chosen)
            near = asked[layer].lse.reshape(-1, 1).double()
            seen = torch.cat([near, true[:, chosen]], 1).logsumexp(1)
            lost = float(torch.sigmoid(true[:, rest].logsumexp(1) - seen).max())
            rough = sampled(*args, m, chosen, reach, e._inv_freq, draws=200)
            assert lost <= rough.at_most
            fine = sampled(*args, m, chosen, reach, e._inv_freq, draws=4000)
            assert abs(fine.missed - lost) < 0.02
            assert fine.at_most - fine.missed < rough.at_most - rough.missed
            assert sampled(*args, m, all_rows, reach, e._inv_freq).at_most == 0
            for p in (0.3, 0.8):
                rows, told = by_sample(*args, p, 999, reach, e._inv_freq, draws=400)
                left = torch.from_numpy(np.setdiff1d(all_rows, rows))
                mass = torch.logaddexp(torch.tensor(-torch.inf), true[:, left].logsumexp(1))
                seen = torch.cat([near, true[:, rows]], 1).logsumexp(1)
                lost = float(torch.sigmoid(mass - seen).max())
                assert lost <= told.at_most + 1e-9 <= 1 - p + 1e-9
                n = len(all_rows)  # a few draws, of blocks that are taken at last
                _, told = by_sample(*args, 1 - 1e-9, n - 2, reach, e._inv_freq, draws=4)
                assert told.at_most > 0
                few, told = by_sample(*args, p, 5, reach, e._inv_freq, draws=400)
                assert len(few) == 5
                assert told.at_most > 1 - p
                whole = torch.logaddexp(near[:, 0], m.low.double().logsumexp(1))[:, None]
                by_peak, by_mean = (
                    (x - whole).amax(0).argsort(descending=True).tolist() for x in (m.peak, m.low)
                )
                first = [b for pair in zip(by_peak, by_mean, strict=True) for b in pair]
                assert set(few) == set(list(dict.fromkeys(first))[:5])
