# SPDX-License-Identifier: Apache-2.0
"""Calls that go past torch's dispatcher: the same bits, and only where torch has no eye on them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import headrace
from headrace import backends, ops
from headrace.ops import registry
from tests.direct import UNUSUAL, direct
from tests.ops import survivors
from tests.ops.samples import SAMPLES

KINDS = (None, torch.float32, torch.int32, torch.int32)  # of what compact gives
OPS = sorted(ops.specs())


def copied(args, kwargs):
    copy = lambda x: x.clone() if isinstance(x, torch.Tensor) else x  # noqa: E731
    return tuple(map(copy, args)), {name: copy(x) for name, x in kwargs.items()}


def tensors(*given):
    return [x for x in given if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("name", OPS)
def test_a_direct_call_has_the_bits_of_a_dispatched_one(name):
    for make in SAMPLES[name]:
        args, kwargs = make()
        (args_d, kwargs_d), (args_t, kwargs_t) = copied(args, kwargs), copied(args, kwargs)
        got = direct(name, *args_d, **kwargs_d)
        assert got is not UNUSUAL
        want = getattr(torch.ops.headrace, name)(*args_t, **kwargs_t)
        got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
        pairs = [
            *zip(tensors(*got), tensors(*want), strict=True),
            *zip(
                tensors(*args_d, *kwargs_d.values()),
                tensors(*args_t, *kwargs_t.values()),
                strict=True,
            ),
        ]
        for mine, other in pairs:
            assert mine.dtype == other.dtype
            torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", survivors.MOVED, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 9, 4000])
def test_results_are_made_as_torch_makes_them(rows, dtype):
    x = torch.randn(2, rows, 9).to(dtype)
    index = torch.arange(0, rows, 2, dtype=torch.int32).expand(2, -1)
    got = ops.compact(x, index)
    for y, sizes, kind in zip(got, ((2, -1, 9), (2, -1), (2, -1), (2,)), KINDS, strict=True):
        want = torch.empty([index.shape[1] if n < 0 else n for n in sizes], dtype=kind or dtype)
        assert (y.shape, y.stride(), y.dtype) == (want.shape, want.stride(), want.dtype)
        assert y.data_ptr() % 64 == 0
        assert not y.is_inference()
        y.view(torch.uint8).zero_()
    assert torch.equal(got.number, torch.zeros(2))
    with torch.inference_mode():
        assert ops.compact(x, index).y.is_inference()


def test_results_outlive_one_another_and_take_part_in_autograd():
    x, index = torch.arange(12.0).view(6, 2), torch.tensor([1, 4], dtype=torch.int32)
    held = [ops.compact(x + i, index).y for i in range(500)]
    assert all(torch.equal(y, x[index.long()] + i) for i, y in enumerate(held))
    y = held[0].requires_grad_()
    y.square().sum().backward()
    assert torch.equal(y.grad, 2 * x[index.long()])


def linear():
    return torch.randn(3, 32), torch.randn(8, 32)


def is_direct(*args, name="linear", **kwargs):
    return direct(name, *args, **kwargs) is not UNUSUAL


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_every_call():
    x, w = linear()
    assert is_direct(x, w)
    with Watching() as mode:
        ops.linear(x, w)
    assert "headrace.linear.default" in mode.seen


def test_a_profile_names_every_call():
    x, w = linear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.linear(x, w)
    assert "headrace::linear" in {event.key for event in profile.key_averages()}


def test_a_trace_records_the_call():
    x, w = linear()
    traced = torch.jit.trace(lambda x: ops.linear(x, w), (x,), check_trace=False)
    assert "headrace::linear" in str(traced.graph)
    assert torch.equal(traced(2 * x), ops.linear(2 * x, w))


def test_a_sign_still_to_be_turned_is_turned():
    x, w = linear()
    assert not is_direct(torch._neg_view(x), w)
    assert torch.equal(ops.linear(torch._neg_view(x), w), ops.linear(-x, w))


def test_a_parameter_is_a_tensor_and_a_subclass_is_not():
    class Other(torch.Tensor):
        pass

    x, w = linear()
    with torch.no_grad():
        assert is_direct(x, torch.nn.Parameter(w))
    assert not is_direct(x, w.as_subclass(Other))


def test_what_autograd_would_record_is_refused():
    x, w = linear()
    with pytest.raises(ValueError, match="without requires_grad"):
        ops.linear(x, torch.nn.Parameter(w))


def test_numbers_of_other_types_are_converted_by_torch():
    (args, kwargs) = SAMPLES["paged_attention"][0]()
    given = kwargs | {"softcap": 0}
    assert not is_direct(*args, name="paged_attention", **given)
    got, want = (ops.paged_attention(*args, **k) for k in (given, kwargs | {"softcap": 0.0}))
    assert torch.equal(got[0], want[0])


def test_a_backend_asked_for_and_the_debug_mode_are_heard():
    x, w = linear()
    with headrace.use_backend("reference"):
        assert not is_direct(x, w)
    with headrace.debug():
        assert not is_direct(x, w)
    meta = torch.empty(3, 32, device="meta")
    assert ops.linear(meta, torch.empty(8, 32, device="meta")).device.type == "meta"


def test_autograd_hears_of_what_is_written():
    x, grown = torch.randn(1, 1, 4, 8), torch.ones(1, requires_grad=True)
    product = (grown * x).sum()
    index, count = (
        torch.tensor([[[1, 3]]], dtype=torch.int32),
        torch.tensor([[2]], dtype=torch.int32),
    )
    ops.compact_inplace(x, index, count)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        ops.compact_inplace(torch.randn(1, 1, 4, 8), index, count)


def of_one_head(name):
    """Arguments [N, D] of an op that takes batches and heads too, and the same with both axes."""
    x, y = torch.randn(9, 7)[:, :5], torch.randn(9, 6)[:, :5]  # rows that do not lie side by side
    index, count = torch.tensor([1, 4, 7], dtype=torch.int32), torch.tensor(2, dtype=torch.int32)
    if name == "compact":
        target, weights = torch.full((9,), 4, dtype=torch.int32), torch.rand(9)
        return (x, index, count), {"target": target, "weights": weights}
    return ((x, index), {}) if name == "compact_inplace" else ((y, x[:3], index), {})


ALONE = ("compact", "compact_inplace", "scatter_back")


@pytest.mark.parametrize("name", ALONE)
def test_a_call_of_one_head_has_the_bits_of_a_dispatched_one(name, monkeypatch):
    args, kwargs = of_one_head(name)
    args_t = tuple(x[None, None].clone() for x in args)
    want = getattr(torch.ops.headrace, name)(
        *args_t, **{key: x[None, None] for key, x in kwargs.items()}
    )

    def call(*args, **kwargs):
        raise AssertionError("not alone")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "call", call)
        got = getattr(ops, name)(*args, **kwargs)
        with pytest.raises(AssertionError, match="not alone"), backends.use_backend("cpu"):
            getattr(ops, name)(*args, **kwargs)
    pairs = zip((*args, *(got or ())), (*args_t, *(want or ())), strict=True)
    for mine, other in pairs:
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other.reshape(mine.shape))


@pytest.mark.parametrize("name", ALONE)
def test_a_mode_sees_a_call_of_one_head(name):
    args, kwargs = of_one_head(name)
    with Watching() as mode:
        getattr(ops, name)(*args, **kwargs)
    assert f"headrace.{name}.default" in mode.seen


@pytest.mark.parametrize("name", ALONE)
def test_wrong_calls_of_one_head_are_refused(name):
    args, kwargs = of_one_head(name)
    op, index = getattr(ops, name), 2 if name == "scatter_back" else 1
    for wrong, error in (
        (args[index].long(), TypeError),
        (args[index].flip(0), ValueError),
        (args[index] + 7, ValueError),
        (None, (TypeError, ValueError)),
    ):
        given = [*args[:index], wrong, *args[index + 1 :]]
        with pytest.raises(error, match=rf"{name}\(index\)"):
            op(*given, **kwargs)
    with pytest.raises(ValueError, match="count"):
        op(*args[: index + 1], torch.tensor([1, 2], dtype=torch.int32), **kwargs)
