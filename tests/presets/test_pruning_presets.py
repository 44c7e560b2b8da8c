# SPDX-License-Identifier: Apache-2.0
"""Presets that leave tokens out, their proofs, and that a wrong one fails."""

from __future__ import annotations

import importlib
import re

import pytest
import torch

from headrace import presets, recipes
from headrace.filters import BlockSummaries, PreviousFrame, TokenCacher, encode
from headrace.presets import small_reader
from headrace.presets.small_reader import SmallModel, SmallReader
from headrace.presets.small_vision import SmallVision, film
from headrace.streams import SceneCut

from ..streams.conftest import one_thread  # noqa: F401

# Of the modules, which the presets of the same names stand before.
dtd = importlib.import_module("headrace.presets.timechat_online")
cacher = importlib.import_module("headrace.presets.stc")
NAMES = ["timechat_online", "stc", "video_llm_mod", "show_ui"]


def failing(name, model=None, **options):
    preset = presets.get(name)
    checks = preset.check(model or preset.sample(), **options)
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    assert presets.get(name).kind == "pruning"
    assert failing(name) == []


def twice(threshold, metric="cos", patch=None):
    return PreviousFrame(threshold * (1 if patch is None else 2), metric, patch)


def wrong_places(tokens, frame):
    return torch.stack([tokens.index] * 3, -1)


def at_zero(self, i, at, plain=small_reader.Reading._places):
    return plain(self, i, torch.zeros_like(at))


def unlimited(self, i, first, plain=small_reader.Reading._view):
    before, self.reach = self.reach, None
    made = plain(self, i, first)
    self.reach = before
    return made


def most_alike(k, reference, *, ratio=0.25, threshold=None, plain=recipes.stc.stale):
    return plain(k, -reference, ratio=ratio, threshold=threshold)


def no_history(self, x):
    return x.mean((0, 1))


def first_ones(scores, *, ratio=0.2, plain=recipes.video_llm_mod.keep):
    falling = torch.arange(scores.shape[-1], 0.0, -1)
    return plain(falling.expand_as(scores).contiguous(), ratio=ratio)


def more(scores, *, ratio=0.2, plain=recipes.video_llm_mod.keep):
    return plain(scores, ratio=ratio + 0.1)


def doubled(x, kept, layer, plain=recipes.video_llm_mod.through):
    return plain(x, kept, layer) * 2 - x


def alone(x, *, threshold=1.0, plain=recipes.showui.components):
    return plain(x, threshold=threshold * 0)


def thirds(label, *, skip=0.5, plain=recipes.showui.keep):
    return plain(label, skip=skip * 0.8)


MUTANTS = [
    ("timechat_online", PreviousFrame, "_refresh", lambda self, x, decision: None),
    ("timechat_online", dtd, "PreviousFrame", twice),
    ("timechat_online", dtd, "places", wrong_places),
    ("timechat_online", SceneCut, "__call__", lambda self, signal: False),
    ("timechat_online", small_reader.Reading, "_view", unlimited),
    ("timechat_online", small_reader.Reading, "_places", at_zero),
    ("stc", recipes.stc, "stale", most_alike),
    ("stc", recipes.stc.History, "add", no_history),
    ("stc", cacher, "INTERVAL", 3),
    ("stc", cacher, "RATIO", 0.5),
    ("stc", small_reader.Reading, "_places", at_zero),
    ("video_llm_mod", recipes.video_llm_mod, "keep", first_ones),
    ("video_llm_mod", recipes.video_llm_mod, "keep", more),
    ("video_llm_mod", recipes.video_llm_mod, "through", doubled),
    ("show_ui", recipes.showui, "components", alone),
    ("show_ui", recipes.showui, "keep", thirds),
    ("show_ui", recipes.video_llm_mod, "through", doubled),
]


@pytest.mark.parametrize(("name", "where", "what", "wrong"), MUTANTS)
def test_the_proof_fails_of_a_wrong_one(monkeypatch, name, where, what, wrong):
    small = SmallModel(SmallVision((12, 14)), SmallReader())
    how = {"model": small, "tokens": 12} if name == "stc" else {}
    assert failing(name, **how) == []
    monkeypatch.setattr(where, what, wrong)
    assert failing(name, **how)


def test_what_was_last_kept_notices_a_slow_change():
    """A square that fades in by one level a frame: in the published form it is never seen."""
    model = presets.get("timechat_online").sample()
    still = film(1, (8, 10))[0] // 2
    counts = {}
    for reference in ("previous", "kept"):
        stream = presets.timechat_online(model, threshold=0.9, reference=reference)
        fade = [still.clone() for _ in range(60)]
        for t, frame in enumerate(fade):
            frame[8:16, 8:16] += t
        stream.feed(fade[0])
        counts[reference] = sum(int(stream.feed(f).kept.count) for f in fade[1:])
    assert counts["previous"] == 0
    assert counts["kept"] > 0


def test_defaults_are_those_of_the_papers():
    sample = presets.get("stc").sample()
    stream = presets.stc(sample)
    assert (stream.cacher.ratio, stream.cacher.interval, stream.tokens) == (0.25, 2, 60)
    assert sample.vision.grid[0] * sample.vision.grid[1] == 4 * 196
    watch = presets.timechat_online(presets.get("timechat_online").sample())
    assert (watch.drop.threshold, watch.drop.metric, watch.reading.reach) == (0.5, "cos", 6000)
    assert presets.video_llm_mod(presets.get("video_llm_mod").sample()).ratio == 0.2
    with pytest.raises(ValueError, match=re.escape("timechat_online(reference): expected")):
        presets.timechat_online(sample, reference="last")
    with pytest.raises(ValueError, match=re.escape("timechat_online(method): expected feature")):
        presets.timechat_online(sample, method="sound")


def test_chunks_of_several_frames():
    """Two frames in a chunk: the last of a reference chunk is the reference of both that follow."""
    model = presets.get("stc").sample()
    clip = film(4, model.vision.grid)
    stream = presets.stc(model)
    seen = [stream.feed(clip[:2]), stream.feed(clip[2:])]
    assert [s.index.shape for s in seen] == [(2, 60), (2, 60)]
    assert stream.cacher.recomputed.tolist() == [[196, 196]] * 2
    one = TokenCacher(model.vision.layers)
    one(cacher.tokens_of(model.vision, clip[1:2]))
    assert torch.equal(one(cacher.tokens_of(model.vision, clip[3:])), seen[1].features[1:])
    assert torch.equal(encode(model.vision.layers, cacher.tokens_of(model.vision, clip[:2])),
                       seen[0].features)  # fmt: skip


def test_pages_of_a_reading_are_used_again():
    reading = small_reader.Reading(small_reader.SmallReader(), reach=50)
    for t in range(40):
        reading.feed(torch.randn(20, 32), torch.tensor([[t, 0, 0]]).expand(20, 3))
    assert reading.read == 800
    assert len(reading._k[0]) <= 16
    assert BlockSummaries(4).tokens is None
