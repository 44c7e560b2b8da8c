# SPDX-License-Identifier: Apache-2.0
"""Presets in which reading, thinking, deciding and speaking overlap: each proof passes, and fails
where the implementation is wrong.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import presets
from headrace.memory import view
from headrace.streams import Engine, Lanes, Stream
from headrace.streams.adapting import Sites
from headrace.streams.reading import Reading

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder

LANES = ["ada_sr", "salmonn_omni", "stream_uni", "think_while_watching"]
NAMES = [*LANES, "audio_interaction", "dispider", "mint"]


def module(name):
    return importlib.import_module(f"headrace.presets.{name}")


def failed(name):
    return [check.name for check in presets.get(name).check(TinyDecoder()) if not check.passed]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    checks = presets.get(name).check(TinyDecoder())
    assert all(check.passed for check in checks), checks
    assert all(check.figure > 0 for check in checks if "forward|" in check.name)


@pytest.mark.parametrize("name", LANES)
def test_the_proof_fails_when_a_lane_forgets_the_other(monkeypatch, name):
    plain = view.across
    monkeypatch.setattr(view, "across", lambda tables: plain(tables)[1:])
    assert any(claim.endswith("all lanes: max |logit - masked forward|") for claim in failed(name))


def test_a_writer_that_does_not_look_sees_what_the_sequential_run_did_not(monkeypatch):
    monkeypatch.setattr(Lanes, "look", lambda self, name: None)
    assert "overlapped: logits that differ from the sequential run's" in failed(
        "think_while_watching"
    )


def test_a_copy_of_the_source_is_counted(monkeypatch):
    look = Lanes.look

    def clone(self, name):  # as a released loop does
        look(self, name)
        self.engine.pool.written_bytes += self["source"].alive * self.engine.pool.row_bytes

    monkeypatch.setattr(Lanes, "look", clone)
    assert failed("think_while_watching") == ["overlapped: bytes of keys and values copied"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda of: {**of, "stay": of["shift"], "shift": of["stay"]}, "states that differ"),
        (lambda of: {**of, "interrupts": ()}, "told to stop: ticks until silence"),
    ],
)
def test_a_wrong_state_or_a_deaf_one_is_noticed(monkeypatch, wrong, says):
    made = module("salmonn_omni")
    talk = made.talk
    monkeypatch.setattr(made, "talk", lambda s, blocks, **of: talk(s, blocks, **wrong(of)))
    assert any(says in name for name in failed("salmonn_omni"))


def test_lanes_of_a_talk_advance_on_one_clock():
    made = module("salmonn_omni")
    with presets.salmonn_omni(TinyDecoder(), pool_pages=64) as engine:
        stream = engine.open_lanes()
        blocks = list(torch.arange(80).split(4))
        talk = made.talk(stream, blocks, stay=1, shift=2, begin=3, blank=4)
        assert stream["think"].tokens == len(blocks)
        assert stream["audio"].tokens == 5 * len(blocks)
        assert stream["speak"].tokens == sum(talk.spoke)
        assert all({"audio", "think"} <= set(step) for step in talk.steps)


def test_an_answerer_that_takes_its_time_holds_the_watcher_up(monkeypatch):
    made = module("dispider")
    run = made._Answerer.run
    monkeypatch.setattr(made._Answerer, "run", lambda self, until: run(self, float("inf")))
    assert "seconds by which a frame's tick differs from without answers" in failed("dispider")


def test_an_answerer_that_is_never_let_in_answers_after_the_last_frame(monkeypatch):
    made = module("dispider")
    run = made._Answerer.run
    monkeypatch.setattr(
        made._Answerer, "run", lambda self, until: run(self, until) if until > 1e9 else None
    )
    assert failed("dispider") == []  # late, but right
    with presets.dispider(TinyDecoder(), pool_pages=64) as pair:
        frames = list(torch.arange(120).split(6))
        options = {"every": 0.1, "later": 1, "now": 2, "longest": 3, "clip": 2}
        late = made.attend(pair, frames, [7], **options)
        assert all(one.done > 19 * 0.1 for one in late.answers)


def test_a_small_model_watches_and_a_large_one_answers():
    made, small, large = module("dispider"), TinyDecoder(layers=1), TinyDecoder(layers=4, seed=1)
    frames = list(torch.arange(120).split(6))
    options = {"every": 0.2, "later": 1, "now": 2, "longest": 4, "clip": 2}
    with presets.dispider(small, answerer=large, pool_pages=64) as pair:
        one = made.attend(pair, frames, [7], **options)
        with pair.answerer.open() as alone:
            want = [list(alone.generate(x.prompt, max_new=4)) for x in one.answers[:1]]
    with presets.dispider(small, pool_pages=64) as pair:
        other = made.attend(pair, frames, [7], **options)
    assert one.fired == other.fired
    assert (one.work, one.seconds) == (other.work, other.seconds)
    assert [x.said for x in one.answers] != [x.said for x in other.answers]
    assert [x.said for x in one.answers[:1]] == want


def test_deciding_twice_is_counted(monkeypatch):
    feed = Stream.feed

    def twice(self, tokens, **of):
        mark = self.mark()
        feed(self, tokens, **of)
        self.rollback(mark)
        return feed(self, tokens, **of)

    monkeypatch.setattr(Stream, "feed", twice)
    assert "bounded: tokens of work to decide, per chunk" in failed("audio_interaction")


def test_the_other_decision_is_noticed(monkeypatch):
    made = module("audio_interaction")
    interact = made.interact

    def swapped(stream, chunks, *, silence, respond, **of):
        return interact(stream, chunks, silence=respond, respond=silence, **of)

    monkeypatch.setattr(made, "interact", swapped)
    assert any("decisions" in name for name in failed("audio_interaction"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda cap, stop: (cap + 1, stop), "tokens beyond a budget"),
        (lambda cap, stop: (cap, 2.0), "stops and tokens that differ from the rule's"),
    ],
)
def test_a_budget_or_a_stop_that_is_not_kept_is_noticed(monkeypatch, wrong, says):
    made = module("ada_sr")
    think = made._think

    def other(stream, steps, begin, end, cap, stop):
        return think(stream, steps, begin, end, *wrong(cap, stop))

    monkeypatch.setattr(made, "_think", other)
    assert says in failed("ada_sr")


def test_a_skipped_thought_costs_the_token_that_opens_it():
    made = module("ada_sr")
    with presets.ada_sr(TinyDecoder(), pool_pages=32) as engine:
        stream = engine.open_lanes()
        parts = list(torch.arange(20).split(5))
        options = {"begin": 1, "end": 2, "budget": 4, "total": 9, "final": 3}
        run = made.reason(stream, parts, stop=0.0, **options)
        assert run.thoughts == [[]] * 5
        assert stream["thoughts"].tokens == 5


texts = st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=7)


@given(texts, st.integers(1, 9))
def test_a_segment_ends_where_the_published_rule_says(queue, longest):
    made = module("stream_uni")
    how = made.Manner(ask=0, sep=0, end=0, space=0, marks=(1, 2), longest=float(longest), queue=5)
    got = made.ended(queue[-5:], float(len(queue)), how.marks, how.longest)
    assert got == made._by_text(queue, how)


def test_a_segment_ends_where_the_next_sentence_was_first_heard():
    made = module("stream_uni")
    ended = [list(map(ord, text)) for text in ("we", "we go", "we go. th", "we go. then")]
    assert made.ended(ended, 4.0, tuple(map(ord, ".?"))) == 2
    assert made.ended(ended[:2], 2.0, (46,)) is None
    assert made.ended([ended[0]] * 3, 3.0, (46,)) == 2  # silence
    assert made.ended([*ended[:2], ended[0]], 31.0, (46,)) == 0  # too long
    assert made.ended([*ended[:2], [*ended[1], 46]], 3.0, (46,)) is None  # nothing behind it


@pytest.mark.parametrize("wrong", [lambda *_: None, lambda *_: 0])
def test_a_segment_that_ends_elsewhere_is_noticed(monkeypatch, wrong):
    monkeypatch.setattr(module("stream_uni"), "ended", wrong)
    assert "segments that end elsewhere than the rule says" in failed("stream_uni")


def test_words_are_counted_as_text_counts_them():
    made = module("stream_uni")
    for text in ("", " ", "a", " a", "a b", "a  bc ", "a b c"):
        assert made.words(text.encode(), 32) == len(text.split())
    assert bytes(made._first(list(b" ab  cd e"), 2, 32)) == b"ab  cd"


def test_an_adapter_of_another_is_noticed(monkeypatch):
    call = Sites.call
    monkeypatch.setattr(
        Sites, "call", lambda self, adapters, *rest: call(self, adapters[:1] * len(adapters), *rest)
    )
    assert any("|logit - " in name for name in failed("mint"))


def test_a_revision_that_is_not_pinned_is_noticed(monkeypatch):
    opened, begin = Engine.open, Reading.__init__
    names = {}

    def remember(self, *, adapter=None, **of):
        stream = opened(self, adapter=adapter, **of)
        names[stream] = adapter
        return stream

    def newest(self, stream, *rest):
        begin(self, stream, *rest)
        name = names.get(stream)
        self.adapter = None if name is None else stream.engine.adapters.find(name)

    monkeypatch.setattr(Engine, "open", remember)
    monkeypatch.setattr(Reading, "__init__", newest)
    assert "after its name moved on: logits of an open stream that differ" in failed("mint")
