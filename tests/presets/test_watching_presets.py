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


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    checks = presets.get(name).check(TinyDecoder())
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize(
    ("name", "gate"), [("video_llm_online", TokenProb), ("mmduet", HeadSum)], ids=str
)
def test_the_proof_fails_when_the_gate_is_wrong(monkeypatch, name, gate):
    monkeypatch.setattr(gate, "__call__", lambda self, signal: False)
    assert not all(check.passed for check in presets.get(name).check(TinyDecoder()))


def test_the_proof_fails_when_a_reply_stays(monkeypatch):
    monkeypatch.setattr(Stream, "rollback", lambda self, mark: None)
    assert not all(check.passed for check in presets.get("mmduet").check(TinyDecoder()))


def test_queries_are_answered_in_order_of_arrival():
    frames = list(torch.arange(60).split(10))
    queries = {4: torch.tensor([9]), 1: torch.tensor([7, 8])}
    with presets.video_llm_online(TinyDecoder(), pool_pages=32) as engine:
        never = TokenProb(0, threshold=0.0)
        stream = engine.open()
        seen = watching.watch(stream, frames, never, silence=0, longest=3, queries=queries)
        assert seen.fired[1]
        assert seen.fired[4]
        assert list(seen.replies) == [i for i, fired in enumerate(seen.fired) if fired]
        assert all(1 <= len(said) <= 3 and 0 not in said for said in seen.replies.values())
        assert len(seen.read) == stream.tokens


def test_what_is_forgotten_is_not_among_what_was_read():
    frames = list(torch.arange(60).split(10))
    with presets.mmduet(TinyDecoder(), pool_pages=32) as engine:
        stream = engine.open()
        seen = watching.watch(stream, frames, Every(2), silence=0, longest=4, forget=True)
        assert seen.fired == [False, True] * 3
        assert all(seen.replies.values())
        assert seen.read == list(range(60))
        assert stream.tokens == 60
