# SPDX-License-Identifier: Apache-2.0
"""Each gate against its published rule, written out plainly."""

from __future__ import annotations

import copy
import re
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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

numbers = st.lists(st.floats(-2, 2, width=32), max_size=40)


def fires(gate, signals):
    return [gate(s) for s in signals]


@given(numbers, st.floats(-1, 3))
def test_head_sum_now(scores, threshold):
    got = fires(HeadSum(threshold), [Signal(scores=(s, 0.25)) for s in scores])
    assert got == [s + 0.25 > threshold for s in scores]


@given(st.lists(st.integers(0, 8), max_size=40))
def test_head_sum_running_begins_again_when_it_fires(scores):
    got, total, want = fires(HeadSum(10, "running"), [Signal(scores=[s]) for s in scores]), 0, []
    for s in scores:
        total += s
        want.append(total > 10)
        total = 0 if total > 10 else total
    assert got == want


@given(st.lists(st.integers(-9, 9), max_size=40))
def test_head_sum_z(scores):
    got = fires(HeadSum(1.5, "z", recent=5), [Signal(scores=[s]) for s in scores])
    for i, s in enumerate(scores):
        before = scores[max(0, i - 5) : i]
        if len(before) < 2:
            assert not got[i]
            continue
        edge = statistics.fmean(before) + 1.5 * statistics.pstdev(before)
        if abs(s - edge) > 1e-9:
            assert got[i] == (s > edge)


@pytest.mark.parametrize("silent", [0.1, 0.5, 0.724, 0.726, 0.99])
def test_token_prob_is_the_rule_of_videollm_online(silent):
    logits = torch.tensor([silent, (1 - silent) * 0.9, (1 - silent) * 0.1]).log()
    zeroed = logits.exp()
    if zeroed[0] < 0.725:
        zeroed[0] = 0
    assert TokenProb(0)(Signal(logits=logits)) == (int(zeroed.argmax()) != 0)
    assert not TokenProb(0, threshold=0.0)(Signal(logits=torch.tensor([1.0, 0.0])))
    assert TokenProb(0, threshold=0.0)(Signal(logits=torch.tensor([0.0, 1.0])))


def test_wait_k_reads_k_then_alternates():
    gate, read, written, said = WaitK(3), 0, 0, []
    while written < 5:
        if gate(Signal(read=read, written=written)):
            written += 1
            said.append("w")
        else:
            read += 1
            said.append("r")
    assert "".join(said) == "rrrwrwrwrwrw"
    gate.ended = True
    assert gate(Signal(read=3, written=99))


def test_ppl_rise():
    gate = PplRise(1.03)
    assert gate(Signal())  # nothing has been said yet
    gate.born = 10.0
    assert fires(gate, [Signal(perplexity=p) for p in (9.0, 10.3, 10.31, 12.0)]) == [
        False, False, True, True,
    ]  # fmt: skip


@given(st.lists(st.floats(0, 1), max_size=30))
def test_scene_cut_is_a_local_minimum_told_one_tick_later(dropped):
    got = fires(SceneCut(), [Signal(dropped=d) for d in dropped])
    for i in range(len(dropped)):
        valley = i >= 2 and dropped[i - 2] > dropped[i - 1] < dropped[i]
        assert got[i] == valley


def test_scene_cut_has_a_depth():
    ratios = [Signal(dropped=d) for d in (0.9, 0.8, 0.95)]
    assert fires(SceneCut(0.05), ratios) == [False, False, True]
    assert fires(SceneCut(0.12), ratios) == [False, False, False]


def test_every_on_query_and_marker():
    assert fires(Every(3), [Signal()] * 7) == [False, False, True] * 2 + [False]
    assert fires(OnQuery(), [Signal(query=True), Signal()]) == [True, False]
    tails = [(1, 2), (2, 3), (9, 2, 3), (3,), ()]
    assert fires(Marker((2, 3)), [Signal(tail=t) for t in tails]) == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_a_copy_goes_on_from_the_same_moment():
    gate = HeadSum(10, "running")
    gate(Signal(scores=[6]))
    other = copy.deepcopy(gate)
    assert gate(Signal(scores=[5]))
    assert other(Signal(scores=[5]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: HeadSum(1)(Signal()), "HeadSum(signal): expected one with scores, got none"),
        (lambda: TokenProb(1)(Signal()), "TokenProb(signal): expected one with logits"),
        (lambda: TokenProb(9)(Signal(logits=torch.zeros(3))), "TokenProb(token): expected a token"),
        (lambda: SceneCut()(Signal()), "SceneCut(signal): expected one with dropped"),
        (lambda: WaitK(0), "WaitK(k): expected 1 or more, got 0"),
        (lambda: Every(0), "Every(ticks): expected 1 or more"),
        (lambda: HeadSum(1, "mean"), "HeadSum(rule): expected now, running or z"),
        (lambda: TokenProb(1, 2.0), "TokenProb(threshold): expected 0 to 1"),
        (lambda: PplRise(0.5), "PplRise(ratio): expected 1 or more"),
        (lambda: Marker(()), "Marker(tokens): expected at least one token"),
    ],
)
def test_a_mistake_gets_one_line(call, says):
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        call()
