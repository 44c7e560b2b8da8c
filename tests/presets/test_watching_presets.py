# SPDX-License-Identifier: Apache-2.0
"""Presets that decide at every frame whether to speak."""

from __future__ import annotations

import pytest
import torch

from headrace import presets
from headrace.presets import watching
from headrace.streams import Every, HeadSum, Stream, TokenProb

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder

NAMES = ["video_llm_online", "mmduet"]


def failed(name):
    return [check.name for check in presets.get(name).check(TinyDecoder()) if not check.passed]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    checks = presets.get(name).check(TinyDecoder())
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize(
    ("name", "gate", "claim"),
    [
        ("video_llm_online", TokenProb, "everything kept: decisions that differ from the rule's"),
        ("video_llm_online", TokenProb, "bounded: decisions that differ from the rule's"),
        ("mmduet", HeadSum, "now: decisions that differ from the rule's"),
        ("mmduet", HeadSum, "running: decisions that differ from the rule's"),
    ],
)
def test_the_proof_fails_when_the_gate_is_wrong(monkeypatch, name, gate, claim):
    monkeypatch.setattr(gate, "__call__", lambda self, signal: False)
    assert claim in failed(name)


def test_the_proof_fails_when_a_reply_stays(monkeypatch):
    monkeypatch.setattr(Stream, "rollback", lambda self, mark: None)
    assert "now: forgotten replies: bits that stay" in failed("mmduet")


def test_the_proof_fails_when_queries_change_places(monkeypatch):
    plain = watching._several
    monkeypatch.setattr(watching, "_several", lambda asked: plain(asked)[::-1])
    assert failed("video_llm_online") == [
        f"{kept}: 1 if queries were answered out of their order"
        for kept in ("everything kept", "bounded")
    ]


@pytest.mark.parametrize("forget", [False, True])
def test_queries_are_answered_in_order_of_arrival(forget):
    """Those between two frames, too: each is answered before the next is read."""
    frames, several = list(torch.arange(60).split(10)), [torch.tensor([5]), torch.tensor([6, 6])]
    queries = {4: torch.tensor([9]), 1: several}
    with presets.video_llm_online(TinyDecoder(), pool_pages=32) as engine:
        never = TokenProb(0, threshold=0.0)
        stream = engine.open()
        seen = watching.watch(
            stream, frames, never, silence=0, longest=3, queries=queries, forget=forget
        )
        assert seen.fired[1]
        assert seen.fired[4]
        assert list(seen.replies) == [i for i, fired in enumerate(seen.fired) if fired]
        assert [a.frame for a in seen.answers] == [1, 1, 4]
        assert seen.replies[1] == seen.answers[0].said + seen.answers[1].said
        said = [answer.said for answer in seen.answers]
        assert all(1 <= len(x) <= 3 and 0 not in x for x in [*said, seen.replies[4]])
        first, second, last = seen.answers
        between = [] if forget else first.said
        assert seen.read[first.tick - 1 :][: 3 + len(between)] == [5, *between, 6, 6]
        assert second.tick == first.tick + len(between) + 2
        assert seen.read[last.tick - 1] == 9
        assert len(seen.read) == stream.tokens
        stream.close()


def test_what_is_forgotten_is_not_among_what_was_read():
    frames = list(torch.arange(60).split(10))
    with presets.mmduet(TinyDecoder(), pool_pages=32) as engine:
        stream = engine.open()
        seen = watching.watch(stream, frames, Every(2), silence=0, longest=4, forget=True)
        assert seen.fired == [False, True] * 3
        assert all(seen.replies.values())
        assert seen.read == list(range(60))
        assert stream.tokens == 60
