# SPDX-License-Identifier: Apache-2.0
"""Calls read in compiled code: what they take, give and refuse is what the checks in Python say."""

from __future__ import annotations

import functools
import inspect
import itertools
import subprocess
import sys

import pytest
import torch
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import headrace
from headrace import _C, ops
from headrace.contract import Arg
from headrace.ops import registry
from tests import warm
from tests.direct import IN_ORDER, UNUSUAL, direct
from tests.ops.samples import SAMPLES

OPS = sorted(ops.specs())
NUMBERS = {
    "int": (-1, 0, 1, 2, 7, 2**40, 2**63, 1.0, True, None),
    "float": (float("nan"), float("inf"), -1.0, 0.0, 0.5, 2.0, 1, None, "1"),
    "bool": (True, False, 1, None),
    "str": ("max", "sum", "dot", "l2", "each", "group", "flat", "quota", "otsu", "", None, 1),
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


def ways(name):
    """Of a call of an op: past torch's dispatcher where it may, and through it."""
    through = functools.partial(registry.call, name)

    def past(*values):
        out = IN_ORDER[name](*values)
        return through(*values) if out is UNUSUAL else out

    return past, through


def outcome(name, given, way):
    """What a call gives, and leaves where it writes; or the error."""
    given = copied(given)
    try:
        got = way(*(given[n] for n in ops.specs()[name].parameters))
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


def together(name, given):
    """Calls of which one axis has another size wherever it is named, or two arguments are None."""
    spec = ops.specs()[name]
    names = {axis.removesuffix("+1") for a in spec.args for axis in a.axes.split()}
    for axis in sorted(n for n in names if n[0].isalpha()):
        for size in (0, 1, 8, 17, 272):
            one = dict(given)
            for a in spec.args:
                x = given[a.name]
                for i, text in enumerate(a.axes.split()[: 0 if x is None else x.dim()]):
                    if text.removesuffix("+1") == axis:
                        x = sized(x, i, size + text.endswith("+1"))
                one[a.name] = x
            yield f"{axis} = {size}", one
    optional = [n for n, (_, optional) in registry._kinds(spec).items() if optional]
    for pair in itertools.combinations(optional, 2):
        yield pair, given | dict.fromkeys(pair)


def sized(x, axis, size):
    """x with so many places along an axis, the first ones again where it has fewer."""
    index = torch.arange(size) % max(x.shape[axis], 1)
    return x.index_select(axis, index) if x.shape[axis] else x


def samples(name):
    spec = ops.specs()[name]
    for make in SAMPLES[name]:
        args, kwargs = make()
        yield spec.bind(*args, **kwargs)


def fewer(name, given):
    """Calls of which all tensors, or all but the first, lack leading axes."""
    lead, spec = registry._LEAD[name], ops.specs()[name]
    for missing in range(1, lead + 1):
        for args in (spec.args, spec.args[1:]):
            one = dict(given)
            for a in args:
                x = one[a.name]
                if x is not None and all(x.shape[lead - missing : lead]):
                    one[a.name] = x[(slice(None),) * (lead - missing) + (0,) * missing]
            yield one


@pytest.mark.parametrize("name", OPS)
def test_an_error_is_the_same_read_here_or_there(name):
    errors, (way, through) = set(), ways(name)
    for i, sample in enumerate(samples(name)):
        less = [*fewer(name, sample)]  # of which each sample tries one
        for given in (sample, *less[i % max(len(less), 1) :][:1]):
            for what, one in itertools.chain(variants(name, given), together(name, given)):
                got, want = outcome(name, one, way), outcome(name, one, through)
                assert len(got) == len(want), what
                assert all(map(same, got, want)), (what, got[0], want[0])
                if isinstance(got[0], str):
                    errors.add(got[0].split(":")[1])
    named = {error for error in errors if error.startswith(f" {name}(")}
    assert len(named) >= len(ops.specs()[name].args)  # of most arguments, in several ways


@pytest.mark.parametrize("name", OPS)
def test_calls_that_fit_are_read_here(name):
    for sample in samples(name):
        for given in (sample, *fewer(name, sample)):
            out = direct(name, **copied(given))
            want = outcome(name, given, ways(name)[1])
            assert out is not UNUSUAL or isinstance(want[0], str), (given, want)


class SeenError(Exception):
    pass


@pytest.mark.parametrize("name", OPS)
def test_every_argument_reaches_its_place(name, monkeypatch):
    spec, public = ops.specs()[name], getattr(ops, name)
    taken = inspect.signature(public).parameters
    made = {"activation": "silu", "feature": "relu"}  # which it makes something else of
    given = {n: made.get(n) or object() for n in taken if n != "return_lse"}

    def way():
        def call(*values):
            for n, value in zip(spec.parameters, values, strict=False):
                assert n in made or n not in given or value is given[n], n
            assert len(values) >= len([n for n in spec.parameters if n in given])
            raise SeenError

        return call

    monkeypatch.setattr(sys.modules[public.__module__], "_way", way)
    with pytest.raises(SeenError):
        public(**given)


def test_arguments_are_those_of_the_schema():
    spec = ops.specs()["append"]
    with pytest.raises(ValueError, match="expected arguments and results k, v, k_pages"):
        _C.direct("append", [], [], 0, 0, [], {})
    assert [a.name for a in spec.args if isinstance(a, Arg)] == list(spec.parameters)
    with pytest.raises(IndexError):
        _C.direct("no_such_op", [], [], 0, 0, [], {})
    with pytest.raises(TypeError, match=r"append\(v\): expected a tensor, got None"):
        registry.call("append", torch.zeros(1, 2, 16))


WITHOUT = """
import sys
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None
from tests.direct import IN_ORDER, UNUSUAL
from tests.test_compiled import OPS, digest, outcome, sample, samples, ways
for name in OPS:
    assert IN_ORDER[name](*sample(name)) is UNUSUAL
    print(name, digest(outcome(name, next(samples(name)), ways(name)[0])))
"""


def digest(tensors):
    return sum(
        int(x.reshape(-1).view(torch.uint8).to(torch.int64).mul(i + 1).sum())
        for i, x in enumerate(tensors)
        if isinstance(x, torch.Tensor)
    )


def test_without_the_table_of_dlpack_the_bits_are_the_same():
    run = subprocess.run(
        [*warm.python(*warm.TORCH), "-c", WITHOUT], capture_output=True, text=True, check=True,
        cwd=__file__.rsplit("/", 2)[0],
    )  # fmt: skip
    want = [f"{name} {digest(outcome(name, next(samples(name)), ways(name)[0]))}" for name in OPS]
    assert run.stdout.splitlines() == want


def sample(name):
    """An op's first sample, all arguments in the order of the schema."""
    given = next(samples(name))
    return [given[n] for n in ops.specs()[name].parameters]


class Modes(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    pass


WATCHED = {
    "a backend": lambda: headrace.use_backend("cpu"),
    "debug": headrace.debug,
    "a dispatch mode": Modes,
    "a function mode": Functions,
    "a profile": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("who", WATCHED)
def test_whoever_looks_sees_the_call(name, who):
    args, spec = sample(name), ops.specs()[name]
    with WATCHED[who]():
        assert IN_ORDER[name](*args) is UNUSUAL
    assert IN_ORDER[name](*args) is not UNUSUAL
    assert IN_ORDER[name](*args, None) is UNUSUAL
    needed = [i for i, n in enumerate(spec.parameters) if n not in spec.defaults]
    assert IN_ORDER[name](*args[: needed[-1]]) is UNUSUAL


def test_transforms_and_traces_see_the_call():
    args = sample("attention")
    seen = []

    def call(q):
        seen.append(IN_ORDER["attention"](q, *args[1:]) is UNUSUAL)
        return q

    def beside(x):
        call(args[0])  # whose tensors are not those of the transform
        return x

    torch.func.vmap(call)(args[0][None])
    torch.func.vmap(beside)(torch.ones(2))
    torch.jit.trace(beside, (torch.ones(2),), check_trace=False)
    assert seen == [True] * 3


@pytest.mark.parametrize("name", [name for name in OPS if ops.specs()[name].mutates])
def test_autograd_hears_of_what_is_written(name):
    spec, args = ops.specs()[name], sample(name)
    in_order = IN_ORDER[name]
    given = dict(zip(spec.parameters, args, strict=True))
    for recorded in (True, False):
        before = {n: x._version for n, x in given.items() if isinstance(x, torch.Tensor)}
        with torch.set_grad_enabled(recorded):
            assert in_order(*args) is not UNUSUAL
        for n, version in before.items():
            assert given[n]._version == version + (recorded and n in spec.mutates), n
    with torch.inference_mode():
        fresh = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
        assert in_order(*fresh) is not UNUSUAL


def test_what_would_be_recorded_is_refused():
    q, k, v = sample("attention")[:3]
    with pytest.raises(ValueError, match="without requires_grad"):
        ops.attention(q.clone().requires_grad_(), k, v)
    with torch.no_grad():
        assert IN_ORDER["attention"](q.clone().requires_grad_(), k, v) is not UNUSUAL
