# SPDX-License-Identifier: Apache-2.0
"""Streams through an encoder: bad input, and nothing half applied."""

from __future__ import annotations

import pytest
import torch

from headrace import ops
from headrace.models import Conformer, ConformerConfig
from headrace.streams import Encoder


def made(**options):
    model = Conformer(ConformerConfig(stages=1, taps=3))
    return Encoder(model, **{"chunk": 4, "window": 8, "streams": 2, **options})


def frames(count, seed=0):
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def test_frames_wait_for_a_whole_chunk():
    encoder = made(first=6)
    with encoder.open() as stream:
        assert stream.feed(frames(11)).shape == (0, 32)
        assert (stream.encoded, stream.waiting) == (0, 11)
        assert len(stream.feed(frames(1))) == 6
        assert len(stream.feed(frames(9))) == 4
        assert (stream.encoded, stream.waiting) == (10, 1)
        assert len(stream.finish()) == 0
        assert len(stream.feed(frames(4))) == 0
        assert len(stream.finish()) == 2
    assert encoder.pool.live_pages == 0


def test_a_step_that_fails_changes_nothing(monkeypatch):
    encoder = made()
    stream, other = encoder.open(), encoder.open()
    encoder.step({stream: frames(30), other: frames(3)})
    want = stream.fork().feed(frames(20, 1))
    pages, encoded, waiting = stream.pages, stream.encoded, stream.waiting
    plain, calls = ops.paged_attention, []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second layer")
        return plain(*args, **options)

    monkeypatch.setattr(ops, "paged_attention", failing)
    live = encoder.pool.live_pages
    with pytest.raises(RuntimeError):
        encoder.step({other: frames(9), stream: frames(20, 1)})
    assert (stream.pages, stream.encoded, stream.waiting) == (pages, encoded, waiting)
    assert (other.encoded, other.waiting) == (0, 3)
    assert encoder.pool.live_pages == live
    monkeypatch.undo()
    torch.testing.assert_close(stream.feed(frames(20, 1)), want)


def test_a_stream_holds_so_many_pages_for_ever():
    encoder = made()
    with encoder.open() as stream:
        held = set()
        for i in range(40):
            stream.feed(frames(50, i))
            held.add(len(stream.pages))
        assert max(held) <= encoder.plan.window_pages(encoder.pool.page_size)
    assert encoder.pool.live_pages == 0


@pytest.mark.parametrize("name", ["chunk", "first", "streams"])
def test_sizes(name):
    with pytest.raises(ValueError, match=rf"^Encoder\({name}\): expected 1 or more, got 0"):
        made(**{name: 0})
    with pytest.raises(TypeError, match=rf"^Encoder\({name}\): expected a whole number, got 1.5"):
        made(**{name: 1.5})


def test_bad_input():
    encoder = made()
    stream = encoder.open()
    with pytest.raises(ValueError, match=r"^step\(frames\): expected \[n, 16\], got \[3, 4\]"):
        stream.feed(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"^step\(frames\): expected a tensor, got list"):
        stream.feed([1.0])
    with pytest.raises(ValueError, match=r"^step\(batch\): expected streams of this encoder"):
        made().step({stream: frames(1)})
    with pytest.raises(ValueError, match=r"^open\(adapter\): expected None, got 'x'"):
        encoder.open(adapter="x")
    stream.close()
    with pytest.raises(ValueError, match=r"^step\(stream\): expected an open stream, got a closed"):
        stream.feed(frames(1))


def test_a_pool_that_is_too_small():
    encoder = made()
    streams = [encoder.open() for _ in range(40)]
    with pytest.raises(ValueError, match=r"pool_pages"):
        encoder.step(dict.fromkeys(streams, frames(64)))
    assert encoder.pool.live_pages == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"taps": 17}, "taps"),
        ({"layers": 0}, "layers"),
        ({"head_dim": 3}, "head_dim"),
        ({"stages": -1}, "stages"),
    ],
)
def test_configurations(options, error):
    with pytest.raises(ValueError, match=rf"^ConformerConfig\({error}\): expected"):
        ConformerConfig(**options)
    with pytest.raises(TypeError, match=r"^ConformerConfig\(width\): expected an int, got '8'"):
        ConformerConfig(width="8")
