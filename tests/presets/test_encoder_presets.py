# SPDX-License-Identifier: Apache-2.0
"""Presets of encoders and convolutions: their proofs fail when a cache forgets."""

from __future__ import annotations

import pytest
import torch

from headrace import ops, presets
from headrace.presets.encoding import chunked, gap
from headrace.streams import Encoder, encoder
from headrace.streams.encoder_stream import EncoderStream

from ..streams.conftest import one_thread  # noqa: F401
from .nets import failed, stream_innc


@pytest.mark.parametrize("name", ["stateful_conformer", "careless_whisper"])
def test_the_proof_fails_when_the_window_is_forgotten(name, monkeypatch):
    plain = encoder._rows
    monkeypatch.setattr(encoder, "_rows", lambda t, start, stop: plain(t, start + 1, stop))
    assert any("oracle|" in claim for claim in failed(name))


def test_the_proof_fails_when_the_look_ahead_is_forgotten(monkeypatch):
    plain = encoder._rows
    monkeypatch.setattr(encoder, "_rows", lambda t, start, stop: plain(t, start, stop - 1))
    assert any("1040 ms, 3 at a time: max" in claim for claim in failed("stateful_conformer"))


def test_the_proof_fails_when_a_convolution_forgets(monkeypatch):
    plain = ops.causal_conv

    def forgetful(x, kernel, bias, state, *more, **options):
        return plain(x, kernel, bias, 0 * state, *more, **options)

    monkeypatch.setattr(ops, "causal_conv", forgetful)
    assert any("oracle|" in claim for claim in failed("stateful_conformer"))


@pytest.mark.parametrize("name", ["stateful_conformer", "careless_whisper"])
def test_the_proof_fails_when_a_stride_forgets(name, monkeypatch):
    plain = EncoderStream.__init__

    def forgetful(self, *args, **options):
        plain(self, *args, **options)
        self._state.cells = [cell + 1 for cell in self._state.cells]

    monkeypatch.setattr(EncoderStream, "__init__", forgetful)
    assert any("oracle|" in claim for claim in failed(name))


def test_the_proof_fails_when_streams_share_an_adapter(monkeypatch):
    plain = Encoder.open
    monkeypatch.setattr(Encoder, "open", lambda self, adapter=None: plain(self, adapter="rank 2"))
    wrong = failed("careless_whisper")
    assert any("one step: max" in claim for claim in wrong)
    assert not any("rank 2" in claim for claim in wrong)


def test_chunks_and_what_they_see():
    seen = chunked(7, 2, 3, first=3)
    assert [[j for j in range(7) if seen[i, j]] for i in range(7)] == [
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [2, 3, 4, 5, 6],
        [2, 3, 4, 5, 6],
    ]
    assert gap(torch.zeros(2, 1), torch.ones(3, 1)) == float("inf")


@pytest.mark.parametrize("name", ["stateful_conformer", "careless_whisper"])
def test_encoding_anew_is_another_function_later(name):
    preset = presets.get(name)
    model = preset.sample()
    frames = torch.randn(800, 16, generator=torch.Generator().manual_seed(1))
    cached, anew = preset.oracle(model, frames, window=20), None
    anew = preset.recompute(model, frames, window=20)
    assert gap(anew[:14], cached[:14]) < 1e-9
    assert gap(anew, cached) > 1e-3


def test_what_a_conformer_takes():
    model = presets.get("stateful_conformer").sample()
    with pytest.raises(ValueError, match=r"look_ahead\): expected a multiple of 80 ms, got 100"):
        presets.stateful_conformer(model, look_ahead=100)


def test_the_proof_fails_when_a_stack_forgets(monkeypatch):
    plain = stream_innc.StreamINNC.feed

    def forgetful(self, samples):
        out = plain(self, samples)
        self._past[-1] = 0 * self._past[-1]
        return out

    monkeypatch.setattr(stream_innc.StreamINNC, "feed", forgetful)
    assert any("oracle|" in claim for claim in failed("stream_innc"))


def test_the_proof_fails_when_a_bound_leaves_a_pool_out(monkeypatch):
    plain = stream_innc.bound
    monkeypatch.setattr(stream_innc, "bound", lambda net, x, shift: 0.05 * plain(net, x, shift))
    assert failed("stream_innc") == ["windows between two pools: error over its bound"]


def test_a_window_that_is_not_whole():
    system = presets.stream_innc(presets.get("stream_innc").sample())
    system.feed(torch.zeros(255, 3))
    with pytest.raises(ValueError, match=r"output\): expected a whole window, got 31 features of"):
        system.output()
    with pytest.raises(ValueError, match=r"ConvStack\(window\): expected a multiple of 4, got 6"):
        stream_innc.ConvStack((1, 1), ((2, 1, 4),), 6, 1)
