# SPDX-License-Identifier: Apache-2.0
"""A rule names the finished frames that a frame sees; what the pool cannot hold waits outside."""

import pytest
import torch

from headrace import Ring, Sink
from headrace.streams.ring_chained import chained
from headrace.streams.ring_recall import Recall, Shelf

from .rings import DENOISER, LEVELS, NOISE, clip, constant


class Every(Recall):
    """The newest, and every third before it, newest first, in no order of time."""

    def __init__(self, resident=4, most=100):
        self.resident, self.most = resident, most

    def context(self, number, done, label):
        seen = [j for j in range(number - 1, -1, -3) if j in done][:3]
        return [(j, 2 * (number - j)) for j in seen]


def made(rule, **options):
    return Ring(DENOISER, LEVELS, depth=1, recall=rule, **options)


def run(ring, frames):
    done = []
    for frame in frames:
        done += [f.frame for f in [*ring.tick(frame), *ring.drain()]]
    return torch.stack(done)


def oracle(frames):
    def context(number, done):
        return [(j, 2 * (number - j)) for j in list(range(number - 1, -1, -3))[:3]]

    return chained(DENOISER, frames, NOISE, constant(), context=context, span=2)


@pytest.mark.parametrize("resident", [4, 5, 100])
def test_it_equals_the_oracle_whatever_lies_in_the_pool(resident):
    with made(Every(resident), span=2) as ring:
        got = run(ring, clip(12))
        want = oracle(clip(12))
        assert 0 < (got - want).abs().max() < 2e-5 * want.abs().max()
        held = len(ring._caches.shelf.done)
        assert (ring._caches.shelf.parked, held) == (max(0, 11 - resident), 12)
        assert ring.pool.live_pages <= ring.most_pages
        assert (ring.moved_bytes > 0) == (resident < 11)
    assert (ring._caches.shelf.parked, ring._caches.shelf.done) == (0, {})


def test_the_same_bits_however_little_the_pool_holds():
    with made(Every(4)) as few, made(Every(100)) as many:
        assert torch.equal(run(few, clip(12)), run(many, clip(12)))


def test_what_is_let_go_is_gone():
    with made(Every(4, most=5)) as ring:
        run(ring, clip(12))
        # The one that is not written yet comes beside them.
        assert sorted(ring._caches.shelf.done) == [6, 7, 8, 9, 10, 11]
        assert ring.pool.live_pages == 4 * DENOISER.config.layers


@pytest.mark.parametrize(
    ("resident", "seen", "got"),
    [(4, [(7, 1)], r"\[7\]"), (1, [(0, 1)], "1"), (2, [(0, 1)] * 2, "2")],
)
def test_a_rule_that_names_what_is_not_there(resident, seen, got):
    class Wrong(Every):
        def context(self, number, done, label):
            return seen if label == "wrong" else []

    with made(Wrong(resident)) as ring:
        run(ring, clip(1))
        before = ring.now, ring.pool.live_pages
        with pytest.raises(ValueError, match=rf"^Ring.tick\(recall\): .* got {got}"):
            ring.tick(clip(1)[0], label="wrong")
        assert (ring.now, ring.pool.live_pages, ring.flying) == (*before, ())
        run(ring, clip(1))


def test_an_error_in_a_step_leaves_all_as_it_was(monkeypatch):
    frames = clip(12)
    with made(Every(4)) as ring, made(Every(4)) as other:
        run(ring, frames[:11])
        run(other, frames[:11])
        shelf = ring._caches.shelf
        state = shelf.parked, sorted(shelf.done), ring.pool.live_pages, shelf.moved_bytes
        forward = type(DENOISER).forward

        def fails(*args, **options):
            forward(*args, **options)
            raise RuntimeError("no")

        monkeypatch.setattr(type(DENOISER), "forward", fails)
        with pytest.raises(RuntimeError, match="no"):
            ring.tick(frames[11])
        assert state == (shelf.parked, sorted(shelf.done), ring.pool.live_pages, shelf.moved_bytes)
        monkeypatch.undo()
        assert torch.equal(run(ring, frames[11:]), run(other, frames[11:]))


def test_the_proof_would_fail_with_another_frame(monkeypatch):
    plain = Shelf.pages
    monkeypatch.setattr(Shelf, "pages", lambda self, n, layer: plain(self, min(self._pages), layer))
    with made(Every(100), span=2) as ring:
        got, want = run(ring, clip(8)), oracle(clip(8))
    assert (got - want).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"memory": Sink(1)}, "memory None"),
        ({"depth": 2}, "depth 1"),
        ({"together": True}, "together False"),
        ({"guidance": "full"}, "guidance none or self"),
    ],
)
def test_what_a_rule_does_not_go_with(options, wanted):
    told = {"depth": 1, "cache": "clean", "recall": Every(), **options}
    with pytest.raises(NotImplementedError, match=rf"^Ring\(recall\): expected one of {wanted}"):
        Ring(DENOISER, LEVELS, **told)


def test_a_shot_cannot_be_cut_where_a_rule_decides():
    with made(Every()) as ring, pytest.raises(NotImplementedError, match=r"^Ring.tick\(cut\)"):
        ring.tick(clip(1)[0], cut=3)
