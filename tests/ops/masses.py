# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of the ops that sum, compare and share out; what they must not read is NaN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headrace import ops
from tests.ops import compare
from tests.ops.samples import Call, normal, rng, strided
from tests.ops.scores import integers

STATES = ("total", "low", "high", "unit", "count")
METRICS = ("cos", "dot", "l2", "hamming")


def segment_reduce(
    seed: int,
    rows: int = 67,
    heads: int = 2,
    dim: int = 64,
    segments: int = 9,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    state_layout: str = "plain",
    order: str = "any",
    states: tuple[str, ...] = STATES,
    bounds: torch.dtype | None = None,
    fresh: bool = False,
) -> Call:
    """segment_reduce of rows in `order` "any" or "runs"; rows of no segment are NaN, some are 0."""
    gen = rng(seed)
    ids = integers(gen, -2, segments + 2, rows)
    if order == "runs":
        ids = ids.sort().values
    x = normal(gen, rows, heads, dim, dtype=dtype)
    x[torch.rand(rows, heads, generator=gen) < 0.1] = 0.0
    x[(ids < 0) | (ids >= segments)] = torch.nan
    kwargs: dict[str, Tensor] = {}
    for name in states:
        if name == "count":
            kwargs[name] = integers(gen, 0, 1 if fresh else 9, segments)
            continue
        kind = (bounds or dtype) if name in ("low", "high") else torch.float32
        start = normal(gen, segments, heads, dim, dtype=kind)
        if fresh:
            start = torch.full_like(start, {"low": torch.inf, "high": -torch.inf}.get(name, 0.0))
        kwargs[name] = strided(start, state_layout)
    return (strided(x, layout), ids), kwargs


def in_place(*args, **options) -> Call:
    """segment_reduce with the states in their places, for tests that copy what changes."""
    rows, states = segment_reduce(*args, **options)
    return (*rows, *(states.get(name) for name in STATES)), {}


def attention_mass(
    seed: int,
    batch: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    asked: int = 5,
    keys: int = 67,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    ragged: bool = False,
    known: bool = False,
    past: int | None = None,
    sharp: float = 1.0,
    **options,
) -> Call:
    """attention_mass, the queries times `sharp`; with `known` sums of the softmax come with it."""
    gen = rng(seed)
    q = normal(gen, batch, kv_heads * group, asked, dim, dtype=dtype) * sharp
    k = normal(gen, batch, kv_heads, keys, dim, dtype=dtype)
    kwargs: dict = dict(options)
    if ragged:
        kwargs["lengths"] = integers(gen, -1, keys + 2, batch)
        k[(torch.arange(keys) >= kwargs["lengths"][:, None])[:, None].expand(k.shape[:3])] = (
            torch.nan
        )
    if known:
        kwargs["lse"] = 3 + normal(gen, batch, kv_heads * group, asked)
        kwargs["lse"][torch.rand(kwargs["lse"].shape, generator=gen) < 0.1] = -torch.inf
    if past is not None:
        left = max(0, keys - options.get("exclude", 0))
        kwargs["past"] = torch.rand(batch, kv_heads, min(past, left), generator=gen)
    return (strided(q, layout), strided(k, layout)), kwargs


def assign(
    seed: int,
    batch: int = 2,
    rows: int = 67,
    candidates: int | None = 40,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    metric: str = "cos",
    layout: str = "plain",
    shared: bool = False,
    ragged: bool = False,
    values: str = "normal",
    **options,
) -> Call:
    """assign, of words of bits for hamming; `ties` takes few values, whose sums are exact.

    Without `candidates` rows choose among themselves. Some rows are 0.
    """
    gen = rng(seed)
    stored = 1 if shared else batch

    def data(*shape: int) -> Tensor:
        if metric == "hamming":
            low = (-2, 2) if values == "ties" else (-(2**31), 2**31)
            return torch.randint(*low, shape, generator=gen).int()
        x = normal(gen, *shape) if values == "normal" else integers(gen, -1, 2, *shape).float()
        x[torch.rand(shape[:-1], generator=gen) < 0.1] = 0.0
        return x.to(dtype)

    x = data(batch, rows, dim)
    kwargs: dict = {"metric": metric} | options
    c = None if candidates is None else data(stored, candidates, dim)
    if ragged:
        count = rows if c is None else int(c.shape[1])
        kwargs["lengths"] = integers(gen, -1, count + 2, batch)
        if c is not None and c.is_floating_point():
            c[:, max(0, int(kwargs["lengths"].max())) :] = torch.nan
    layout = "plain" if metric == "hamming" else layout
    return (strided(x, layout), c if c is None else strided(c, layout)), kwargs


def updated(args: tuple, kwargs: dict) -> dict[str, Tensor]:
    """The states after a segment_reduce, by name; those of the call stay."""
    states = {name: s.clone() for name, s in kwargs.items()}
    assert compare.run("segment_reduce", args, states) == (None,)
    return states


def check_segments(args: tuple, kwargs: dict, label: object = "", want=None, got=None) -> None:
    """Bounds and counts exactly, sums within the tolerance."""
    got = updated(args, kwargs) if got is None else got
    spec = ops.specs()["segment_reduce"]
    if want is None:
        want = compare.reference("segment_reduce", args, kwargs)
    bound, axes = compare.bind("segment_reduce", args, kwargs)
    limit = spec.tolerance(torch.float32, axes, bound)
    for name, ref in zip((n for n in spec.mutates if n in kwargs), want, strict=True):
        if name in ("low", "high", "count"):
            assert torch.equal(got[name].double(), ref.double()), (name, label)
        else:
            d = compare.distance(got[name], ref, 0.1)
            assert max(d.rms, d.peak / 8) <= limit, (name, label, d)


def similarities(args: tuple, kwargs: dict) -> Tensor:
    """Of every row of an assign and every candidate, fp64; -infinity for what it may not choose."""
    x, c = (None if t is None else t.double() for t in args)
    step = 2 if kwargs.get("bipartite") else 1
    c = x[:, 1::2] if step == 2 else x if c is None else c
    x = x[:, ::step]
    if kwargs["metric"] == "hamming":
        apart = torch.zeros(x.shape[0], x.shape[1], c.shape[1], dtype=torch.float64)
        for place in range(32):
            a, b = (t.long() >> place & 1 for t in (x, c))
            apart += (a[:, :, None] != b[:, None]).sum(-1)
        s = -apart
    elif kwargs["metric"] == "l2":
        s = -(x[:, :, None] - c[:, None]).square().sum(-1)
    elif kwargs["metric"] == "cos":
        s = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(c, dim=-1).mT
    else:
        s = x @ c.mT
    j, i = torch.arange(s.shape[2]), torch.arange(s.shape[1])
    if (lengths := kwargs.get("lengths")) is not None:
        s = s.masked_fill((j >= lengths[:, None])[:, None], -torch.inf)
    if kwargs.get("causal"):
        s = s.masked_fill(j >= i[:, None], -torch.inf)
    return s


def check_assign(args: tuple, kwargs: dict, label: object = "", *, got=None) -> None:
    """What assign gives (or has given): the similarity of the candidate named is the largest.

    Of similarities that fp32 cannot tell apart any will do, but where they are whole numbers.
    """
    id, best = compare.run("assign", args, kwargs) if got is None else got
    s = similarities(args, kwargs)
    n = s.shape[2]
    s = torch.nn.functional.pad(s, (0, 1), value=-torch.inf)
    bound, axes = compare.bind("assign", args, kwargs)
    limit = ops.specs()["assign"].tolerance(torch.float32, axes, bound)
    limit *= float(s.where(s.isfinite(), 0.0).abs().max().clamp(min=1.0)) if s.numel() else 1.0
    want = s.amax(-1)
    assert torch.equal(best.isfinite(), want.isfinite()), label
    there = want.isfinite()
    assert ((best - want)[there].abs() <= limit).all(), label
    floor = kwargs.get("threshold")
    floor = -torch.inf if floor is None else floor
    step = 2 if kwargs.get("bipartite") else 1
    at = torch.where(id < 0, n, torch.div(id - (step - 1), step, rounding_mode="floor")).long()
    assert ((id < 0) | (id % step == step - 1)).all(), label
    assert (at <= n).all(), label
    named, some = s.gather(-1, at[..., None])[..., 0], id >= 0
    assert (named[some] >= (want - limit)[some]).all(), label
    assert (want[some] >= floor - limit).all(), label
    assert (~there | (want < floor + limit))[~some].all(), label
    if s[s.isfinite()].frac().count_nonzero() == 0:  # exact, ties and all
        first = (s == want[..., None]).int().argmax(-1)
        exact = torch.where(there & (want >= floor), step * first + step - 1, -1)
        assert torch.equal(id, exact.int()), label


SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "segment_reduce": [
        lambda: in_place(1),
        lambda: in_place(2, dtype=torch.bfloat16, order="runs", states=("low", "high")),
        lambda: in_place(3, layout="rows", bounds=torch.float32, dtype=torch.float16, dim=5),
        lambda: in_place(4, rows=0, states=("count",)),
    ],
    "attention_mass": [
        lambda: attention_mass(1),
        lambda: attention_mass(2, dtype=torch.bfloat16, exclude=5, pool=5, ragged=True),
        lambda: attention_mass(3, known=True, past=30, decay=0.9, reduce="sum", causal=False),
        lambda: attention_mass(4, reduce="max", pool=3, pooling="max", layout="wide"),
        lambda: attention_mass(5, keys=0),
    ],
    "assign": [
        lambda: assign(1),
        lambda: assign(2, metric="l2", shared=True, dtype=torch.bfloat16, ragged=True),
        lambda: assign(3, metric="hamming", dim=2, candidates=None, causal=True, threshold=-30.0),
        lambda: assign(4, metric="dot", candidates=None, bipartite=True, layout="rows"),
        lambda: assign(5, rows=0),
    ],
}
