# SPDX-License-Identifier: Apache-2.0
"""Presets of several lanes: each proof passes, and fails when a lane reads what it must not."""

from __future__ import annotations

import sys

import pytest
import torch

from headrace import presets
from headrace.memory import view
from headrace.presets.streaming_thinker import think, units, waiting

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder

LANES = ["gpe", "multi_stream", "speak_while_watching", "streaming_thinker", "tays"]


def failed(name):
    return [check.name for check in presets.get(name).check(TinyDecoder()) if not check.passed]


@pytest.mark.parametrize("name", LANES)
def test_it_is_proved(name):
    checks = presets.get(name).check(TinyDecoder())
    assert all(check.passed for check in checks), checks
    assert all(check.figure > 0 for check in checks if "masked forward|" in check.name)


@pytest.mark.parametrize("name", LANES)
def test_the_proof_fails_when_a_lane_forgets_the_other(monkeypatch, name):
    plain = view.across
    monkeypatch.setattr(view, "across", lambda tables: plain(tables)[1:])
    assert any(claim.endswith("all lanes: max |logit - masked forward|") for claim in failed(name))


def test_the_proof_fails_when_nothing_is_thought_before_the_end(monkeypatch):
    thinker = sys.modules["headrace.presets.streaming_thinker"]
    monkeypatch.setattr(thinker, "units", lambda source, marker: [source])
    assert "waiting tokens, over those of reading it all and then thinking as much" in failed(
        "streaming_thinker"
    )


def test_units_end_in_the_marker():
    text = torch.tensor([5, 1, 2, 7, 1, 2, 9])
    assert [u.tolist() for u in units(text, [1, 2])] == [[5, 1, 2], [7, 1, 2], [9]]
    assert [u.tolist() for u in units(text, [2])] == [[5, 1, 2], [7, 1, 2], [9]]


def test_a_thought_ends_at_its_token_or_its_budget():
    with presets.streaming_thinker(TinyDecoder(), pool_pages=32) as engine:
        parts = list(torch.arange(20).split(5))
        free = think(engine.open_lanes(), parts, begin=0, end=-1, budget=4)
        assert waiting(free) == 4
        assert len(free) == 4 * 5
        second = int(free[2]["thoughts"])  # what follows the first token of the first thought
        short = think(engine.open_lanes(), parts, begin=0, end=second, budget=4)
        assert ["source" in step for step in short[:3]] == [True, False, True]


def test_a_scheme_that_is_none():
    with pytest.raises(ValueError, match="expected one of group, gap, overlapped, got 'between'"):
        presets.speak_while_watching(TinyDecoder(), scheme="between")
