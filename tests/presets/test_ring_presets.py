# SPDX-License-Identifier: Apache-2.0
"""Presets of rings: each holds, and its proof fails when the ring does."""

from __future__ import annotations

import pytest
import torch

from headrace import presets
from headrace.presets.causal_net import CausalNet
from headrace.presets.prism import Prism
from headrace.presets.ring_loops import Loop, clip, gap
from headrace.presets.stream_char import Pointer
from headrace.presets.streaming_t2v import Blend
from headrace.streams import Diffusion, Flow, ring_delta, ring_fold
from headrace.streams.ring_kept import Kept
from headrace.streams.ring_recall import Shelf

from ..streams.conftest import one_thread  # noqa: F401

NAMES = [name for name in presets.names() if presets.get(name).kind == "ring"]
ALONE = {"demon", "prism", "rain", "stream_diffusion", "stream_dit", "streaming_diffusion_policy"}
CACHED = [name for name in NAMES if name not in ALONE | {"stream_fm"}]
SHORT = {"motion_stream": {"chunks": 40}}


def checked(name):
    preset = presets.get(name)
    return preset.check(preset.sample(), **SHORT.get(name, {}))


def inputs(name, denoiser):
    """What its oracle takes, ten frames long."""
    if name == "echo_avatar":
        return (torch.randn(115, 6, generator=torch.Generator().manual_seed(0)),), {}
    frames = clip(denoiser, 10)
    if name == "ego_edit":
        return (frames, [torch.ones(4)] * 10), {}
    if name == "stream_char":
        told = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)), [4] * 9, 10
        return told, {}
    if name == "iamflow":
        return (frames, [{"a"}, {"b"}] * 5, [torch.ones(8)] * 10), {}
    if name == "hybrid_forcing":
        return (frames[:6],), {"block": 16}
    if name == "sana_streaming":
        return (frames[:6], [torch.ones(12, 8)] * 6), {}
    if name == "longlive_rag":
        return (frames,), {"top": 1, "local": 2, "guard": 1}
    if name == "context_forcing":
        return (frames,), {"sinks": 1, "slow": 2, "fast": 2}
    if name == "shot_stream":
        return (frames,), {"cuts": (4, 7), "kept": 2, "window": 3}
    return (frames,), {}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_proved(name):
    checks = checked(name)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    against = [check for check in checks if "oracle|" in check.name]
    assert against
    assert all(check.figure > 0 for check in against), against


def failed(name):
    return [check.name for check in checked(name) if not check.passed]


@pytest.mark.parametrize("name", [*sorted(ALONE), "motion_stream"])
def test_the_proof_fails_when_a_step_is_wrong(name, monkeypatch):
    for solver in (Flow, Diffusion):
        plain = solver.clean
        monkeypatch.setattr(
            solver, "clean", lambda self, x, p, a, b, plain=plain: plain(self, x, p, a, 0.99 * b)
        )
    assert any("|value - oracle|" in claim for claim in failed(name))


@pytest.mark.parametrize("name", CACHED)
def test_the_proof_fails_when_the_cache_forgets(name, monkeypatch):
    plain = Kept.then

    def forgetful(self, new, plan, swap):
        kept, out = plain(self, new, plan, swap)
        return kept._replace(window=kept.window[-1:]), out + kept.window[:-1]

    recalled = Shelf.context
    monkeypatch.setattr(Kept, "then", forgetful)
    monkeypatch.setattr(Shelf, "context", lambda *args: recalled(*args)[1:])
    wrong = failed(name)
    for mode in ("exact mode", "torch's products"):
        assert any(f"{mode}: max |value - oracle|" in claim for claim in wrong)


@pytest.mark.parametrize("name", ["sana_streaming", "hybrid_forcing"])
def test_the_proof_fails_when_a_state_is_turned_the_wrong_way(name, monkeypatch):
    plain = ring_fold.turned
    for module in (ring_fold, ring_delta):
        monkeypatch.setattr(module, "turned", lambda x, at, freq: plain(x, -2 * at, freq))
    assert any("|value - oracle|" in claim for claim in failed(name))


def test_the_proof_fails_when_a_segment_begins_elsewhere(monkeypatch):
    plain = Prism.segment

    def other(self, *known):
        made = plain(self, *known)
        self._begin = self._begin.roll(1, 1)
        return made

    monkeypatch.setattr(Prism, "segment", other)
    wrong = failed("prism")
    assert "exact mode: values that differ at the seams" in wrong
    assert any("|value - one long masked run|" in claim for claim in wrong)


def test_the_proof_fails_when_groups_do_not_see_one_another(monkeypatch):
    plain = Loop.ring
    monkeypatch.setattr(
        Loop, "ring", lambda self, *args, **of: plain(self, *args, **{**of, "together": False})
    )
    assert "groups in flight with one that do not see it" in failed("rain")


@pytest.mark.parametrize("name", CACHED)
def test_encoding_anew_is_another_function_once_something_is_evicted(name):
    preset = presets.get(name)
    denoiser = preset.sample()
    told, options = inputs(name, denoiser)
    cached = preset.oracle(denoiser, *told, **options)
    anew = preset.recompute(denoiser, *told, **options)
    assert gap(anew[:1], cached[:1]) < 1e-9
    assert anew.shape == cached.shape
    assert torch.isfinite(anew).all()
    assert gap(anew, cached) > 1e-4


def test_what_is_not_in_the_knobs():
    denoiser = presets.get("demon").sample()
    with pytest.raises(ValueError, match=r"^Ring\(knobs\): expected other knobs, got levels"):
        presets.demon(denoiser, knobs={"levels": (0.5,)})


def test_the_proof_of_convolutions_fails_when_a_state_is_lost(monkeypatch):
    plain = CausalNet.step
    monkeypatch.setattr(CausalNet, "step", lambda net, x, s, *at: plain(net, x, 0 * s, *at))
    assert "chunks of 1: max |value - oracle| over max |oracle|" in failed("stream_fm")
    assert "audio at once or 5 frames at a time: values that differ" in failed("echo_avatar")


def test_what_windows_a_flow_takes():
    net = presets.get("stream_fm").sample()
    with pytest.raises(ValueError, match=r"^stream_fm\(window\): expected a multiple of 4, got 66"):
        presets.stream_fm(net, window=66)
    with pytest.raises(ValueError, match=r"^stream_fm\(net\): expected 130 outputs, got 66"):
        presets.stream_fm(net, window=128)
    assert len(presets.stream_fm(net, window=64).feed(torch.zeros(0))) == 0


def test_words_of_a_pointer():
    pointer = Pointer(torch.eye(3), [1, 2, 1])
    assert [pointer.take(2), pointer.take(3)] == [[0, 1], [1, 2, 2]]
    pointer.say(torch.eye(3)[:1], [2])
    assert pointer.take(3) == [3, 3, 3]
    for frames in ([1], [1, 0, 1]):
        with pytest.raises(ValueError, match=r"^Pointer.say\(frames\): expected 3 numbers from 1"):
            Pointer(torch.eye(3), frames)
    with pytest.raises(ValueError, match=r"^Pointer.take\(words\): expected a text, got none"):
        Pointer(torch.zeros(0, 3), []).take(1)


def test_blends():
    chunks = [torch.full((6, 1), float(i)) for i in range(3)]
    even = Blend(2, seed=None)
    made = torch.cat([even.add(chunk) for chunk in chunks]).flatten()
    third = 1 / 3
    assert made.tolist() == pytest.approx(
        [0, 0, 0, 0, third, 2 * third, 1, 1, 1 + third, 1 + 2 * third, 2, 2]
    )
    assert even.end().flatten().tolist() == [2, 2]
    assert even.end() is None
    taken = set()
    for seed in range(20):
        cut = Blend(2, seed)
        made = torch.cat([cut.add(chunk) for chunk in chunks[:2]]).flatten()
        taken.add(tuple(made[4:6].tolist()))
    assert taken == {(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)}
    with pytest.raises(ValueError, match=r"^Blend.add\(chunk\): expected 8 frames or more, got 6"):
        Blend(4).add(chunks[0])


def test_how_much_of_a_segment_may_be_given():
    denoiser = presets.get("prism").sample()
    for overlap in (-1, 16):
        with pytest.raises(ValueError, match=r"^prism\(overlap\): expected 0 (or more|to 15), got"):
            presets.prism(denoiser, overlap=overlap)
    made = presets.prism(denoiser, overlap=0)
    first, second = made.segment(), made.segment()
    assert not torch.equal(first, second)
    made.close()
