# SPDX-License-Identifier: Apache-2.0
"""Values that an op cannot take are refused by every backend in the same words."""

from __future__ import annotations

import pytest
import torch

import headrace
from headrace import tables
from tests.ops import compare, wrong

IDS = [f"{name}: {arg} {at}, case {i}" for i, (name, arg, at, _) in enumerate(wrong.WRONG)]


def refused(op, given):
    """What is said of a call, which leaves all that it would write as it was."""
    kept = {n: x.clone() for n, x in given.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(ValueError, match=rf"^{op}\(\w+\): expected .*, got ") as raised:
        getattr(torch.ops.headrace, op)(**given)
    for name, x in kept.items():
        assert compare.same_bits(given[name], x), name
    return str(raised.value)


@pytest.mark.parametrize(("name", "arg", "at", "value"), wrong.WRONG, ids=IDS)
def test_wrong_values_are_refused_in_the_words_of_the_cpu(name, arg, at, value):
    op, given = wrong.called(name)
    wrong.spoil(given, arg, at, value)
    told = refused(op, given)
    assert told.startswith(f"{op}({arg})")
    with headrace.use_backend("reference"):
        assert refused(op, given) == told
    for backend in ("auto", "triton", "cuda"):
        with headrace.debug(), headrace.use_backend(backend):
            assert refused(op, given) == told, backend


@pytest.mark.parametrize("name", wrong.CALLS)
def test_right_values_are_not(name):
    op, given = wrong.called(name)
    for backend in ("auto", "reference"):
        with headrace.use_backend(backend):
            getattr(torch.ops.headrace, op)(**given)
    tables.check(op, given)


def test_every_table_is_spoiled():
    """Each argument of whole numbers that says where something is has a case above."""
    free = {"q_pos", "q_order", "offset", "count", "evicted", "target"}  # any number will do
    for name in wrong.CALLS:
        op, given = wrong.called(name)
        whole = {
            n
            for n, x in given.items()
            if isinstance(x, torch.Tensor) and x.dtype in (torch.int32, torch.int64)
        }
        assert whole - free <= {arg for case, arg, *_ in wrong.WRONG if case.split(" ")[0] == op}
