# SPDX-License-Identifier: Apache-2.0
"""Presets of networks: each holds, and its proof fails when a term of the network is forgotten."""

from __future__ import annotations

import math

import pytest
import torch

from headrace import ops, presets
from headrace.models.conformer import normed
from headrace.presets.encoding import gap

from ..streams.conftest import one_thread  # noqa: F401
from .nets import NAMES, ancat, checked, failed, hstu, kv_bottleneck, ls_eend, mimi_tts, sst_v2


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    checks = checked(name)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    against = [check for check in checks if "oracle|" in check.name]
    assert against or name == "mimi_tts"  # whose codes and samples are whole numbers
    assert all(check.figure > 0 for check in against), against


@pytest.mark.parametrize("kept", ["taps", "frames", "speakers"])
def test_the_proof_fails_when_a_lane_forgets(kept, monkeypatch):
    plain = ls_eend.LsEend.feed

    def forgetful(self, frames):
        out = plain(self, frames)
        self._kept[kept] = 0 * self._kept[kept]
        return out

    monkeypatch.setattr(ls_eend.LsEend, "feed", forgetful)
    assert any("1 frames at a time: max" in claim for claim in failed("ls_eend"))


def test_the_proof_fails_when_speakers_do_not_see_each_other(monkeypatch):
    monkeypatch.setattr(ls_eend, "_across", lambda q, k, v: v)
    assert any("oracle|" in claim for claim in failed("ls_eend"))


def test_the_proof_fails_when_a_frame_waits_too_long(monkeypatch):
    monkeypatch.setattr(ls_eend, "AHEAD", 9)
    plain = ls_eend.LsEend.__init__

    def slow(self, model):
        plain(self, model)
        self._smooth = self._smooth[1:]

    monkeypatch.setattr(ls_eend.LsEend, "__init__", slow)
    assert "1 frames at a time: frames on their way" in failed("ls_eend")


def test_the_attractors_are_a_lane_to_look_at():
    system = presets.ls_eend(presets.get("ls_eend").sample())
    frames = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
    assert len(system.feed(frames[:9])) == 0
    assert system.attractors is None
    assert system.feed(frames[9:]).shape == (3, 4)
    assert system.attractors.shape == (4, 32)
    torch.testing.assert_close(system.attractors.norm(dim=1), torch.ones(4))


def test_the_proof_fails_when_a_frame_sees_who_comes_later(monkeypatch):
    plain = ancat.Ancat._sees

    def wider(self, number):
        self._done, done = set(range(self.count)), self._done
        rows = plain(self, number)
        self._done = done
        return rows

    monkeypatch.setattr(ancat.Ancat, "_sees", wider)
    assert any("oracle|" in claim for claim in failed("ancat"))


def test_the_proof_fails_when_all_wait_for_the_slowest(monkeypatch):
    plain = ancat.Ancat.feed

    def slow(self, frames):
        before, self.choices = self.choices, (8, 8, 8)
        out = plain(self, frames)
        self.choices = before
        return out

    monkeypatch.setattr(ancat.Ancat, "feed", slow)
    assert "frames late by other than what they chose" in failed("ancat")


def test_the_proof_fails_when_a_frame_never_comes_out(monkeypatch):
    plain = ancat.Ancat.finish
    monkeypatch.setattr(ancat.Ancat, "finish", lambda self: [x[1:] for x in plain(self)])
    assert "1 at a time: frames that wait for the end, or do not" in failed("ancat")


def test_the_proof_fails_when_frames_look_ahead_for_nothing(monkeypatch):
    plain = ancat.Chooser.__init__

    def eager(self, *args, **options):
        plain(self, *args, **options)
        self.choose.data[2] = 3 * self.choose.data[2] + self.choose.data[1]

    monkeypatch.setattr(ancat.Chooser, "__init__", eager)
    assert any("the encoder that never chooses" in claim for claim in failed("ancat"))


def test_a_ring_of_pages_is_used_again():
    model = presets.get("ancat").sample()
    system = presets.ancat(model, window=10)
    frames = torch.randn(300, 16, generator=torch.Generator().manual_seed(3))
    numbers, encoded = system.feed(frames)
    want = ancat.oracle(model, frames, window=10)
    assert gap(encoded, want[numbers]) < 1e-5
    assert system.pool.pages * 16 < 50
    assert len(system._done) < 30
    with pytest.raises(ValueError, match=r"^ancat\(choices\): expected 3 from 0 on, got \(0, 1\)"):
        presets.ancat(model, choices=(0, 1))


@pytest.mark.parametrize("term", ["sinks", "max_attn_len", "max_seq_len", "targets"])
def test_the_proof_fails_when_a_rule_of_pointwise_attention_is_forgotten(term, monkeypatch):
    plain = ops.hstu_attention

    def forgetful(q, k, v, ends, q_ends, targets, order, **options):
        if term == "targets":
            targets = None
        else:
            options[term] += 1
        return plain(q, k, v, ends, q_ends, targets, order, **options)

    monkeypatch.setattr(ops, "hstu_attention", forgetful)
    assert any("oracle|" in claim for claim in failed("hstu"))


def test_the_proof_fails_when_users_are_mixed_up(monkeypatch):
    plain = hstu.Hstu.step

    def swapped(self, events):
        out = plain(self, events)
        if {"2", "3"} <= set(self.users):
            self.users["2"], self.users["3"] = self.users["3"], self.users["2"]
        return out

    monkeypatch.setattr(hstu.Hstu, "step", swapped)
    assert any("jagged" in claim for claim in failed("hstu"))


def test_a_user_that_is_forgotten_begins_anew():
    model = presets.get("hstu").sample()
    system, events = presets.hstu(model), torch.arange(9)
    first = system.step({"a": events})["a"]
    with pytest.raises(ValueError, match=r"^hstu\(user\): expected one with events, got 'b'"):
        system.forget("b")
    system.forget("a")
    assert torch.equal(system.step({"a": events})["a"], first)
    assert not torch.equal(system.step({"a": events})["a"], first)
    anew = hstu.recompute(model, events.repeat(9), window=20)
    cached = hstu.oracle(model, events.repeat(9), window=20)
    assert gap(anew[:21], cached[:21]) < 1e-9
    assert gap(anew, cached) > 1e-3


def test_the_proof_fails_when_latents_do_not_travel(monkeypatch):
    plain = sst_v2.SstV2.fork

    def forgetful(self, stream):
        forked = plain(self, stream)
        self._latents[forked] = 0 * self._latents[forked]
        return forked

    monkeypatch.setattr(sst_v2.SstV2, "fork", forgetful)
    assert failed("sst_v2") == ["of a fork: max |logit - oracle| over max |oracle|"]


def test_the_proof_fails_when_latents_are_of_a_neighbour(monkeypatch):
    model = presets.get("sst_v2").sample()
    plain = type(model).forward

    def mixed(self, *args, **options):
        if self.carried.dtype == torch.float32:
            self.carried = self.carried.flip(1)
        return plain(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", mixed)
    assert any("beside another: max" in claim for claim in failed("sst_v2"))


def test_the_proof_fails_when_passes_hardly_converge(monkeypatch):
    plain = sst_v2.StateDecoder.__init__
    monkeypatch.setattr(
        sst_v2.StateDecoder, "__init__", lambda self, **of: plain(self, **{**of, "share": 0.45})
    )
    assert failed("sst_v2") == ["passes until within 1e-6, over positions"]


def test_a_step_of_latents_that_fails_changes_nothing(monkeypatch):
    system = presets.sst_v2(presets.get("sst_v2").sample(), page_size=16)
    stream, text = system.open(), torch.arange(20)
    system.step({stream: text})
    want = system.step({(fork := system.fork(stream)): text})[fork]
    plain, calls = system.engine.step, []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the fifth token")
        return plain(*args, **options)

    monkeypatch.setattr(system.engine, "step", failing)
    with pytest.raises(RuntimeError):
        system.step({stream: text.flip(0)})
    assert stream.tokens == 20
    torch.testing.assert_close(system.step({stream: text})[stream], want)


def test_the_proof_fails_when_a_level_is_not_conditioned(monkeypatch):
    def flat(self, frames, linear):
        made = [linear(normed(frames, self.backbone.mean, linear), h).argmax(1) for h in self.heads]
        total = sum(book[code] for book, code in zip(self.books, made, strict=True))
        return torch.stack(made, 1), total

    monkeypatch.setattr(mimi_tts.Speaker, "codes", flat)
    assert any("codes that differ" in claim for claim in failed("mimi_tts"))


def test_the_proof_fails_when_books_are_taken_from_the_last(monkeypatch):
    plain = mimi_tts.Speaker.codes

    def upside_down(self, frames, linear):
        heads, books = self.heads.data, self.books.data
        self.heads.data, self.books.data = heads.flip(0), books.flip(0)
        codes, total = plain(self, frames, linear)
        self.heads.data, self.books.data = heads, books
        return codes.flip(1), total

    monkeypatch.setattr(mimi_tts.Speaker, "codes", upside_down)
    assert any("codes that differ" in claim for claim in failed("mimi_tts"))


def test_the_proof_fails_when_a_codec_forgets(monkeypatch):
    plain = mimi_tts.MimiTts._sound

    def forgetful(self, encoded):
        self._state = 0 * self._state
        return plain(self, encoded)

    monkeypatch.setattr(mimi_tts.MimiTts, "_sound", forgetful)
    wrong = failed("mimi_tts")
    assert any("|sample - oracle|" in claim for claim in wrong)
    assert not any("codes" in claim for claim in wrong)


def test_the_proof_fails_when_the_first_byte_waits_for_all(monkeypatch):
    plain = mimi_tts.MimiTts.speak

    def late(self, phones, clock=None):
        parts = list(plain(self, phones, clock))
        yield from (part._replace(at=parts[-1].at) for part in parts)

    monkeypatch.setattr(mimi_tts.MimiTts, "speak", late)
    wrong = failed("mimi_tts")
    assert any("virtual clock" in claim for claim in wrong)
    assert any("real clock" in claim for claim in wrong)


def test_the_proof_fails_when_learning_spills(monkeypatch):
    plain = kv_bottleneck.KvBottleneck.learn

    def spilling(self, x, y):
        made = plain(self, x, y)
        self.model.values += 1e-3
        return made

    monkeypatch.setattr(kv_bottleneck.KvBottleneck, "learn", spilling)
    assert any("did not choose" in claim for claim in failed("kv_bottleneck"))


def test_the_proof_fails_when_another_key_is_taken(monkeypatch):
    plain = ops.assign
    monkeypatch.setattr(ops, "assign", lambda x, c, metric: plain(x, c, metric="dot"))
    assert "codes that differ from the oracle's" in failed("kv_bottleneck")


def test_keys_are_placed_before_values_are_learnt():
    system = presets.kv_bottleneck(presets.get("kv_bottleneck").sample())
    x, y = torch.randn(3, 24), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"learn\): expected frozen keys, got keys that move; fr"):
        system.learn(x, y)
    system.freeze()
    assert system.learn(x, y) == pytest.approx(math.log(6))
    assert system.learn(x, y) < math.log(6)
    with pytest.raises(ValueError, match=r"place\): expected keys that move, got frozen ones"):
        system.place(x)
