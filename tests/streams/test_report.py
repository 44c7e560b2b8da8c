# SPDX-License-Identifier: Apache-2.0
"""Reports work out what they say when they are first asked, and then are like any other."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

from headrace import Sink, Window, models, wrap
from headrace.streams import Report

NAMES = [field.name for field in dataclasses.fields(Report)]


@pytest.fixture
def engine():
    torch.manual_seed(0)
    config = models.DecoderConfig(layers=1, width=32, heads=2, kv_heads=1, head_dim=16, hidden=32)
    with wrap(models.Decoder(config), memory=Sink(2) + Window(30)) as engine:
        yield engine


def test_a_report_says_what_was_at_the_end_of_its_step(engine):
    with engine.open() as a, engine.open() as b:
        first = engine.step({a: b"some text that is longer than the window of it", b: b"short"})
        known = {s: (r.tokens, r.alive, r.evicted, r.ms, r.nll.clone()) for s, r in first.items()}
        later = engine.step({a: b"x", b: b"yz"})
        engine.step({b: b"more", a: b"of it"})  # before what `later` says is looked at
        assert known[a][:3] == (46, 31, 15) and known[b][:3] == (5, 5, 0)  # noqa: PT018
        assert (later[a].tokens, later[a].alive, later[a].evicted) == (1, 31, 16)
        assert (later[b].tokens, later[b].alive, later[b].evicted) == (2, 7, 0)
        assert later[a].ms == later[b].ms > 0
        with wrap(engine.model, memory=Sink(2) + Window(30)) as other, other.open() as alone:
            want = alone.feed(b"short"), alone.feed(b"yz", logits=True)
        assert torch.equal(known[b][4][1:], want[0].nll[1:])
        assert torch.equal(later[b].nll, want[1].nll)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_of_one_not_yet_asked_says_the_same(engine, how):
    with engine.open() as stream:
        stream.feed(b"text")
        report = stream.feed(b"!")
        other = how(report)
        assert type(other) is Report
        assert all(getattr(other, name) == getattr(report, name) for name in NAMES)


def test_it_is_a_frozen_dataclass(engine):
    with engine.open() as stream:
        report = stream.feed(b"t")
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.ms = 0.0
        with pytest.raises(AttributeError, match="no attribute 'lag'"):
            _ = report.lag
        assert list(dataclasses.asdict(stream.feed(b"u"))) == NAMES
        assert repr(stream.feed(b"v")).startswith("Report(tokens=1, nll=tensor([")
        assert dataclasses.replace(stream.feed(b"w"), ms=2.0).ms == 2.0
