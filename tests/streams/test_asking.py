# SPDX-License-Identifier: Apache-2.0
"""Reading while every layer chooses from the archive, and questions beside a stream."""

import numpy as np
import pytest
import torch

from headrace import Absolute, Archive, InCache, Sink, Window, wrap
from headrace.memory import Picked, by_mass
from headrace.streams.asking import aside, let_go, read, seal, sinks

from .tiny import TinyDecoder, tokens


def engine(positions=None, archive=True, sinks=0):
    near = Sink(sinks) + Window(40) if sinks else Window(40)
    memory = near >> Archive("bounds", pages=64) if archive else near
    return wrap(TinyDecoder(), memory=memory, positions=positions or Absolute(), page_size=16)


def everything(shelf, layer, asked):
    return np.arange(len(shelf.index))


def test_to_choose_everything_is_to_recall_it():
    logits = []
    for way in ("read", "recall"):
        with engine() as e:
            stream = e.open()
            stream.feed(tokens(300))
            if way == "read":
                made = [read(stream, tokens(9, 1), everything, logits=True).logits]
            else:
                stream.recall(tokens(9, 1))
                made = [stream.feed(tokens(9, 1), logits=True).logits]
            made.append(stream.feed(tokens(5, 2), logits=True).logits)  # it stays in sight
            logits.append(torch.cat(made))
    assert torch.equal(*logits)


def test_to_choose_single_tokens():
    with engine() as e:
        stream = e.open()
        stream.feed(tokens(300))
        leaving = 300 - 39 - stream._shelf.end  # not archived yet, and seen as well
        read(stream, tokens(9, 1), lambda *a: Picked(np.arange(3), np.array([3, 4, 5, 16, 40])))
        rows = stream._recalled.rows[0]
        assert [row[5] for row in rows[:3]] == [3, 16, 40]
        assert [row[2] for row in rows[:3]] == [3, 1, 1]
        assert stream._recalled.tokens == [5 + leaving] * 2


def test_by_mass_while_it_reads():
    with engine() as e:
        stream = e.open()
        stream.feed(tokens(300))

        def most(shelf, layer, asked):
            assert (asked.lse == -torch.inf).all()
            return by_mass(shelf, layer, asked, 0.9, "proven", None, e._inv_freq)[0]

        read(stream, tokens(9, 1), most)
        assert all(stream._recalled.blocks)


def test_a_failing_choice_leaves_everything_as_it_was():
    with engine() as e:
        stream = e.open()
        stream.feed(tokens(300))
        before = read(stream.fork(), tokens(9, 1), everything, logits=True).logits
        held, at = e.pool.live_pages, stream.position

        def fails(shelf, layer, asked):
            if layer:
                raise KeyboardInterrupt
            return everything(shelf, layer, asked)

        with pytest.raises(KeyboardInterrupt):
            read(stream, tokens(9, 1), fails)
        assert (e.pool.live_pages, stream.position, e._seen) == (held, at, None)
        after = read(stream, tokens(9, 1), everything, logits=True).logits
        assert torch.allclose(after, before, atol=1e-5)  # its page is another


def test_beside_a_stream_nothing_is_seen_but_what_is_chosen():
    with engine(InCache(), sinks=4) as e:
        stream = e.open()
        stream.feed(tokens(300))
        blocks, pages = len(stream._shelf.index), e.pool.live_pages
        side = aside(stream)
        assert side.position == 300
        assert side._shelf.end == 300  # what the window held is there, too
        got = read(side, tokens(5, 1), lambda *a: np.empty(0, np.int64), logits=True).logits
        alone = e.open().feed(tokens(5, 1), logits=True).logits
        assert torch.allclose(got, alone, atol=1e-5)
        side.close()
        side = aside(stream)
        first = sinks(stream)
        read(side, tokens(5, 1), lambda *a: np.array([2]), tail=first, in_a_row=True)
        rows = side._recalled.rows[0]
        assert [row[2] for row in rows] == [4, 16]
        assert sum(row[2] for row in rows) == 20
        side.close()
        assert len(stream._shelf.index) == blocks
        assert e.pool.live_pages - e.archive.tiers.near_pages <= pages + 2


def test_a_sealed_page_is_not_gone_on_with():
    with engine() as e:
        stream = e.open()
        for n in (9, 16, 3):
            stream.feed(tokens(n))
            seal(stream)
        assert [page.start for page in stream.table.window] == [0, 9, 25]
        let_go(stream)
        assert (stream.pages, e.pool.live_pages, stream.position) == ([], 0, 28)
        assert torch.isfinite(stream.feed(tokens(4), logits=True).logits).all()


def test_what_cannot_be_asked_gets_one_line():
    with (
        engine(archive=False) as e,
        pytest.raises(ValueError, match=r"^read\(stream\): expected one with an archive, got none"),
    ):
        read(e.open(), [1], everything)
    with (
        engine(InCache(), sinks=4) as e,
        pytest.raises(NotImplementedError, match=r"^read\(stream\): expected one of Absolute pos"),
    ):
        read(e.open(), [1], everything)
