# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from headrace import presets
from headrace.memory import UNLIMITED, view

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder, tokens


def test_the_registry():
    assert presets.names()[0] == "streaming_llm"
    preset = presets.get("streaming_llm")
    assert preset.name == "streaming_llm"
    assert preset.open is presets.streaming_llm.streaming_llm
    with pytest.raises(ValueError, match=r"^presets.get\(name\): expected one of streaming_llm, "):
        presets.get("streaming")


def test_streaming_llm_has_the_defaults_of_its_source():
    engine = presets.streaming_llm(TinyDecoder(), pool_pages=8)
    assert (engine.plan.pinned, engine.plan.reach, engine.plan.cap) == (4, 2000, 2003)
    stream = engine.open()
    assert stream.feed(tokens(20)).alive == 20


@pytest.mark.parametrize("sink_logits", [False, True])
def test_streaming_llm_is_proved(sink_logits):
    checks = presets.get("streaming_llm").check(TinyDecoder(sink_logits=sink_logits))
    assert len(checks) == 7
    assert all(check.passed for check in checks), checks
    assert all(check.figure > 0 for check in checks if "oracle" in check.name)


def test_the_proof_fails_when_the_cap_is_dropped(monkeypatch):
    plain = view.entries

    def no_cap(table, oldest, *more):
        rows = [list(row) for row in plain(table, oldest, *more)]
        for row in rows:
            row[view.CAP] = UNLIMITED
        return rows

    monkeypatch.setattr(view, "entries", no_cap)
    checks = presets.get("streaming_llm").check(TinyDecoder())
    assert [c.passed for c in checks if "oracle" in c.name] == [False] * 5


def test_a_check_holds_up_to_its_bound():
    assert presets.Check("x", 1e-4, 1e-4).passed
    assert not presets.Check("x", 2e-4, 1e-4).passed
    assert not presets.Check("x", math.nan, 1e-4).passed


def test_tokens_may_be_handed_in():
    checks = presets.get("streaming_llm").check(
        TinyDecoder(), sinks=2, window=9, tokens=torch.arange(100)
    )
    assert all(check.passed for check in checks), checks
