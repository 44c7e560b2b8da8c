# SPDX-License-Identifier: Apache-2.0
"""Presets whose memory is features, text, or queries that wait."""

from __future__ import annotations

import importlib
import time

import pytest
import torch

from headrace import presets
from headrace.cli.proofs import random_model
from headrace.streams import Every, HeadSum

from ..streams.conftest import one_thread  # noqa: F401
from ..streams.tiny import TinyDecoder, tokens
from . import parties
from .test_archive_presets import failed

NAMES = ["save_mem", "flash_vstream", "avila", "vst", "ixc25_omnilive"]
save_mem, flash, avila, vst, omnilive = (
    importlib.import_module(f"headrace.presets.{name}") for name in NAMES
)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    assert failed(name, **({"clips": 7} if name == "ixc25_omnilive" else {})) == []


TIERS = "tiers, frame by frame, that differ from the rule's"


SEEN = "questions that see other frames than by brute force"


@pytest.mark.parametrize("part", ["prune", "settle", "budget", "gate", "scene", "order", "best"])
def test_save_mem_fails(monkeypatch, part):
    if part == "prune":
        monkeypatch.setattr(save_mem, "_pruned", lambda frame, after: frame)
    elif part == "settle":
        monkeypatch.setattr(save_mem.rule, "settle", lambda w, *place: w > w.median())
    elif part == "budget":
        monkeypatch.setattr(save_mem.Memory, "_forget", lambda self: None)
    elif part == "gate":
        monkeypatch.setattr(save_mem.rule.Opens, "__call__", lambda self, short: True)
    elif part == "scene":
        monkeypatch.setattr(save_mem, "CUT", 1e9)
    elif part == "best":
        real = save_mem.rule.affinity
        monkeypatch.setattr(save_mem.rule, "affinity", lambda x, q: 1 / (2 + real(x, q)))
        monkeypatch.setattr(save_mem.rule.Opens, "__call__", lambda self, short: True)
    else:
        real = save_mem.Memory.open
        monkeypatch.setattr(save_mem.Memory, "open", lambda self, q: real(self, q)[1:])
    wrong = {
        "budget": "tokens in all tiers",
        "gate": "questions of now and long ago with the wrong scope",
        "order": SEEN,
        "best": SEEN,
    }.get(part, TIERS)
    assert wrong in failed("save_mem")


def test_save_mem_holds_its_budget_whatever_the_frames_are():
    made = torch.Generator().manual_seed(0)
    with_few = {"short": 2, "mid": 50, "budget": 30}
    memory = save_mem.Memory(torch.randn(5, 16, generator=made), **with_few)
    for _ in range(40):  # nothing is like anything
        memory.watch(torch.zeros(3, 5, dtype=torch.int64), torch.randn(3, 5, 16, generator=made))
        assert memory.size <= 30
    memory = save_mem.Memory(torch.zeros(5, 16), **with_few)
    for _ in range(9):  # all alike, and worth nothing
        memory.watch(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5, 16))
        assert memory.size <= 30
    with pytest.raises(ValueError, match=r"^save_mem\(tokens\): expected 15 or fewer, got 16"):
        memory.watch(torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, 16))


@pytest.mark.parametrize(
    "part", ["k_means", "weights", "fold", "give", "nearest", "buffer", "pool"]
)
def test_flash_vstream_fails(monkeypatch, part):
    if part == "k_means":
        monkeypatch.setattr(flash, "k_means", lambda x, w: (x[1:], w[1:]))
    elif part == "weights":
        real = flash.k_means
        monkeypatch.setattr(flash, "k_means", lambda x, w: (real(x, w)[0], w[1:]))
    elif part == "fold":
        monkeypatch.setattr(flash.FlashMemory, "_folded", lambda self, old, new: old)
    elif part == "give":
        monkeypatch.setattr(flash, "GIVE", 0.3)
    elif part == "nearest":
        real = flash.ops.assign
        monkeypatch.setattr(
            flash.ops, "assign", lambda x, c, metric: (real(x, c, metric=metric)[0].flip(0), None)
        )
    elif part == "buffer":
        real_init = flash.FlashMemory.__init__

        def endless(self, semantic, sizes):
            real_init(self, semantic, sizes)
            self._buffer = type(self._buffer)()

        monkeypatch.setattr(flash.FlashMemory, "__init__", endless)
    else:
        monkeypatch.setattr(flash, "pooled", lambda f, side: f[:side, :side].reshape(-1, 16))
    kinds = {
        "k_means": "temporal memory",
        "weights": "retrieved memory",
        "fold": "abstract memory",
        "give": "abstract memory",
        "nearest": "retrieved memory",
        "buffer": "sizes of what is held",
        "pool": "spatial memory",
    }
    assert any(name.startswith(kinds[part]) for name in failed("flash_vstream"))


def test_flash_vstream_takes_whole_grids_and_frames_that_are_alike():
    memory = presets.flash_vstream(presets.get("flash_vstream").sample())
    with pytest.raises(ValueError, match=r"^flash_vstream\(frame\): expected \[P, P, D\] with P a"):
        memory.watch(torch.zeros(8, 9, 16))
    for _ in range(40):
        memory.watch(torch.ones(8, 8, 16))
    assert len(memory.read().all) == 681  # empty centres stay
    assert torch.isfinite(memory.read().all).all()
    assert memory.weights.sum() == 39


def test_avila_fails_when_it_does_not_wait(monkeypatch):
    monkeypatch.setattr(HeadSum, "__call__", lambda self, signal: True)
    assert "queries that are answered at another frame than by the rule" in failed("avila")
    monkeypatch.setattr(HeadSum, "__call__", lambda self, signal: False)
    assert "queries still waiting" in failed("avila")


def test_avila_fails_when_it_looks_only_once(monkeypatch):
    real = avila.Agent.watch

    def blind(self, frame):
        waiting, self.waiting = self.waiting, []
        real(self, frame)
        self.waiting = waiting
        return []

    monkeypatch.setattr(avila.Agent, "watch", blind)
    assert "late evidence: looks too few or too many" in failed("avila")


def test_queries_are_answered_in_the_order_of_asking():
    with presets.avila(TinyDecoder(), window=40, frame=16, top=3) as engine:
        agent = avila.Agent(engine.open(), wait=0, gate=Every(3), top=3, longest=2)
        agent.watch(tokens(16))
        first = agent.ask(tokens(4, 1))
        second = agent.ask(tokens(5, 2))
        assert agent.watch(tokens(16, 3)) == []
        assert agent.watch(tokens(16, 4)) == [first, second]
        assert (first.answered, second.answered) == (3, 3)
        assert 1 <= len(first.said) <= 2
        assert agent.waiting == []
        held = engine.pool.live_pages - engine.archive.tiers.near_pages
        assert held == len(agent.stream.pages)


@pytest.mark.parametrize("part", ["text", "clip"])
def test_vst_fails(monkeypatch, part):
    real = vst.Lane

    def other(name, reads=(), kind="in", memory=None):
        if part == "text" and name == "thoughts":
            memory = vst.Window(None)
        if part == "clip" and name == "clip":
            memory = vst.Window(200)
        return real(name, reads, kind, memory=memory)

    monkeypatch.setattr(vst, "Lane", other)
    assert "tokens more that it sees after twice the video" in failed("vst", clips=8)


def test_an_answer_sees_clip_and_thoughts():
    said = {}
    for changed in ("nothing", "clip", "thought"):
        model = random_model()
        with vst.vst(model, clip=16, text=9, answer=20, page_size=16) as engine:
            stream = engine.open_lanes()
            stream.feed({"clip": tokens(16, 1 if changed == "clip" else 0)})
            stream.feed({"thoughts": torch.tensor([5 if changed == "thought" else 7])})
            said[changed] = stream.feed({"answer": tokens(3, 9)}, logits=True)["answer"].logits
    assert not torch.equal(said["nothing"], said["clip"])
    assert not torch.equal(said["nothing"], said["thought"])


@pytest.mark.parametrize("part", ["lost", "repeated", "retrieval", "files", "memory"])
def test_omnilive_fails(monkeypatch, part):
    watch, step = omnilive.Perceiver.watch, omnilive.Compressor.step
    if part == "lost":  # what was held when a party was killed is not asked for again
        start = omnilive.Perceiver.__init__

        def forgets(self, engine, folder, **sizes):
            start(self, engine, folder, **sizes)
            self._held = [tokens(9, 5)]

        monkeypatch.setattr(omnilive.Perceiver, "__init__", forgets)
    elif part == "repeated":

        def twice(self, frame):
            done = watch(self, frame)
            if done and self._held:
                self._held[-1] = self._held[-1].roll(1)
            return done

        monkeypatch.setattr(omnilive.Perceiver, "watch", twice)
    elif part == "retrieval":

        class Last(omnilive.Folder):
            def numbers(self, kind):
                return super().numbers(kind)[-1:]

        start = omnilive.Reasoner.__init__
        monkeypatch.setattr(
            omnilive.Reasoner,
            "__init__",
            lambda self, engine, folder: start(self, engine, Last(folder.path)),
        )
    elif part == "files":
        monkeypatch.setattr(omnilive.Path, "unlink", lambda self, missing_ok: None)
    else:
        monkeypatch.setattr(
            omnilive.Compressor, "step", lambda self: bool(self._memory.feed([1])) and step(self)
        )
    wrong = {
        "lost": "clips that are not what was filmed",
        "repeated": "clips that are not what was filmed",
        "retrieval": "clips retrieved that are not the likeliest",
        "files": "files in the folder",
        "memory": "answers on the way and at the end: max |logit - oracle|",
    }[part]
    assert wrong in failed("ixc25_omnilive", clips=7)


def test_parties_that_start_again_go_on_where_the_folder_ends(tmp_path):
    model = TinyDecoder()
    with presets.ixc25_omnilive(model, window=80, page_size=16) as engine:
        folder = omnilive.Folder(tmp_path)
        perceiver = omnilive.Perceiver(engine, folder, frames=2, backlog=2)
        frames = list(tokens(90).split(9))
        assert [perceiver.watch(f) for f in frames[:6]] == [True] * 5 + [False]
        assert perceiver.frames == 5
        (tmp_path / "clip-00000003.safetensorsxyz.part").touch()  # of one that was killed
        again = omnilive.Perceiver(engine, folder, frames=2, backlog=2)
        assert not list(tmp_path.glob("*.part"))
        assert again.frames == 4  # the fifth was in no clip yet
        compressor = omnilive.Compressor(engine, folder, summary=3)
        assert [compressor.step() for _ in range(3)] == [True, True, False]
        assert omnilive.Compressor(engine, folder).done == 2
        assert folder.numbers("memory") == [2]
        reasoner = omnilive.Reasoner(engine, folder)
        _, logits, known, best = reasoner.ask(tokens(4, 2))
        assert logits.shape == (4, 256)
        assert (known, best in (1, 2)) == (2, True)


def test_three_processes_of_which_two_are_killed(tmp_path):
    path, folder = str(tmp_path), omnilive.Folder(tmp_path)
    children = {what: parties.started(what, path) for what in (parties.perceive, parties.compress)}
    question, known = tokens(4, 2), 0
    with parties.engine() as engine:
        reasoner = omnilive.Reasoner(engine, folder)
        for at, what in ((3, parties.perceive), (6, parties.compress), (11, parties.perceive)):
            _until(lambda at=at: folder.compressed >= at)
            children[what].kill()
            children[what].join()
            stream, logits, now, _ = reasoner.ask(question)  # while the other works
            stream.close()
            assert torch.isfinite(logits).all()
            assert now >= max(known, at)
            known, children[what] = now, parties.started(what, path)
        for child in children.values():
            child.join(120)
            assert child.exitcode == 0
        assert not list(tmp_path.glob("*.part"))
        clips = [torch.cat(parties.video()[i : i + 2]) for i in range(0, parties.FRAMES, 2)]
        said = omnilive.oracle(engine.model, clips, summary=parties.SUMMARY, window=80)
        there = folder.numbers("clip")
        _, logits, now, best = reasoner.ask(question)
        want, likeliest = omnilive._answer(engine.model, clips, said, there, question, 80)
        assert (now, best) == (len(clips), likeliest)
        assert float((logits - want).abs().max()) < 1e-4
        assert there == list(range(len(clips) - 3, len(clips) + 1))


def _until(done, seconds=120.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)
