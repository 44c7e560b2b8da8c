# SPDX-License-Identifier: Apache-2.0
"""Streams with planted events: every gate decides as its published rule does, and finds them.

The rules are written as the released loops have them, over the same streams.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Window, wrap
from headrace.filters import PreviousFrame
from headrace.presets.watching import watch
from headrace.streams import (
    Every,
    HeadSum,
    Marker,
    OnQuery,
    PplRise,
    SceneCut,
    Signal,
    TokenProb,
    WaitK,
)

FRAMES = 30
events = st.sets(st.integers(2, FRAMES - 2), max_size=8)
SILENCE = 0


class Planted:
    """Says `SILENCE` by a chance that the last token plants: v / 255 after token v, below 0.5 the
    rest is for token 7."""

    config = SimpleNamespace(vocab=256, layers=1, kv_heads=1, head_dim=16)
    inv_freq = torch.ones(8, dtype=torch.float64)

    def __call__(self, tokens, attend, linear=None):
        logits = torch.full((len(tokens), 256), -20.0)
        chance = tokens.float().clamp(1, 254) / 255
        logits[:, SILENCE], logits[:, 7] = chance.log(), (1 - chance).log()
        return logits

    def sink_logits(self, layer):
        return None


@settings(max_examples=15, deadline=None)
@given(events, st.sampled_from([0.3, 0.725, 0.9]), st.data())
def test_token_prob_fires_at_the_planted_frames(at, threshold, data):
    """As the loop of VideoLLM-online: below the threshold the chance counts as 0, then argmax."""
    quiet = int(255 * max(threshold, 0.5)) + 10
    low = data.draw(st.integers(1, int(255 * threshold) - 1))
    last = [low if i in at else min(quiet, 254) for i in range(FRAMES)]
    frames = [torch.tensor([9, 9, value]) for value in last]
    with wrap(Planted(), memory=Window(None), pool_pages=32, exact=False) as engine:
        gate = TokenProb(SILENCE, threshold)
        seen = watch(engine.open(), frames, gate, silence=SILENCE, longest=2, forget=True)
    want = []
    for value in last:
        chances = Planted()(torch.tensor([value]), None)[0].softmax(-1)
        if chances[SILENCE] < threshold:
            chances[SILENCE] = 0
        want.append(int(chances.argmax()) != SILENCE)
    assert seen.fired == want == [i in at for i in range(FRAMES)]


def mmduet(scores, *, now=None, total=None, z=None, first=0, recent=0):
    """The released loop over the sum of both heads per frame; exactly one of now, total, z."""
    kept, running, fired = [], 0.0, []
    for informative, relevance in scores:
        if z is not None:
            edge = 9.0 if len(kept) < first else np.mean(kept) + z * np.std(kept)
        score = informative + relevance
        kept = [*kept, score][-recent:] if recent else [*kept, score]
        running += score
        if total is not None:
            fired.append(running > total)
            running = 0.0 if fired[-1] else running
        else:
            fired.append(score > (now if z is None else edge))
    return fired


noise = st.lists(st.integers(0, 20), min_size=FRAMES, max_size=FRAMES)


@given(events, noise, noise)
def test_head_sum_fires_at_the_planted_frames(at, one, two):
    scores = [
        (0.45 + 0.001 * b, 0.9) if i in at else (0.01 * a, 0.002 * b)
        for i, (a, b) in enumerate(zip(one, two, strict=True))
    ]
    signals = [Signal(scores=s) for s in scores]
    got = [HeadSum(0.7)(s) for s in signals]
    assert got == mmduet(scores, now=0.7) == [i in at for i in range(FRAMES)]
    gate = HeadSum(2.5, "running")
    assert [gate(s) for s in signals] == mmduet(scores, total=2.5)
    gate = HeadSum(1.5, "z", recent=10, first=4)
    want = mmduet(scores, z=1.5, first=4, recent=10)
    for i, s in enumerate(signals):
        edge = [sum(x) for x in scores[max(0, i - 10) : i]]
        tight = len(edge) > 1 and abs(sum(scores[i]) - np.mean(edge) - 1.5 * np.std(edge)) < 1e-9
        assert gate(s) == want[i] or tight


@given(events, st.sampled_from([1.03, 1.04]))
def test_ppl_rise_speaks_at_the_planted_changes(at, factor):
    """LiveStar's loop: the standing caption is scored after each frame, and said anew if it fits
    less well than at its birth, by the factor."""

    def perplexity(caption, frame):
        scene = sum(cut <= frame for cut in at)
        return 5.0 + 0.1 * (frame % 2) + (0 if caption == scene else 2.0)

    def released():
        last, threshold, fired = 0, perplexity(0, 0), [True]
        for frame in range(1, FRAMES):
            fired.append(perplexity(last, frame) > threshold * factor)
            if fired[-1]:
                last = sum(cut <= frame for cut in at)
                threshold = perplexity(last, frame)
        return fired

    gate, caption, fired = PplRise(factor), None, []
    for frame in range(FRAMES):
        shown = None if caption is None else perplexity(caption, frame)
        fired.append(gate(Signal(perplexity=shown)))
        if fired[-1]:
            caption = sum(cut <= frame for cut in at)
            gate.born = perplexity(caption, frame)
    assert fired == released() == [i == 0 or i in at for i in range(FRAMES)]


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(1, 9).map(lambda i: 3 * i), max_size=6))
def test_scene_cut_fires_one_frame_after_the_planted_cuts(at):
    """Patches of frames whose scene changes at the cuts, dropped where they are as before."""
    draw, ratios, scene = torch.Generator().manual_seed(0), [], 0
    keep = PreviousFrame(threshold=0.9)
    pictures = torch.randn(FRAMES, 12, 16, generator=draw)
    for i in range(FRAMES):
        scene = i if i in at else scene
        decision = keep(pictures[scene] + 1e-3 * torch.randn(12, 16, generator=draw))
        ratios.append(float(decision.dropped()))
    gate = SceneCut(depth=0.2)
    fired = [gate(Signal(dropped=ratio)) for ratio in ratios]
    valleys = [
        0 < i < FRAMES - 1 and ratios[i - 1] - r > 0.2 and ratios[i + 1] - r > 0.2
        for i, r in enumerate(ratios)
    ]
    assert fired[1:] == valleys[:-1]
    assert [i - 1 for i, on in enumerate(fired) if on] == sorted(at)


@given(events, st.integers(1, 3))
def test_marker_fires_at_the_planted_ends_however_they_are_cut(at, size):
    marker = list(range(90, 90 + size))
    text = [t for i in range(FRAMES) for t in ([1, 2, *marker] if i in at else [1, 90, 3])]
    gate = Marker(marker)
    fired = [i for i in range(len(text)) if gate(Signal(tail=text[: i + 1]))]
    plain = "".join(map(chr, text))
    mark = "".join(map(chr, marker))
    assert fired == [i for i in range(len(text)) if plain[: i + 1].endswith(mark)]
    assert size == 1 or len(fired) == len(at)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 5))
def test_wait_k_writes_as_many_words_as_have_come(arrivals, k):
    """StreamUni's count: words of the source, less those written, less k, and one."""
    gate, read, written, wrote = WaitK(k), 0, 0, []
    for come in arrivals:
        read += come
        due = gate.due(Signal(read=read, written=written))
        assert due == max(0, read - written - k + 1)
        assert gate(Signal(read=read, written=written)) == (due > 0)
        written += due
        wrote.append(due)
    assert written == max(0, read - k + 1)


@given(st.lists(st.floats(0.05, 1.4), min_size=1, max_size=40), st.sampled_from([0.5, 1.0, 2.0]))
def test_every_second_fires_once_in_each_that_a_tick_falls_into(gaps, seconds):
    times = np.cumsum(gaps)
    gate, fired = Every(seconds=seconds), []
    fired = [gate(Signal(time=float(t))) for t in times]
    want, last = [], 0
    for t in times:
        want.append(int(t // seconds) != last)
        last = int(t // seconds)
    assert fired == want
    with pytest.raises(ValueError, match=r"^Every\(ticks\): expected ticks or seconds"):
        Every()
    with pytest.raises(ValueError, match=r"^Every\(seconds\): expected more than 0, got 0"):
        Every(seconds=0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, FRAMES - 2), max_size=8))
def test_queries_are_answered_as_the_released_queues_do(at):
    """Two queues by video time: a query of the time of a frame is answered after that frame."""
    frames, queries, released = deque(range(FRAMES)), deque(sorted(at)), []
    while frames:
        if queries and frames[0] > queries[0]:
            released.append(queries.popleft())
            continue
        time = frames.popleft()
        if queries and time >= queries[0]:
            released.append(queries.popleft())
    with wrap(Planted(), memory=Window(None), pool_pages=32, exact=False) as engine:
        seen = watch(
            engine.open(),
            [torch.tensor([9, 250])] * FRAMES,
            OnQuery(),
            silence=SILENCE,
            longest=1,
            queries={i: [torch.tensor([9])] * at.count(i) for i in at},
        )
    assert [answer.frame for answer in seen.answers] == released == sorted(at)
    assert [i for i, fired in enumerate(seen.fired) if fired] == sorted(set(at))


def test_the_z_rule_is_silent_at_first():
    gate = HeadSum(0.0, "z", recent=8, first=5)
    fired = [gate(Signal(scores=[float(i)])) for i in range(9)]
    assert fired == [False] * 5 + [True] * 4
    with pytest.raises(ValueError, match=r"^HeadSum\(first\): expected at most recent, 4, got 5"):
        HeadSum(0.0, "z", recent=4, first=5)
