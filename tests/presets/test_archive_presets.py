# SPDX-License-Identifier: Apache-2.0
"""Presets over an archive: each is proved, and each proof fails when what it proves is wrong."""

from __future__ import annotations

import importlib

import pytest
import torch

from headrace import presets
from headrace.cli.proofs import random_model
from headrace.memory import recall
from headrace.streams import asking

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder, tokens

NAMES = ["rekv", "v_rex", "live_vlm", "flex_mem"]
rekv, v_rex, live_vlm, flex_mem = (
    importlib.import_module(f"headrace.presets.{name}") for name in NAMES
)


def failed(name, model=None, **options):
    preset = presets.get(name)
    model = model or (preset.sample() if preset.sample else random_model())
    return [check.name for check in preset.check(model, **options) if not check.passed]


@pytest.mark.parametrize("sink_logits", [False, True])
def test_rekv_is_proved(sink_logits):
    assert failed("rekv", TinyDecoder(sink_logits=sink_logits)) == []


@pytest.mark.parametrize("name", NAMES[1:])
def test_it_is_proved(name):
    assert failed(name, **({"frames": 160} if name == "flex_mem" else {})) == []


def encoded(name, evicted):
    """Logits of a question at the end of a video by the oracle and with what is alive encoded anew,
    where things have left by then or have not."""
    model, frames, question = TinyDecoder(), list(tokens(120).split(12)), tokens(5, 1)
    module, every = globals()[name], 99
    if name == "rekv":
        told = tokens(4, 2), frames, question
        of = {"window": 30, "top": 3} if evicted else {"window": 200, "top": every}
        return module.oracle(model, *told, **of), module.recompute(model, *told, **of)
    if name == "flex_mem":
        few = {"share": 0.125, "ahead": 2, "top": 3}
        of = few if evicted else {"share": 1.0, "ahead": every, "top": every}
        cached = module.oracle(model, frames, question, **of)[-5:]
        return cached, module.recompute(model, frames, question, **of)
    parts, size = [*frames, question], 30 if evicted else 200
    if name == "v_rex":
        selector = module.Selector(proven=False)
        with presets.v_rex(model, window=size, frame=12) as engine:
            module.watch(engine.open(), parts, selector)
        cached, _ = module.oracle(model, parts, selector, size)
        return cached[-5:], module.recompute(model, parts, selector, size)
    with presets.live_vlm(model, recent=size, budget=48) as engine:
        video = module.Video(engine.open(), budget=48)
        for part in frames:
            video.watch(part)
        video.ask(question)[0].close()
    of = {"recent": size, "budget": 48}
    cached = module.oracle(model, parts, video.log, **of)[-5:]
    return cached, module.recompute(model, parts, video.log, **of)


@pytest.mark.parametrize("name", NAMES)
def test_encoding_anew_is_another_function_once_something_has_left(name):
    assert presets.get(name).recompute is globals()[name].recompute
    cached, anew = encoded(name, evicted=False)
    assert anew.shape == cached.shape == (5, 256)
    assert float((anew - cached).abs().max()) < 1e-9
    cached, anew = encoded(name, evicted=True)
    assert torch.isfinite(anew).all()
    assert float((anew - cached).abs().max()) > 1e-4


def test_rekv_fails_with_other_blocks(monkeypatch):
    real = rekv.by_score
    monkeypatch.setattr(rekv, "by_score", lambda *a: real(*a)[1:])
    assert "question after 7 frames: layers with other blocks than by brute force" in failed("rekv")


def test_rekv_fails_at_other_positions(monkeypatch):
    monkeypatch.setattr(recall, "right_before", lambda rows, at: rows)
    wrong = {f"question after {n} frames: max |logit - oracle|" for n in (7, 14)}
    assert wrong <= set(failed("rekv"))


def test_rekv_fails_when_the_question_stays_in_the_video(monkeypatch):
    def here(stream):
        side = stream.fork()
        stream.feed(tokens(3))
        return side

    monkeypatch.setattr(rekv, "aside", here)
    monkeypatch.setattr(rekv, "sinks", lambda stream: [])
    with pytest.raises(NotImplementedError, match=r"^read\(stream\): expected one of Absolute"):
        failed("rekv")
    real = asking.aside

    def and_here(stream):
        stream.recall(tokens(3), top=1)
        return real(stream)

    room = rekv.Archive
    monkeypatch.setattr(rekv, "Archive", lambda kind, tier, pages: room(kind, tier, pages + 1))
    monkeypatch.setattr(rekv, "aside", and_here)
    assert "logits of the video that a question changed" in failed("rekv")


def test_a_question_leaves_nothing_behind():
    with presets.rekv(TinyDecoder(), window=40, frame=16, top=3, near=3) as engine:
        stream = engine.open()
        rekv.watch(stream, list(tokens(200).split(16)))
        held, blocks = engine.pool.live_pages, len(stream._shelf.index)
        side, logits = rekv.ask(stream, tokens(5, 1), top=3)
        assert logits.shape == (5, 256)
        assert len(side.say(max_new=30)) == 30  # longer than a page
        near = engine.archive.tiers.near_pages
        side.close()
        assert engine.pool.live_pages == held + near
        assert len(stream._shelf.index) == blocks
        with pytest.raises(ValueError, match=r"^recall\(pages\): expected"):
            rekv.ask(stream, tokens(5, 1), top=9)
        assert engine.pool.live_pages == held + near


def test_v_rex_fails_when_it_takes_too_little(monkeypatch):
    real = v_rex.dial

    def less(m, share, proven):
        got = real(m, share, proven=proven)
        return type(got)(got.chosen[::3], got.captured, got.missed)

    monkeypatch.setattr(v_rex, "dial", less)
    assert {
        "share asked for, less the least that a head got",
        "estimated: queries of a head that got less, of all",
    } <= set(failed("v_rex"))


def test_v_rex_fails_when_it_sees_other_tokens_than_it_chose(monkeypatch):
    real = recall.runs
    monkeypatch.setattr(recall, "runs", lambda row, at: list(real(row, at))[1:])
    assert "proven: max |logit - oracle|" in failed("v_rex")


def test_v_rex_fails_when_it_takes_everything(monkeypatch):
    monkeypatch.setattr(
        v_rex, "dial", lambda m, share, proven: v_rex.Dialled(torch.arange(m.low.shape[1]), 1, 0)
    )
    claim = "tokens recalled, over all there were"
    assert failed("v_rex") == [f"{claim}: proven", f"{claim}: estimated"]


def test_tokens_of_a_block_are_the_same_from_every_tier(tmp_path):
    from headrace import Absolute, Archive, InMemory, OnDisk, Window, wrap

    found = {}
    for name, tier in (("memory", InMemory()), ("disk", OnDisk(tmp_path))):
        memory = Window(20) >> Archive("mean", tier)
        with wrap(TinyDecoder(), memory=memory, positions=Absolute(), page_size=16) as engine:
            stream = engine.open()
            stream.feed(tokens(150))
            shelf = stream._shelf
            engine.archive.flush()
            found[name] = [recall.tokens_of(shelf, i, 1) for i in range(len(shelf.index))]
            means = shelf.index.rows("mean", 1)
            assert len(found[name]) > 5
            for i, (k, _) in enumerate(found[name]):
                torch.testing.assert_close(k.mean(1), means[:, i], atol=1e-5, rtol=1e-5)
    for a, b in zip(found["memory"], found["disk"], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_live_vlm_fails_with_other_rules(monkeypatch):
    real = live_vlm.rule.recall
    monkeypatch.setattr(live_vlm.rule, "recall", lambda q, mean, share: real(-q, mean, share=share))
    assert failed("live_vlm") == ["question: max |logit - oracle|"]
    monkeypatch.setattr(live_vlm.rule, "recall", real)
    score = live_vlm.rule.score
    monkeypatch.setattr(live_vlm.rule, "score", lambda q, k, past: score(q, k))
    assert "layers that keep other pages than brute force" in failed("live_vlm")


def test_live_vlm_fails_when_nothing_is_let_go_of(monkeypatch):
    monkeypatch.setattr(live_vlm.Shelf, "drop", lambda self, blocks: None)
    assert "pages in long-term memory, over layers times budget" in failed("live_vlm")


def test_live_vlm_fails_when_rotated_keys_are_compared(monkeypatch):
    """As they are stored: turned by their offsets within a page's origin."""
    real = recall.tokens_of
    monkeypatch.setattr(live_vlm, "tokens_of", lambda *a: (real(*a)[0].roll(1, -1), None))
    assert "layers that keep other pages than brute force" in failed("live_vlm")


@pytest.mark.parametrize("path", ["context", "local", "recall", "position", "bank"])
def test_flex_mem_fails(monkeypatch, path):
    rule = flex_mem.rule
    if path in ("context", "local"):
        real, turn = rule.received, iter(range(10**6))
        odd = 0 if path == "context" else 1
        monkeypatch.setattr(
            rule, "received", lambda q, k: real(q, k) * (-1 if next(turn) % 2 == odd else 1)
        )
    elif path == "recall":
        real = rule.clips
        monkeypatch.setattr(rule, "clips", lambda *a: -real(*a))
    elif path == "position":
        monkeypatch.setattr(flex_mem, "_moved", lambda k, steps, inv_freq: k.float())
    else:
        monkeypatch.setattr(flex_mem.Shelf, "drop", lambda self, blocks: None)
        room = flex_mem.InMemory
        monkeypatch.setattr(flex_mem, "InMemory", lambda blocks: room(blocks + 99))
    wrong = {
        "context": "clips: max |logit - oracle|",
        "local": "question: max |logit - oracle|",
        "recall": "question: max |logit - oracle|",
        "position": "clips: max |logit - oracle|",
        "bank": "160 frames: blocks in the bank and the context",
    }[path]
    assert wrong in failed("flex_mem", frames=160)


def test_a_clip_that_does_not_fit_is_refused():
    with presets.flex_mem(TinyDecoder(), clip=40) as engine:
        video = flex_mem.Video(engine.open())
        with pytest.raises(ValueError, match=r"^flex_mem\(clip\): expected 1 to 40 tokens, got 41"):
            video.watch(tokens(41))
        assert video.watch(tokens(40)).shape == (40, 256)
    with (
        presets.flex_mem(TinyDecoder(), clip=40, dtype=torch.int8) as engine,
        pytest.raises(NotImplementedError, match=r"^flex_mem\(dtype\): expected one of pages of"),
    ):
        flex_mem.Video(engine.open())


@pytest.mark.parametrize("name", ["flex_mem", "live_vlm"])
def test_a_clip_that_fails_was_never_read(monkeypatch, name):
    module = {"flex_mem": flex_mem, "live_vlm": live_vlm}[name]
    sizes = {"clip": 48} if name == "flex_mem" else {"recent": 32, "budget": 64}
    said = []
    for fails in (False, True):
        with getattr(presets, name)(TinyDecoder(), **sizes) as engine:
            video = module.Video(engine.open(), **({} if name == "flex_mem" else {"budget": 64}))
            for i in range(3):
                video.watch(tokens(40, i))
            if fails:
                at = {"flex_mem": (module.rule, "received"), "live_vlm": (engine, "model")}
                with monkeypatch.context() as m:
                    m.setattr(*at[name], _interrupt)
                    with pytest.raises(KeyboardInterrupt):
                        video.watch(tokens(40, 9))
            video.watch(tokens(40, 5))
            side, logits = video.ask(tokens(5, 6))
            side.close()
            said.append(logits)
    assert torch.equal(*said)


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt
