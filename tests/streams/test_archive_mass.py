# SPDX-License-Identifier: Apache-2.0
"""Recall by mass: what is captured, and what a bound or a sample says of the rest."""

import numpy as np
import pytest
import torch

from headrace import Absolute, Archive, InCache, InMemory, oracle
from headrace.memory import Parked
from headrace.memory.recall import bounds, turned
from headrace.memory.sampled import block_masses, by_sample, sampled
from headrace.streams.recalling import ask
from headrace.streams.snapshot import snapshot

from .archived import Seen, engine, tokens
from .tiny import TinyDecoder


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
