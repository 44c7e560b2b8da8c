# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams import Linear, Polynomial, Real, Recorded, Virtual, Work


def test_virtual_time_jumps_and_costs():
    clock = Virtual(Linear(step=0.5, token=0.25, stream=2.0, seen=0.125, copied=8.0))
    assert clock.read() == 0
    clock.wait(3.0)
    clock.wait(1.0)  # never back
    assert clock.read() == 3.0
    assert clock.spend(Work(tokens=2, streams=1, seen=4, copied=1)) == 3 + 0.5 + 0.5 + 2 + 0.5 + 8
    with pytest.raises(ValueError, match="expected seconds, more than 0, got -1"):
        Virtual(lambda work: -1).spend(Work())


def test_recorded_time_is_what_it_was():
    clock = Recorded([0.0, 0.5, 2.0])
    clock.wait(100.0)
    assert [clock.read(), clock.spend(Work()), clock.read()] == [0.0, 0.5, 2.0]
    with pytest.raises(ValueError, match=r"^Recorded\(readings\): expected a reading, got no more"):
        clock.read()


def test_real_time_begins_at_its_first_reading_and_sleeps_no_longer_than_a_nap():
    clock = Real(nap=0.001)
    assert clock.read() == 0.0
    clock.wait(1000.0)
    assert 0.001 <= clock.read() < 100.0
    clock.wait(0.0)
    assert clock.spend(Work()) > 0


work = st.builds(Work, *(st.integers(0, 1000) for _ in range(4)))


@given(
    terms=st.lists(st.sampled_from([0.0, 1e-4, 3e-3, 0.5]), min_size=5, max_size=5),
    works=st.lists(work, min_size=12, max_size=20, unique=True),
)
def test_a_fit_is_no_worse_than_what_made_the_times(terms, works):
    cost = Linear(*terms)
    steps = [(w, cost(w)) for w in works]
    fitted = Linear.fit(steps)
    scale = max(s for _, s in steps) + 1e-9
    assert max(abs(fitted(w) - s) for w, s in steps) <= 1e-6 * scale
    assert all(t >= 0 for t in vars(fitted).values())


def test_a_fit_has_no_negative_terms():
    steps = [(Work(tokens=n, streams=n % 3), 1.0 - 0.1 * n) for n in range(1, 9)]
    fitted = Linear.fit(steps)
    assert all(t >= 0 for t in vars(fitted).values())
    assert fitted.token == 0
    with pytest.raises(ValueError, match=r"^Linear.fit\(steps\): expected at least one, got none$"):
        Linear.fit([])


def test_polynomials():
    fitted = Polynomial.fit([1, 2, 5, 9], [3 + 2 * n + 0.5 * n * n for n in (1, 2, 5, 9)])
    assert fitted(100) == pytest.approx(3 + 200 + 5000)
    assert Polynomial((1.0, 2.0))(3) == 7
    with pytest.raises(ValueError, match="expected more than 2 different counts, got 2"):
        Polynomial.fit([1, 2, 2], [1, 2, 2])
