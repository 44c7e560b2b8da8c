# SPDX-License-Identifier: Apache-2.0
"""Streams whose text changes equal streams that read the new text from the start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Absolute, InCache, Sink, Window, oracle, wrap
from headrace.memory import Parked, cut
from headrace.streams.history import History

from .tiny import TinyDecoder, gap, tokens

MODEL = TinyDecoder()
DENSE = Window(None)
BOUNDED = Sink(4) + Window(40)


def engine(memory=DENSE, **options):
    options = {"pool_pages": 40, "page_size": 16, **options}
    return wrap(MODEL, memory=memory, **options)


def changed(text, at):
    """The text with another token at `at`."""
    new = text.clone()
    new[at] = (new[at] + 1) % 256
    return new


def solo(text, memory=DENSE, **options):
    with engine(memory, **options) as e:
        return e.open().feed(text, logits=True).logits


@pytest.mark.parametrize("at", [0, 1, 15, 16, 17, 40, 98, 99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_it_keeps_exactly_the_longest_common_prefix(at, dtype):
    text = tokens(100)
    new = torch.cat([changed(text, at), tokens(7, seed=1)])
    with engine(dtype=dtype) as e:
        stream = e.open(history=True)
        stream.feed(text)
        report = stream.update(new, logits=True)
        assert (report.kept, report.reread) == (at, min(at, 1))
        assert report.tokens == len(new) - at + min(at, 1)
        assert stream.tokens == len(new)
        assert gap(report.logits, solo(new, dtype=dtype)[-report.tokens :]) < 1e-5
        assert len(stream.pages) == e.pool.live_pages == 7  # no page is left half full on the way


def test_an_appended_text_is_only_fed():
    text = tokens(60)
    with engine() as e:
        stream = e.open(history=True)
        assert stream.update(text[:30]).tokens == 30
        report = stream.update(text, logits=True)
        assert (report.kept, report.reread, report.tokens) == (30, 0, 30)
        assert not report.nll.isnan().any()
        assert gap(report.logits, solo(text)[30:]) == 0
        assert stream.update(text).tokens == 0


def test_a_shortened_text_still_predicts_what_follows():
    text = tokens(60)
    with engine() as e:
        stream = e.open(history=True)
        stream.feed(text)
        report = stream.update(text[:33])
        assert (report.kept, report.reread, report.tokens) == (33, 1, 1)
        with e.open() as fresh:
            assert stream.say(max_new=5) == fresh.say(text[:33], max_new=5)
        assert stream.update([]).kept == 0
        assert (stream.tokens, stream.pages) == (0, [])


@pytest.mark.parametrize("positions", [InCache(), Absolute()])
@pytest.mark.parametrize("at", [2, 4, 5, 30, 187, 188, 199])
def test_what_left_the_window_is_read_again_from_the_sinks(at, positions):
    text = tokens(200)
    new = changed(text, at)
    with engine(BOUNDED, positions=positions) as e:
        stream = e.open(history=True)
        stream.feed(text)
        report = stream.update(new, logits=True)
        assert report.kept == at
        # four pages, from token 148 on; a change at 188 needs 187 - 39 = 148 and later
        held = at <= 5 or at >= 188
        assert report.reread == (1 if held else at - 4)
        want = oracle(MODEL, new, BOUNDED, positions)
        assert gap(report.logits, want[-report.tokens :]) < 1e-4


def test_or_refused():
    text = tokens(200)
    with engine(BOUNDED) as e:
        stream = e.open(history=True)
        stream.feed(text)
        before = stream._lease, stream._ahead
        told = "expected a change of what the window still holds, got one after 80 of 200 tokens"
        with pytest.raises(ValueError, match=told + "; recompute=True would read 76 again"):
            stream.update(changed(text, 80), recompute=False)
        assert (stream._lease, stream._ahead) == before
        assert stream.update(changed(text, 190), recompute=False).reread == 1


def test_a_mark_within_the_kept_prefix_saves_reading():
    text = tokens(200)
    with engine(BOUNDED) as e:
        stream = e.open(history=True)
        marks = []
        for part in text.split(25):
            stream.feed(part)
            marks.append(stream.mark())
        for mark in marks[3:7]:
            mark.release()
        report = stream.update(changed(text, 80), logits=True)
        assert (report.kept, report.reread) == (80, 5)
        assert not report.nll.isnan().any()  # a mark knows what followed
        want = oracle(MODEL, changed(text, 80), BOUNDED, InCache())
        assert gap(report.logits, want[75:]) < 1e-4
        stream.rollback(marks[-1])
        assert stream.update(text).tokens == 0


def test_forks_and_marks_keep_what_they_had():
    text = tokens(50)
    with engine() as e:
        stream = e.open(history=True)
        stream.feed(text)
        other, mark = stream.fork(), stream.mark()
        stream.update(changed(text, 40))
        assert gap(other.feed([1, 2], logits=True).logits, solo([*text, 1, 2])[-2:]) < 1e-5
        stream.rollback(mark)
        assert gap(stream.feed([3], logits=True).logits, solo([*text, 3])[-1:]) < 1e-5
        assert other.update([*text, 1, 2]).tokens == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [40, 17, 0])
def test_after_an_error_the_stream_is_what_it_was(monkeypatch, at, error):
    text = tokens(60)
    with engine(chunk=8) as e:
        stream = e.open(history=True)
        stream.feed(text)
        pages, filled = stream.pages, list(e.pool.filled)
        plain, calls = e.model.forward, []

        def fails(*args, **kwargs):
            out = plain(*args, **kwargs)
            calls.append(1)
            if len(calls) == 2:
                raise error
            return out

        monkeypatch.setattr(e.model, "forward", fails)
        with pytest.raises(error):
            stream.update(torch.cat([changed(text, at), tokens(60, seed=3)]))
        monkeypatch.undo()
        assert (stream.pages, e.pool.filled, stream.tokens) == (pages, filled, 60)
        assert e.pool.live_pages == len(pages)
        got = stream.feed([5, 6], logits=True)
        assert gap(got.logits, solo([*text, 5, 6])[-2:]) == 0
        assert stream.update([*text, 5, 6, 7]).kept == 62


def test_it_needs_the_text():
    stream = engine().open()
    stream.feed(tokens(5))
    told = r"^update\(stream\): expected one that remembers its text, got one that does not; open "
    with pytest.raises(ValueError, match=told):
        stream.update(tokens(5))
    stream.close()
    with pytest.raises(ValueError, match=r"^update\(stream\): expected an open stream"):
        stream.update(tokens(5))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_run_of_updates(data):
    memory = data.draw(st.sampled_from([DENSE, BOUNDED, Window(9), Sink(20) + Window(1)]))
    with engine(memory) as e:
        stream, text = e.open(history=True), tokens(0)
        for step in range(4):
            kept = data.draw(st.integers(0, len(text)))
            text = torch.cat([text[:kept], tokens(data.draw(st.integers(0, 60)), seed=step)])
            report = stream.update(text, logits=True)
            if report.tokens:
                want = oracle(MODEL, text, memory, InCache())[-report.tokens :]
                assert gap(report.logits, want) < 1e-4
        assert e.pool.live_pages == len(stream.pages)


def test_a_cut_table_is_refused_when_its_window_is_gone():
    with engine(Window(8)) as e:
        stream = e.open()
        stream.feed(tokens(100))
        table = stream._lease.table
        assert cut(table, 40) is None
        assert cut(table, 100) is table
        assert cut(table, 0).page_ids == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_parked_pages_come_back_bit_for_bit(dtype):
    text = tokens(90)
    with engine(BOUNDED, dtype=dtype) as e:
        stream, other = e.open(), e.open()
        stream.feed(text)
        child = stream.fork()
        stream.feed(text[:50])
        child_pages, shared = set(child.pages), set(child.pages) & set(stream.pages)
        parked = Parked(e.pool, stream._lease)
        assert parked.pages == 3
        assert shared
        assert parked.nbytes == parked.pages * e.pool.page_bytes
        assert e.pool.live_pages == len(child_pages)
        other.feed(tokens(40, seed=2))  # takes the pages
        e.pool.k[:, e.pool._free], e.pool.v[:, e.pool._free] = 77, 77
        stream._lease = parked.restore()
        got = stream.feed(text, logits=True).logits
        child.close()
        other.close()
        assert e.pool.live_pages == len(stream.pages)
        stream.close()
        assert e.pool.live_pages == 0
    with engine(BOUNDED, dtype=dtype) as e:
        stream = e.open()
        for part in (text, text[:50]):
            stream.feed(part)
        assert torch.equal(got, stream.feed(text, logits=True).logits)


def test_histories_share_until_they_part():
    one = History([1, 2, 3])
    two, three = one.extend([4, 5]), one.extend([6])
    assert [x.tokens() for x in (one, two, three)] == [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 6]]
    assert two._buffer is one._buffer
    assert two.cut(2).extend([9]).tokens() == [1, 2, 9]
    assert two.tokens(1, 3) == [2, 3]
    assert [two.common(x) for x in ([], [1, 2, 7], [1, 2, 3, 4, 5, 6], [2])] == [0, 2, 5, 0]
    assert len(two.cut(9)) == 5
