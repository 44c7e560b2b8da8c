# SPDX-License-Identifier: Apache-2.0
"""LoraRoute and LoraSite: what they make of a step, and that sites give what the op gives."""

from __future__ import annotations

import pytest
import torch

import headrace
from headrace import ops
from headrace.adapters import LoraRoute, LoraSite, invocation_start
from tests.ops import adapters, compare, samples

pytestmark = pytest.mark.usefixtures("two_threads")
OPTIONS = ("weights", "order", "tiles")


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def site_of(args, kwargs):
    a, b, rows, indptr, _, scale = args[1:7]
    held = {k: v for k, v in kwargs.items() if k not in OPTIONS}
    return LoraSite(a, b, rows, indptr, scale, **held)


def test_set_keeps_its_place():
    route = LoraRoute(5, 2, tiled=True)
    places = [t.data_ptr() for t in (route.slots, route.weights, route.order, route.tiles)]
    assert route.idle
    route.set(ints([0, -1], [2, 1], [-1, -1]), weights=torch.full((3, 2), 0.5))
    assert route.slots.tolist() == [[0, -1], [2, 1], [-1, -1], [-1, -1], [-1, -1]]
    assert route.weights[:3].eq(0.5).all()
    assert (route.rows, route.idle) == (3, False)
    assert route.tiles[:, 1].sum() == 2
    route.set(ints([-1, -1]))
    assert route.slots.eq(-1).all()
    assert route.weights.eq(1).all()
    assert (route.rows, route.idle) == (1, True)
    assert route.tiles[:, 1].eq(0).all()
    assert places == [t.data_ptr() for t in (route.slots, route.weights, route.order, route.tiles)]


def test_an_adapter_begins_at_its_token():
    route = LoraRoute(6, 2)
    begins = ints([3, 0], [3, 9], [3, 3], [4, 3], dtype=torch.int64)
    route.set(
        ints([0, 1], [0, 1], [0, 1], [0, 1]),
        positions=ints(2, 3, 4, 3, dtype=torch.int64),
        begins=begins,
    )
    assert route.slots[:4].tolist() == [[-1, 1], [0, -1], [0, 1], [-1, 1]]


def test_rows_before_the_invocation_keep_the_bits_of_the_base(isa):
    """Fed token by token or as a chunk: the same, and the base up to the invocation."""
    args, kwargs = adapters.pool(1, 12, adapters=2, mix="identical")
    x, *_, y = args
    prompt = [5, 1, 2, 9, 1, 2, 7, 7, 7, 7, 7, 7]
    start = invocation_start(prompt, (1, 2))
    assert start == 4
    site, route = site_of(args, kwargs), LoraRoute(12)
    begins = torch.full((12,), start, dtype=torch.int64)
    whole = site(x, y.clone(), route.set(args[5], positions=torch.arange(12), begins=begins))
    assert compare.same_bits(whole[:4], y[:4])
    assert (whole[4:] != y[4:]).any(1).all()
    for t in range(12):
        here = torch.tensor([t])
        one = route.set(args[5][t : t + 1], positions=here, begins=begins[:1])
        assert compare.same_bits(site(x[t : t + 1], y[t : t + 1].clone(), one)[0], whole[t])


def test_invocation_start():
    assert invocation_start([1, 2, 3], [2, 3]) == 1
    assert invocation_start(ints(1, 2, 1, 2), [1, 2]) == 2
    assert invocation_start([1, 1, 1], [1, 1]) == 1
    assert invocation_start([1, 2], [1, 2, 3]) is None
    assert invocation_start([], [1]) is None
    with pytest.raises(ValueError, match=r"invocation_start\(invocation\): expected one token"):
        invocation_start([1], [])


def test_experts(isa):
    """(adapter, expert) pairs: each row gets what the expert of its adapter adds."""
    args, kwargs = adapters.pool(2, 30, adapters=6, mix="uniform")
    gen = samples.rng(3)
    table = ints([0, 3, -1], [5, 1, 2])
    adapter = torch.randint(-1, 2, (30,), generator=gen, dtype=torch.int32)
    expert = torch.randint(0, 3, (30,), generator=gen, dtype=torch.int32)
    route = LoraRoute(30).set(adapter, experts=expert, table=table)
    slots = torch.where(adapter < 0, -1, table[adapter.clamp(min=0).long(), expert.long()])
    assert route.slots[:, 0].tolist() == slots.tolist()
    args[1].nan_to_num_(0.25)
    args[2].nan_to_num_(0.5)
    direct = (*args[:5], slots[:, None].contiguous(), *args[6:])
    got = site_of(args, kwargs)(args[0], args[-1].clone(), route)
    assert compare.same_bits(got, adapters.result("lora_rows", direct, kwargs))


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("several", [1, 3])
def test_a_site_gives_what_the_op_gives(isa, bits, several):
    args, kwargs = adapters.pool(
        4, 20, 64, (64, 32), 5, 9, several=several, bits=bits, epilogue="bias"
    )
    x, slots, y = args[0], args[5], args[-1]
    site, route = site_of(args, kwargs), LoraRoute(32, several)
    for rows in (20, 7, 1, 20):
        weights = None if several == 1 else kwargs["weights"][:rows]
        route.set(slots[:rows], weights=weights)
        mine = kwargs if several == 1 else kwargs | {"weights": weights.contiguous()}
        part = (x[:rows], *args[1:5], slots[:rows].contiguous(), args[6], y[:rows])
        want = adapters.result("lora_rows", part, mine)
        for _ in range(2):  # through the op, and prepared
            assert compare.same_bits(site(x[:rows], y[:rows].clone(), route), want)
        padded = torch.cat([x[:rows], torch.full((3, 64), torch.nan)])
        got = site(padded, torch.cat([y[:rows], torch.full((3, 96), torch.nan)]), route)
        assert compare.same_bits(got[:rows], want)
        assert got[rows:].isnan().all()


def test_a_site_follows_dtypes_strides_and_what_the_pool_holds():
    args, kwargs = adapters.pool(5, 8, weight_dtype=torch.bfloat16)
    site, route = site_of(args, kwargs), LoraRoute(8).set(args[5])
    for dtype in (*samples.DTYPES, torch.float32):
        for _ in range(2):
            x, y = args[0].to(dtype), args[-1].to(dtype)
            x = samples.strided(x, "rows")
            want = adapters.result("lora_rows", (x, *args[1:-1], y), kwargs)
            assert compare.same_bits(site(x, y.clone(), route), want)
    args[6].mul_(2)
    want = adapters.result("lora_rows", args, kwargs)
    assert compare.same_bits(site(args[0], args[-1].clone(), route), want)


def test_an_idle_route_touches_nothing():
    args, kwargs = adapters.pool(6, 8)
    site, route = site_of(args, kwargs), LoraRoute(8)
    poison = torch.full_like(args[-1], torch.nan)
    assert site(args[0], poison, route) is poison
    assert poison.isnan().all()
    route.set(torch.full((8,), -1, dtype=torch.int32))
    assert route.idle
    assert site(None, None, route) is None  # not even looked at
    assert not route.set(args[5]).idle
    assert route.set(args[5], idle=True).idle  # what the caller knows


def test_a_site_under_compile_and_debug():
    args, kwargs = adapters.pool(7, 8)
    site, route = site_of(args, kwargs), LoraRoute(8).set(args[5])
    want = adapters.result("lora_rows", args, kwargs)
    for _ in range(2):
        with headrace.debug():
            assert compare.same_bits(site(args[0], args[-1].clone(), route), want)
    compiled = torch.compile(lambda x, y: site(x, y, route), fullgraph=True, backend="eager")
    assert compare.same_bits(compiled(args[0], args[-1].clone()), want)


def test_a_site_refuses_what_the_op_refuses():
    args, kwargs = adapters.pool(8, 8)
    site, route = site_of(args, kwargs), LoraRoute(9).set(args[5])
    x, y = args[0], args[-1]
    for _ in range(2):
        before = y.clone()
        for bad in ((x[:, :-1], y), (x, y[:, :-1]), (x, y.half()), (x.mT.contiguous().mT, y)):
            with pytest.raises((TypeError, ValueError), match=r"lora_rows\("):
                site(*bad, route)
        for rows in (7, 10):
            with pytest.raises(ValueError, match=r"lora_rows\(x\): expected 8 to 9 rows"):
                site(x[:1].repeat(rows, 1), y[:1].repeat(rows, 1), route)
        with pytest.raises(ValueError, match="requires grad"):
            site(x.clone().requires_grad_(), y, route)
        assert compare.same_bits(y, before)
        site(x, y.clone(), route)
    route.slots[0] = 99
    with pytest.raises(ValueError, match=r"slots\): expected values in"):
        site(x, y, route)
    assert compare.same_bits(y, before)


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        (dict(slots=torch.zeros(3, 1)), TypeError, r"slots\): expected int32"),
        (dict(slots=[0]), TypeError, r"slots\): expected a tensor"),
        (dict(slots=ints([0, 1])), ValueError, r"slots\): expected axes \[T, 1\]"),
        (dict(slots=ints(*range(9))), ValueError, r"slots\): expected up to 4 rows"),
        (dict(slots=ints(0), weights=torch.ones(2)), ValueError, r"weights\): expected axes"),
        (dict(slots=ints(0), positions=ints(1)), ValueError, r"begins\): expected a tensor beside"),
        (dict(slots=ints(0), begins=ints(1)), ValueError, r"positions\): expected a tensor beside"),
        (
            dict(slots=ints(0), begins=ints(1), positions=ints(1)),
            TypeError,
            r"positions\): expected int64",
        ),
        (dict(slots=ints(0), experts=ints(1)), ValueError, r"table\): expected a tensor beside"),
        (dict(slots=ints(0), table=ints([1])), ValueError, r"experts\): expected a tensor beside"),
        (
            dict(slots=ints(0), experts=ints(1), table=ints(1)),
            ValueError,
            r"table\): expected axes",
        ),
        (
            dict(slots=ints(0), experts=ints(1), table=ints([1])),
            ValueError,
            r"experts\): expected v",
        ),
        (dict(slots=ints(1), experts=ints(0), table=ints([1])), ValueError, r"slots\): expected v"),
    ],
)
def test_mistakes(given, kind, told):
    route = LoraRoute(4).set(ints(3, 2))
    with pytest.raises(kind, match=r"LoraRoute\(" + told):
        route.set(**given)
    assert route.slots[:, 0].tolist() == [3, 2, -1, -1]
    assert (route.rows, route.idle) == (2, False)


def test_sizes_of_a_route():
    with pytest.raises(ValueError, match=r"LoraRoute\(width\): expected 1 to 4, got 5"):
        LoraRoute(3, 5)
    with pytest.raises(ValueError, match=r"LoraRoute\(tokens\): expected 0 or more"):
        LoraRoute(-1)
    assert LoraRoute(0).set(torch.zeros(0, dtype=torch.int32)).idle


def test_half_a_route_is_refused():
    args, kwargs = adapters.pool(9)
    with pytest.raises(ValueError, match=r"lora_rows\(tiles\): expected the route that order"):
        ops.lora_rows(*args, **kwargs, order=torch.arange(5, dtype=torch.int32))
