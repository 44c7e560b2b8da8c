# SPDX-License-Identifier: Apache-2.0
"""What is kept of a run is right, and stays small however long the run."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.policies import Samples
from headrace.cli.report import compare, estimate
from headrace.cli.track import HUNDRED_K, Histogram, Track


@given(st.lists(st.floats(2e-7, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_histogram_quantile(values, q):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = np.quantile(values, q, method="inverted_cdf")
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.023)


def test_empty_histogram():
    assert Histogram().quantile(0.5) is None


def fill(steps, seed=0):
    """A track of `steps` steps of odd sizes, and what it was told."""
    random = np.random.default_rng(seed)
    track, told, at = Track("sinks-window", 32), [], 0
    for i in range(steps):
        n = int(random.integers(1, 700))
        step = (at, n, n - (i == 0), float(random.random() * n), float(random.random() * 1e-3), 64)
        track.add(*step)
        told.append(step)
        at += n
    return track, told, at


@pytest.mark.parametrize("steps", [1, 7, 900])
def test_sums(steps):
    track, told, end = fill(steps)
    first = [s for s in told if s[0] < HUNDRED_K]
    last = [s for s in told if s[0] >= end - HUNDRED_K]
    made = track.summary()
    assert made["tokens"] == end
    assert made["scored_tokens"] == end - 1
    for name, part in (("first_100k", first), ("last_100k", last)):
        assert made[name]["tokens"] == sum(s[1] for s in part)
        nll = sum(s[3] for s in part) / sum(s[2] for s in part)
        assert made[name]["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    series = made["series"]
    assert series["start"][0] == 0
    assert series["end"][-1] == end
    assert series["start"][1:] == series["end"][:-1]
    mean = sum(math.log(p) * n for p, n in zip(series["perplexity"], series["scored"], strict=True))
    assert math.exp(mean / (end - 1)) == pytest.approx(made["perplexity"], rel=1e-4)
    json.dumps(made, allow_nan=False)


def test_memory_grows_with_the_logarithm():
    def kept(end):
        track = Track("window", 32)
        for start in range(0, end, 10_000):
            track.add(start, 10_000, 10_000, 1.0, 1e-3, 1)
        return len(track.bins), sum(len(b.steps) for b in track.bins), len(track.last.steps)

    bins, steps, last = kept(10_000_000)
    more_bins, more_steps, more_last = kept(100_000_000)
    assert last == more_last == 10
    assert more_bins - bins < 128 * math.log(10) + 10
    assert more_steps < more_bins + 512
    assert steps < bins + 512


@pytest.mark.parametrize("total", [50_000, 400_000, None])
def test_samples(total):
    end = total or 400_000
    runs = []
    for _ in range(2):
        samples, runs_at = Samples(400, total, 3), []
        for start in range(0, end, 2048):
            runs_at += samples.take(start, min(2048, end - start))
        runs.append(runs_at)
    assert runs[0] == runs[1]
    at = runs[0]
    assert at == sorted(set(at))
    assert at[0] > 0
    assert at[-1] < end
    if total:
        assert 300 < len(at) < 500
        assert sum(p >= total - HUNDRED_K for p in at) > 150
    else:
        assert 50 < len(at) < 300


def test_first_token_is_never_sampled():
    assert Samples(10_000_000, 10, 0).take(0, 10) == list(range(1, 10))


def test_compare():
    ours = {1: 1.0, 2: 2.0, 3: 3.0, 9: 50.0}
    theirs = {1: 0.5, 2: 2.0, 3: 2.0, 4: 7.0}
    made = compare(ours, theirs)
    assert made["positions"] == 3
    assert made["difference"] == pytest.approx(0.5)
    assert made["standard_error"] == pytest.approx(0.5 / 3**0.5, rel=1e-5)
    assert compare(ours, theirs, since=2)["positions"] == 2
    assert compare(ours, theirs, since=3) is None


def test_estimate_follows_the_whole_text():
    """The sampled tokens cost 1 nat more than the rest; the estimate must not."""
    track = Track("sinks-window", 32)
    for start in range(0, 64_000, 256):
        track.add(start, 256, 256, 2.0 * 256, 1e-3, 1)
    ours = {p: 3.0 for p in range(100, 64_000, 100)}
    theirs = {p: 2.9 for p in ours}
    made = estimate(track.bins, ours, theirs)
    assert len(made["position"]) == 16
    assert made["perplexity"] == pytest.approx([math.exp(1.9)] * 16, rel=1e-4)
    assert made["low"] == pytest.approx(made["high"], rel=1e-4)
