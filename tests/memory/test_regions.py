# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import Absolute, InCache, Sink, Window
from headrace.memory import UNLIMITED, Plan, Region

memories = st.builds(
    lambda sinks, window, more: Sink(sinks) + Window(window) + more,
    st.integers(0, 9), st.integers(1, 9) | st.none(),
    st.builds(Sink, st.integers(0, 9)) | st.builds(Window, st.integers(1, 9)),
)  # fmt: skip


def mask(memory, count):
    number = torch.arange(count)
    return memory.keeps(number[:, None], number[None, :])


@given(memories, st.integers(1, 30))
def test_the_plan_says_what_the_definition_says(memory, count):
    plan, seen = memory.plan(), mask(memory, count)
    for t in range(count):
        for j in range(count):
            planned = j <= t and (j < plan.pinned or t - j < plan.reach)
            assert bool(seen[t, j]) == planned
        assert plan.alive(t) == seen[t].sum() - 1  # what the query sees beside itself


@given(memories, st.integers(1, 30))
def test_the_cap_says_what_ranks_say(memory, count):
    plan, seen, number = InCache().place(memory.plan()), mask(memory, count), torch.arange(count)
    distance = InCache().distance(number[:, None], number[None, :], seen)
    for t in range(count):
        for j in range(t + 1):
            if j < plan.pinned:
                assert distance[t, j] == min(t, plan.cap) - j
            elif seen[t, j]:
                assert distance[t, j] == t - j
    assert distance[seen].max() < (plan.pinned + plan.reach if plan.reach < UNLIMITED else count)


def test_absolute_distances():
    number = torch.arange(5)
    distance = Absolute().distance(number[:, None], number[None, :], mask(Window(2), 5))
    assert torch.equal(distance, number[:, None] - number)
    assert Absolute().place(Plan(4, 9, 12)) == Plan(4, 9, UNLIMITED)


def test_a_window_counts_the_query_itself():
    assert mask(Window(2), 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert mask(Sink(1) + Window(1), 3).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert mask(Window(None), 2).tolist() == [[1, 0], [1, 1]]


def test_sums_read_as_they_were_written():
    memory = Sink(4) + Window(252) + Sink(2)
    assert repr(memory) == "Sink(tokens=4) + Window(tokens=252) + Sink(tokens=2)"
    assert memory == Sink(4) + (Window(252) + Sink(2))
    assert isinstance(memory, Region)
    with pytest.raises(TypeError):
        Sink(4) + 3


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: Window(0), ValueError,
         "Window(tokens): expected 1 or more, got 0; the window counts the query itself"),
        (lambda: Window(-3), ValueError,
         "Window(tokens): expected 1 or more, got -3; the window counts the query itself"),
        (lambda: Sink(-1), ValueError, "Sink(tokens): expected 0 or more, got -1"),
        (lambda: Sink(1.5), TypeError, "Sink(tokens): expected a whole number, got 1.5"),
        (lambda: Sink(None), TypeError, "Sink(tokens): expected a whole number, got None"),
        (lambda: Window("16s"), TypeError, "Window(tokens): expected a whole number, got '16s'"),
        (lambda: Window(True), TypeError, "Window(tokens): expected a whole number, got True"),
    ],
)  # fmt: skip
def test_bad_sizes_get_one_line(make, error, told):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == told
