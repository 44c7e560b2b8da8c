# SPDX-License-Identifier: Apache-2.0
"""Presets that choose who stays: each is proved, and its proof fails when a part of it is wrong."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from headrace import Window, presets
from headrace.memory import HeadCache, Keep, PagePool, Rest, Tagged
from headrace.presets.frame_net import FrameNet
from headrace.presets.sir_llm import turn
from headrace.presets.streaming_vlm import comment
from headrace.streams import PplRise, Stream, piece

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder

NAMES = [
    "sir_llm", "streaming_vlm", "infinite_vggt", "live_star", "sf_hand", "videochat_online",
]  # fmt: skip
# By these names the package has the functions that open them.
_, _, infinite_vggt, live_star, sf_hand, pyramid = (
    importlib.import_module(f"headrace.presets.{name}") for name in NAMES
)


def failed(name):
    preset = presets.get(name)
    model = preset.sample() if preset.sample else TinyDecoder()
    return [check.name for check in preset.check(model) if not check.passed]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    assert failed(name) == []


def newest_first(self, held, coming, taken=0):
    return np.arange(len(held)) >= len(held) - (self.budget or len(held))


def one_less(cls):
    good = cls.stays

    def stays(self, held, coming, taken=0):
        stay = good(self, held, coming, taken)
        stay[np.flatnonzero(stay)[-1:]] = False
        return stay

    return stays


def patched(obj, name, make):
    good = getattr(obj, name)
    return obj, name, make(good)


TURNS = "turns whose survivors differ from the rule's"
LOGITS = "max |logit - oracle|"
ROUNDS = "rounds after which others are alive than by the rule"
HEADS = "heads whose survivors differ from the rule's"
FRAMES = "frames after which others are held than by the rule"
SURVIVE = "frames after which others survive than by the rule"
LEVELS = "levels whose frames differ from the rule's"


def lost_once(drop):
    """The first pages that are let go of are never free again."""
    calls = []

    def lossy(self, pages):
        calls.append(pages)
        return None if len(calls) == 1 else drop(self, pages)

    return lossy


WRONG = {
    "sir_llm: by age": (TURNS, lambda: (Keep, "stays", newest_first)),
    "sir_llm: one too few": (TURNS, lambda: (Rest, "stays", one_less(Rest))),
    "sir_llm: no decay": (TURNS, lambda: (Stream, "rescore", lambda self, scores: None)),
    "sir_llm: gaps": (
        LOGITS, lambda: patched(piece, "evict", lambda f: lambda *a: f(*a[:-1], False))
    ),
    "streaming_vlm: seconds": (ROUNDS, lambda: (Window, "stays", one_less(Window))),
    "streaming_vlm: tags": (ROUNDS, lambda: (Tagged, "stays", one_less(Tagged))),
    "streaming_vlm: gaps": (
        LOGITS, lambda: patched(piece, "evict", lambda f: lambda *a: f(*a[:-1], False))
    ),
    "infinite_vggt: most alike": (
        HEADS,
        lambda: patched(infinite_vggt.rule, "score", lambda f: lambda k, anchor: -f(k, anchor)),
    ),
    "infinite_vggt: the first frame counts": (
        HEADS,
        lambda: patched(infinite_vggt.rule, "score", lambda f: lambda k, anchor: f(k, 0)),
    ),
    "infinite_vggt: even budgets": (
        HEADS,
        lambda: patched(
            infinite_vggt, "budgets", lambda f: lambda total, w: f(total, [1.0] * len(w))
        ),
    ),
    "infinite_vggt: causal within a frame": (
        "max |feature - oracle|",
        lambda: patched(
            HeadCache, "entries", lambda f: lambda self, layer, n: shifted(f, self, layer)
        ),
    ),
    "infinite_vggt: nothing freed": (
        "pages held that are not needed, or are missing",
        lambda: patched(PagePool, "drop", lost_once),
    ),
    "infinite_vggt: another temperature": (HEADS, lambda: (infinite_vggt, "TEMPERATURE", 5.0)),
    "live_star: another ratio": (
        "decisions that differ from the rule's",
        lambda: patched(live_star, "PplRise", lambda f: lambda ratio: f(1.25 * ratio)),
    ),
    "live_star: threshold": (
        "decisions that differ from the rule's",
        lambda: (PplRise, "__call__", lambda self, s: True),
    ),
    "live_star: the worse half": (
        FRAMES,
        lambda: patched(
            live_star,
            "peak_end",
            lambda f: lambda held: f([x._replace(perplexity=-x.perplexity) for x in held]),
        ),
    ),
    "live_star: what was weighed stays": (
        "numbers of the cache that weighing a frame changes",
        lambda: (Stream, "rollback", lambda self, mark: None),
    ),
    "live_star: frames stay": (FRAMES, lambda: (Stream, "keep", lambda self, numbers: 0)),
    "sf_hand: boxes": (
        SURVIVE, lambda: patched(sf_hand, "in_boxes", lambda f: lambda *a: f(*a).roll(1))
    ),
    "sf_hand: by age": (SURVIVE, lambda: (sf_hand, "INSIDE", 0.0)),
    "videochat_online: the first": (
        LEVELS, lambda: (pyramid, "_most_alike", lambda held: 0)
    ),
    "videochat_online: forgotten": (
        "max |feature - rule's|",
        lambda: patched(
            pyramid.F, "interpolate", lambda f: lambda x, size, **_: f(x, size=size)
        ),
    ),
}  # fmt: skip


def shifted(entries, cache, layer):
    rows, offsets = entries(cache, layer, 0)
    rows = rows.clone()
    rows[:, 5] += 2  # the newest token comes after all queries
    return rows, offsets


@pytest.mark.parametrize("what", WRONG)
def test_a_proof_fails_when_its_preset_is_wrong(what, monkeypatch):
    claim, wrong = WRONG[what]
    monkeypatch.setattr(*wrong())
    assert claim in failed(what.partition(":")[0])


def test_turns_longer_than_the_cache_are_read():
    with presets.sir_llm(TinyDecoder(), first=2, scored=9, recent=5, chunk=16, page_size=16) as e:
        stream = e.open()
        report = turn(stream, torch.arange(70))
        assert report.tokens == 70
        assert stream.alive <= 16 + 16


def test_a_reply_ends_where_the_model_ends_it():
    with presets.streaming_vlm(TinyDecoder(), page_size=16, pool_pages=32) as engine:
        stream, end = engine.open(), torch.tensor([5, 6])
        stream.feed(torch.arange(9))
        said = comment(stream, torch.arange(20, 30), 0.0, end=end, choose=lambda logits: 5)
        assert said == []
        assert stream.tokens == 9 + 10 + 2
        tokens = iter([7, 8, 5])
        said = comment(
            stream, torch.arange(20, 30), 1.0, end=end, choose=lambda logits: next(tokens)
        )
        assert said == [7, 8]
        assert stream.held.tag[-4:] == ["said", "said", "seen", "seen"]


def test_one_line_errors():
    with pytest.raises(ValueError, match=r"^infinite_vggt\(total\): expected 26 or more, a frame"):
        presets.infinite_vggt(FrameNet(), total=20)
    with pytest.raises(ValueError, match=r"^videochat_online\(every\): expected sides and room"):
        presets.videochat_online(None, sides=(4, 2), every=(2, 3), room=(1, 1))
    bank = presets.videochat_online(None)
    with pytest.raises(ValueError, match=r"^videochat_online\(features\): expected \[C, 16, 16\]"):
        bank.feed(torch.zeros(3, 8, 8))
    assert bank.most == 21504
    seen = presets.infinite_vggt(FrameNet(), total=60)
    seen.feed(torch.zeros(12, 12))
    with pytest.raises(RuntimeError):
        seen.feed(torch.zeros(11, 12))
    with pytest.raises(ValueError, match=r"^infinite_vggt\(stream\): expected a stream whose"):
        seen.feed(torch.zeros(12, 12))
