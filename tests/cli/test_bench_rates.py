# SPDX-License-Identifier: Apache-2.0
"""What a copy moves and a call costs, and that floors count what a result writes."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from headrace import _C, bench
from headrace.bench import rates, timing
from headrace.bench.case import RUN, Case, noise, rms_error
from headrace.cli import main

MOVERS = ("append", "causal_conv", "compact", "compact_inplace", "merge_states", "scatter_back")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("words", [1, 1000, 1 << 16, (1 << 21) + 48])
def test_a_copy_writes_what_it_says(words, threads):
    source = torch.arange(1, words + 1, dtype=torch.float32)
    for copied in (words, words // 2, words // 3, 0):
        target = torch.zeros(words + 64)
        at = source.data_ptr(), words, target.data_ptr(), copied, threads
        assert _C.copy_seconds(*at) > 0
        done = target != 0
        assert copied - 32 <= int(done.sum()) <= copied
        assert torch.equal(target[:words][done[:words]], source[done[:words]])
        assert not done[words:].any()


@pytest.mark.parametrize("op", MOVERS)
def test_the_floor_writes_what_a_result_writes(op, monkeypatch):
    """An op that moves bytes: at most as many are written as read, and all of them count."""
    moved = []
    fake = SimpleNamespace(copy_seconds=lambda *a: moved.append(a))
    monkeypatch.setattr(rates, "_C", fake)
    for case in bench.cases(op, quick=True):
        assert 0 < case.writes <= case.bytes / 2, case.shape
        rates.floor_of(case)()
        _, words, _, copied, _ = moved[-1]
        assert words * 4 == pytest.approx(case.bytes - case.writes, abs=64, rel=1e-3), case.shape
        assert copied * 4 == pytest.approx(case.writes, abs=64, rel=1e-3), case.shape


def test_what_is_only_read_is_not_copied(monkeypatch):
    read = []
    monkeypatch.setattr(rates, "reader", lambda *a: read.append(a))
    rates.floor_of(Case("linear", "", lambda: 0, lambda: (0.0, 1.0), 64.0, 0.0, turns=3))
    assert read == [(64.0, 3, 0.0, None)]


def test_rates_are_told_and_written(monkeypatch, capsys):
    found = rates.measured(1e-3)
    calls = found["empty_call_s"]
    assert 0 < calls["extension"] < calls["op"] < 1e-3
    for name in ("read", "copy"):
        (near, _), (far, _) = found[name]
        assert near < far
        assert all(rate > 1e8 for _, rate in found[name])
    monkeypatch.setattr(bench, "each", lambda *_: [bench.Row(
        "linear", "a shape", 1e-3, "torch", 5e-3, 5e-4, 0.0, 1e-6, True)])  # fmt: skip
    assert main(["bench", "linear", "--json", "r.json"]) == 0
    made = json.loads(Path("r.json").read_text())["rates"]
    first = capsys.readouterr().out.splitlines()[0]
    assert first == rates.line(made)
    assert f"{1e6 * made['empty_call_s']['op']:.1f} us of an op" in first


def test_no_two_rows_of_noise_are_alike():
    """More of it than is drawn: a kernel that takes another row is found."""
    made = noise(3, 5000, 128, dtype=torch.bfloat16)
    assert made.shape == (3, 5000, 128)
    assert made.numel() > RUN
    assert len(made.view(-1, 128).unique(dim=0)) == 15_000
    assert abs(float(made.float().std()) - 1) < 0.01


def test_nothing_and_no_number_are_no_match():
    one = torch.ones(4, dtype=torch.bfloat16)
    assert rms_error(one[:0], one[:0]) == math.inf
    assert rms_error(one, one * torch.nan) == math.inf
    assert rms_error(one * 1.5, one) == rms_error(one * 1.5, one, torch.float32) == 0.5
    assert rms_error(one * 0, one * 0) == 0


def test_a_rate_that_was_not_seen_is_measured_again(monkeypatch):
    """Of a process that was stopped meanwhile."""
    told = iter((0.0, 0.0, 3e9))
    fake = SimpleNamespace(multiply_add_rate=lambda *_: next(told))
    monkeypatch.setattr(timing, "_C", fake)
    assert timing.MultiplyAdds().rate(torch.float32) == 6e9
