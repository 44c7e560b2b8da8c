# SPDX-License-Identifier: Apache-2.0
"""The contract as data: checks, messages, results, models; and every op's contract is sound."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace import ops
from headrace.contract import F32, FLOATS, HINTS, I32, Arg, OpSpec, Out
from tests.ops.samples import SAMPLES

TOY = OpSpec(
    name="toy",
    family="toy",
    schema="(Tensor x, Tensor w, Tensor ptr, *, Tensor? b=None, float scale=1.0)"
    " -> (Tensor, Tensor)",
    args=(
        Arg("x", "T 2 K", contiguous="last"),
        Arg("w", "N K", like="x", contiguous="all"),
        Arg("ptr", "B+1", I32),
        Arg("b", "N", F32, optional=True),
    ),
    outs=(Out("T N", "x"), Out("T", torch.float32)),
    reference=lambda **bound: None,
    flops=lambda axes, bound: 4 * axes["T"] * axes["K"] * axes["N"],
    bytes=lambda axes, bound: 0,
    depth=lambda axes, bound: axes["K"],
)


def toy(**changes):
    bound = {
        "x": torch.zeros(3, 2, 5),
        "w": torch.zeros(7, 5),
        "ptr": torch.zeros(4, dtype=torch.int32),
        "b": None,
        "scale": 1.0,
    }
    return bound | changes


def test_axes_are_read_from_the_shapes():
    assert TOY.check(toy()) == {"T": 3, "K": 5, "N": 7, "B": 3}
    assert TOY.check(toy(b=torch.zeros(7))) == {"T": 3, "K": 5, "N": 7, "B": 3}
    empty = toy(x=torch.zeros(0, 2, 0), w=torch.zeros(0, 0), ptr=torch.zeros(1, dtype=torch.int32))
    assert TOY.check(empty) == {"T": 0, "K": 0, "N": 0, "B": 0}


BAD = {
    "none": ({"x": None}, TypeError, "toy(x): expected a tensor, got None"),
    "list": ({"x": [1.0]}, TypeError, "toy(x): expected a tensor, got list"),
    "dtype": (
        {"x": torch.zeros(3, 2, 5, dtype=torch.float64)},
        TypeError,
        "toy(x): expected one of float32, bfloat16, float16, got float64",
    ),
    "like": (
        {"w": torch.zeros(7, 5, dtype=torch.float16)},
        TypeError,
        "toy(w): expected float32, as x, got float16",
    ),
    "one dtype": ({"ptr": torch.zeros(4)}, TypeError, "toy(ptr): expected int32, got float32"),
    "axes": (
        {"x": torch.zeros(3, 5)},
        ValueError,
        "toy(x): expected 3 axes [T 2 K], got shape (3, 5)",
    ),
    "number": (
        {"x": torch.zeros(3, 4, 5)},
        ValueError,
        "toy(x): expected 2 in [T 2 K], got shape (3, 4, 5)",
    ),
    "size": (
        {"w": torch.zeros(7, 6)},
        ValueError,
        "toy(w): expected K = 5 in [N K], got shape (7, 6)",
    ),
    "optional": (
        {"b": torch.zeros(6)},
        ValueError,
        "toy(b): expected N = 7 in [N], got shape (6,)",
    ),
    "stride": (
        {"x": torch.zeros(3, 2, 10)[..., ::2]},
        ValueError,
        "toy(x): expected stride 1 along the last axis, got strides (20, 10, 2);"
        " call .contiguous() first",
    ),
    "contiguous": (
        {"w": torch.zeros(5, 7).T},
        ValueError,
        "toy(w): expected a contiguous tensor, got strides (1, 7)",
    ),
    "device": (
        {"w": torch.zeros(7, 5, device="meta")},
        ValueError,
        "toy(w): expected a tensor on cpu, got meta",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_names_argument_expectation_and_value(case):
    changes, kind, told = BAD[case]
    with pytest.raises(kind) as caught:
        TOY.check(toy(**changes))
    assert str(caught.value) == told
    assert type(caught.value) is kind


def test_indptr_needs_one_element():
    with pytest.raises(ValueError, match=r"toy\(ptr\)"):
        TOY.check(toy(ptr=torch.zeros(0, dtype=torch.int32)))


DTYPES = st.sampled_from([*FLOATS, torch.float64, torch.int32])
SIZES = st.integers(0, 3)


@given(
    x=st.tuples(st.lists(SIZES, min_size=2, max_size=4), DTYPES, st.booleans()),
    w=st.tuples(st.lists(SIZES, min_size=1, max_size=3), DTYPES, st.booleans()),
    ptr=SIZES,
    b=st.one_of(st.none(), SIZES),
)
def test_the_quick_check_accepts_only_what_the_loop_accepts(x, w, ptr, b):
    def make(sizes, dtype, turned):
        tensor = torch.zeros(sizes, dtype=dtype)
        return tensor.transpose(0, -1) if turned else tensor

    bound = toy(
        x=make(*x),
        w=make(*w),
        ptr=torch.zeros(ptr, dtype=torch.int32),
        b=None if b is None else torch.zeros(b),
    )
    slow = dataclasses.replace(TOY)
    object.__setattr__(slow, "_quick", lambda bound: None)
    quick = TOY._quick(bound)
    want = outcome(slow, bound)
    assert outcome(TOY, bound) == want
    assert quick in (None, want)


def outcome(spec, bound):
    """The axes, or the mistake."""
    try:
        return spec.check(bound)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def test_leading_axes():
    spec = dataclasses.replace(
        TOY,
        schema="(Tensor x, Tensor w) -> Tensor",
        args=(Arg("x", "... D"), Arg("w", "...", F32)),
        outs=(Out("... D", "x"),),
    )
    bound = {"x": torch.zeros(2, 3, 4), "w": torch.zeros(2, 3)}
    axes = spec.check(bound)
    assert axes == {"...": 2, "D": 4}
    assert spec.empty_outs(bound, axes)[0].shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"toy\(w\): expected axes \[...\], got shape"):
        spec.check(bound | {"w": torch.zeros(2)})


def test_results_have_the_shapes_and_dtypes_of_the_contract():
    bound = toy(x=torch.zeros(3, 2, 5, dtype=torch.float16), w=torch.zeros(7, 5).half())
    y, stat = TOY.empty_outs(bound, TOY.check(bound))
    assert (y.shape, y.dtype) == ((3, 7), torch.float16)
    assert (stat.shape, stat.dtype) == ((3,), torch.float32)


def test_parameters_and_binding():
    assert TOY.parameters == ("x", "w", "ptr", "b", "scale")
    bound = TOY.bind(1, 2, 3, scale=4.0)
    assert {k: bound[k] for k in ("x", "w", "ptr", "scale")} == {
        "x": 1,
        "w": 2,
        "ptr": 3,
        "scale": 4,
    }


def test_tolerance_grows_with_the_rounding_and_the_depth():
    axes, deep = {"K": 100}, {"K": 10000}
    f32, bf16, f16 = (TOY.tolerance(d, axes, {}) for d in FLOATS)
    assert 0 < f32 < f16 < bf16 < 0.01
    assert TOY.tolerance(torch.float32, deep, {}) > 5 * f32


@pytest.mark.parametrize("name", sorted(ops.specs()))
class TestContractOfEveryOp:
    def test_arguments_are_those_of_the_schema(self, name):
        spec = ops.specs()[name]
        schema = getattr(torch.ops.headrace, name).default._schema
        assert spec.parameters == tuple(a.name for a in schema.arguments)
        tensors = {a.name: a for a in schema.arguments if "Tensor" in str(a.type)}
        assert set(tensors) == {a.name for a in spec.args}
        for arg in spec.args:
            assert arg.optional == ("Optional" in str(tensors[arg.name].type)), arg.name

    def test_likes_point_backwards(self, name):
        seen = set()
        for arg in ops.specs()[name].args:
            assert arg.like is None or arg.like in seen
            seen.add(arg.name)

    def test_mutation_is_declared(self, name):
        spec = ops.specs()[name]
        schema = getattr(torch.ops.headrace, name).default._schema
        written = {
            a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write
        }
        assert written == set(spec.mutates)
        assert len(spec.outs) == len(schema.returns)

    def test_reference_takes_the_parameters(self, name):
        spec = ops.specs()[name]
        wanted = [p for p in spec.parameters if p not in HINTS]
        assert list(inspect.signature(spec.reference).parameters) == wanted

    def test_reference_is_short(self, name):
        assert len(inspect.getsource(ops.specs()[name].reference).splitlines()) <= 50

    def test_says_what_it_is(self, name):
        spec = ops.specs()[name]
        assert spec.doc
        assert spec.gpu
        assert set(spec.gpu) <= {"triton", "cuda"}

    def test_models_count_something(self, name):
        spec = ops.specs()[name]
        schema = getattr(torch.ops.headrace, name).default._schema
        for make in SAMPLES[name]:
            args, kwargs = make()
            bound = {a.name: a.default_value for a in schema.arguments} | spec.bind(*args, **kwargs)
            axes = spec.check(bound)
            work = 0 not in axes.values()
            flops, moved, depth = (f(axes, bound) for f in (spec.flops, spec.bytes, spec.depth))
            assert all(map(math.isfinite, (flops, moved, depth)))
            assert min(flops, moved, depth) >= 0, axes
            if work:  # what only moves rows adds up nothing
                assert moved > 0, axes
                assert flops == 0 or depth > 0, axes
