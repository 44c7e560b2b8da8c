# SPDX-License-Identifier: Apache-2.0
"""Whatever optional arguments a call leaves out, its Triton kernels compile.

Triton compiles both ways of a condition that only the device knows, so an argument that is not
there may be named behind conditions on its absence alone. The interpreter does not see that. Here
the first step of the compiler does: it reads every form, and no more."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 turns the compiler off", allow_module_level=True)

from headrace import ops
from tests.ops import wrong
from tests.ops.samples import SAMPLES

from .recording import described, lowered, recorder


def calls(op):
    """What makes the arguments of a call, again and again."""
    others = [make for name, make in wrong.CALLS.items() if name.split(" ")[0] == op]
    return [*SAMPLES[op], *others]


def bound(op, make):
    args, kwargs = make()
    return ops.specs()[op].bind(*args, **kwargs)


def choices(op, given):
    """What may be left out: nothing, one, all but one, all of what is optional."""
    schema = getattr(torch.ops.headrace, op).default._schema
    optional = {a.name for a in schema.arguments if a.has_default_value() and not a.default_value}
    there = [n for n, x in given.items() if n in optional and isinstance(x, torch.Tensor)]
    yield ()
    yield from ((name,) for name in there)
    yield from (tuple(n for n in there if n != name) for name in there)
    yield tuple(there)


TRITON = sorted(op for op, spec in ops.specs().items() if "triton" in spec.gpu)


@pytest.mark.parametrize("op", TRITON)
def test_every_choice_of_options_is_valid(op):
    known = set()
    with recorder() as record:
        for make in calls(op):
            for absent in choices(op, bound(op, make)):
                for fn, args, kwargs in launches(record, op, make, absent):
                    if (form := described(fn, args, kwargs)) not in known:
                        known.add(form)
                        lowered(fn, args, kwargs)
    assert known


def launches(record, op, make, absent):
    """Of a call without some of its arguments; none where the others do not go without them."""
    given = bound(op, make) | dict.fromkeys(absent)
    try:
        return record(lambda: getattr(torch.ops.headrace, op)(**given))
    except (TypeError, ValueError, NotImplementedError) as error:
        if not str(error).startswith(f"{op}("):
            raise
        return []
