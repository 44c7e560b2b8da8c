# SPDX-License-Identifier: Apache-2.0
"""Calls read in compiled code: what they take, give and refuse is what the checks in Python say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import Parameter

from headrace import _C, ops
from headrace.contract import Arg
from headrace.ops import registry
from tests.ops.samples import SAMPLES

OPS = [
    "append", "append_absorb", "attention", "attention_mass", "causal_conv", "frame_delta_rule",
    "gated_delta_rule", "hstu_attention", "linear_attention", "paged_attention",
    "pooled_block_mask",
]  # fmt: skip
NUMBERS = {
    "int": (-1, 0, 1, 2, 7, 2**40, 2**63, 1.0, True, None),
    "float": (float("nan"), float("inf"), -1.0, 0.0, 0.5, 2.0, 1, None, "1"),
    "bool": (True, False, 1, None),
    "str": ("max", "sum", "", None, 1),
}


def changed(x):
    """Tensors like x, of which most do not fit."""
    yield from (x.double(), x.float(), x.half(), x.bfloat16(), x.to(torch.int32), x.to(torch.int8))
    yield from (x[None], x.clone().unsqueeze(-1), torch.zeros((), dtype=x.dtype), x.to("meta"))
    yield from (Parameter(x.clone(), requires_grad=False), x.to_sparse() if x.dim() else x)
    if x.is_floating_point() and x.element_size() > 1:
        yield from (x.clone().requires_grad_(), torch._neg_view(-x))
    elif x.dtype in (torch.int32, torch.int64):
        yield from (x + 1, x - 1, x.flip(0))
    for axis in range(x.dim()):
        size = x.shape[axis]
        yield from (x.narrow(axis, 0, n) for n in {0, 1, size - 1} if 0 <= n < size)
        yield torch.cat([x, x], axis)
        yield torch.stack([x, x], -1).movedim(-1, axis).select(axis, 0)  # the same, further apart
        yield torch.stack([x, x], -1)[..., 0]
        yield x.transpose(axis, -1).contiguous().transpose(axis, -1)
        if size > 16:
            yield x.narrow(axis, 0, 16)


def copied(given):
    """The tensors that a call might write, anew."""

    def copy(x):
        if type(x) is Parameter:
            return Parameter(x.detach().clone(), requires_grad=False)
        return x.clone() if type(x) is torch.Tensor and not x.requires_grad else x

    return {name: copy(x) for name, x in given.items()}


def outcome(name, given):
    """What a call gives, and leaves where it writes; or the error."""
    given = copied(given)
    try:
        first, *rest = ops.specs()[name].parameters
        got = registry.call(name, given[first], **{n: given[n] for n in rest})
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
    written = [given[n] for n in ops.specs()[name].mutates if given.get(n) is not None]
    return [*(got if isinstance(got, tuple) else [got]), *written]


def same(a, b):
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and a == b
    if a.is_meta or a.layout != torch.strided:
        return a.shape == b.shape
    bits = lambda x: x.detach().reshape(-1).view(torch.uint8)  # noqa: E731
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def variants(name, given):
    """Calls of which one argument is another."""
    kinds = registry._kinds(ops.specs()[name])
    for parameter, (kind, _) in kinds.items():
        x = given[parameter]
        others = NUMBERS.get(kind) or (None, 1.0, "x", *(() if x is None else changed(x)))
        for other in others:
            yield parameter, {**given, parameter: other}


def samples(name):
    spec = ops.specs()[name]
    for make in SAMPLES[name]:
        args, kwargs = make()
        yield spec.bind(*args, **kwargs)


@pytest.mark.parametrize("name", OPS)
def test_an_error_is_the_same_read_here_or_there(name, monkeypatch):
    errors = set()
    for given in samples(name):
        for parameter, one in variants(name, given):
            got = outcome(name, one)
            with monkeypatch.context() as patch:
                patch.setitem(registry._DIRECT, name, lambda args, kwargs: registry.UNUSUAL)
                want = outcome(name, one)
            assert len(got) == len(want), (parameter, one[parameter])
            assert all(map(same, got, want)), (parameter, one[parameter], got[0], want[0])
            if isinstance(got[0], str):
                errors.add(got[0].split(":")[1])
    named = {error for error in errors if error.startswith(f" {name}(")}
    assert len(named) >= len(ops.specs()[name].args)  # of most arguments, in several ways


def test_arguments_are_those_of_the_schema():
    spec = ops.specs()["append"]
    with pytest.raises(ValueError, match="expected arguments and results k, v, k_pages"):
        _C.direct("append", [], [], 0, [], {})
    assert [a.name for a in spec.args if isinstance(a, Arg)] == list(spec.parameters)
    with pytest.raises(IndexError):
        _C.direct("no_such_op", [], [], 0, [], {})
    with pytest.raises(TypeError, match="tuple"):
        registry._DIRECT["append"]([], {})


WITHOUT = """
import sys
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None
from headrace.ops import registry
from tests.test_compiled import OPS, digest, outcome, samples
for name in OPS:
    given = next(samples(name))
    assert registry._DIRECT[name]((), given) is registry.UNUSUAL
    print(name, digest(outcome(name, given)))
"""


def digest(tensors):
    return sum(
        int(x.reshape(-1).view(torch.uint8).to(torch.int64).mul(i + 1).sum())
        for i, x in enumerate(tensors)
        if isinstance(x, torch.Tensor)
    )


def test_without_the_table_of_dlpack_the_bits_are_the_same():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True,
        cwd=__file__.rsplit("/", 2)[0],
    )  # fmt: skip
    want = [f"{name} {digest(outcome(name, next(samples(name))))}" for name in OPS]
    assert run.stdout.splitlines() == want
