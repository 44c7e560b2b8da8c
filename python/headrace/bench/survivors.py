# SPDX-License-Identifier: Apache-2.0
"""Comparing frames and tokens with a reference, and moving what is kept, as it is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .case import Case, after, bound_call, dtype_name, rms_error
from .peers import compiled
from .scores import over

KEPT = 0.15  # of the tokens, what DTD leaves of a video


def pixels(height: int, width: int, patch: int, pairs: int) -> Case:
    """The pixel gate: mean |difference| of RGB frames, per patch, or of a whole frame (0).

    Every call takes a pair of frames that the calls before have not touched.
    """
    gen = torch.Generator().manual_seed(0)
    stored = [
        torch.randint(0, 256, (2, 1, height, width, 3), generator=gen).byte() for _ in range(pairs)
    ]
    options: dict[str, Any] = {"patch_height": patch, "patch_width": patch}
    spec = ops.specs()["similarity"]
    bound, axes = bound_call("similarity", *stored[0], "l1", **options)
    high, wide = (height, width) if patch == 0 else (patch, patch)
    rows, columns = height // high, width // wide

    def folded(difference: Tensor) -> Tensor:
        """Sums over whole patches: torch has no short ones at the edge."""
        cut = difference[0, : rows * high, : columns * wide]
        return cut.reshape(rows, high, columns, wide * 3).sum((1, 3), dtype=torch.int32)

    def signed(pair: Tensor) -> object:
        return folded((pair[0].short() - pair[1].short()).abs()) / (high * wide * 3)

    def unsigned(pair: Tensor) -> object:  # no wider than a byte until the sum
        x, r = pair
        return folded(torch.maximum(x, r) - torch.minimum(x, r)) / (high * wide * 3)

    def check() -> tuple[float, float]:
        got = ops.similarity(stored[0][0], stored[0][1], "l1", **options)
        want = signed(stored[0])
        assert isinstance(want, Tensor)
        return rms_error(got[0, :rows, :columns], want), spec.tolerance(torch.float32, axes, bound)

    def whole() -> Tensor:
        got = ops.similarity(stored[-1][0], stored[-1][1], "l1", **options)
        return got[0, :rows, :columns] if patch else got

    name = f"patches of {patch}" if patch else "whole frames"
    return Case(
        "similarity", f"uint8 {width}x{height} RGB, {name}, {pairs} pairs",
        over(stored, lambda pair: ops.similarity(pair[0], pair[1], "l1", **options)), check,
        pairs * spec.bytes(axes, bound), pairs * spec.flops(axes, bound),
        over(stored, signed), "torch, eager", rivals={"torch, in bytes": over(stored, unsigned)},
        more=lambda compile: (
            {name: over(stored, run) for name, run in compiled(unsigned).items()} if compile else {}
        ),
        results={"ours": whole}, product=torch.int8,
    )  # fmt: skip


@cache
def _tokens(count: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Features of a frame and of the one before: most are the same but for noise."""
    gen = torch.Generator().manual_seed(1)
    ref = torch.randn(count, depth, generator=gen).to(dtype)
    far = torch.rand(count, 1, generator=gen) * 2
    return (ref + far * torch.randn(count, depth, generator=gen)).to(dtype), ref


def features(count: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Cosine of every token with the same place of the frame before."""
    x, ref = _tokens(count, depth, dtype)
    bound, axes = bound_call("similarity", x[None, None], ref[None, None])
    spec = ops.specs()["similarity"]

    def check() -> tuple[float, float]:
        want = F.cosine_similarity(x.double(), ref.double(), -1)
        return rms_error(ops.similarity(x, ref), want), spec.tolerance(torch.float32, axes, bound)

    return Case(
        "similarity", f"cos {dtype_name(dtype)} {count} x {depth}",
        lambda: ops.similarity(x, ref), check,
        spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: F.cosine_similarity(x, ref, -1), "torch, eager",
        more=lambda compile: (
            compiled(lambda: F.cosine_similarity(x, ref, -1)) if compile else {}
        ),
        product=dtype,
    )  # fmt: skip


def prune(count: int, depth: int) -> Case:
    """Compare with the frame before, keep the least similar, gather them."""
    x, ref = _tokens(count, depth)
    kept = int(KEPT * count)

    def ours() -> Any:
        score = ops.similarity(x, ref)
        return ops.compact(x, *ops.select(score, k=kept, lowest=True))

    def least() -> Tensor:
        score = F.cosine_similarity(x, ref, -1)
        return score.topk(kept, largest=False).indices.sort().values

    def furthest() -> Tensor:  # as an engine ships it: a sort of all, and a mask
        far = 1 - F.cosine_similarity(x, ref, -1)
        mask = torch.zeros(count, dtype=torch.bool)
        mask[far.argsort(descending=True, stable=True)[:kept]] = True
        return mask

    def worth(chosen: Callable[[], Tensor]) -> Tensor:
        """Exact distances of the rows chosen: which of two near ones it is goes with rounding."""
        exact = 1 - F.cosine_similarity(x.double(), ref.double(), -1)
        return exact[chosen()].sort().values

    def check() -> tuple[float, float]:
        y, _, index, number = ours()
        exact = F.cosine_similarity(x.double(), ref.double(), -1)
        chosen = exact[index.long()]
        rest = exact.clone()
        rest[index.long()] = torch.inf
        same = int(number) == kept and torch.equal(y, x[index.long()])
        return float(chosen.max() - rest.min()) if same else torch.inf, 1e-6

    results = {
        "ours": partial(worth, lambda: ours()[2].long()),
        "torch, eager": partial(worth, least),
        "torch, as EVS": partial(worth, furthest),
    }

    def more(compile: bool) -> dict[str, Callable[[], object]]:
        made = compiled(least) if compile else {}
        results.update({name: partial(worth, chosen) for name, chosen in made.items()})
        return {name: lambda chosen=chosen: x[chosen()] for name, chosen in made.items()}  # type: ignore[misc]

    moved = x.element_size() * depth * (2 * count + 2 * kept) + 12 * count
    return Case(
        "compact", f"similarity, select, compact: bf16 {count} x {depth}, {KEPT:.0%} kept", ours,
        check, moved, 6 * count * depth, lambda: x[least()], "torch, eager",
        rivals={"torch, as EVS": lambda: x[furthest()]},
        more=more, results=results, product=x.dtype, writes=kept * depth * x.element_size(),
    )  # fmt: skip


def _listed(count: int) -> Tensor:
    gen = torch.Generator().manual_seed(2)
    return torch.randperm(count, generator=gen)[: int(KEPT * count)].sort().values


def gather(count: int, depth: int, merged: bool) -> Case:
    """The rows of a mask; or all rows, each merged into one of those."""
    x, _ = _tokens(count, depth)
    at = _listed(count)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[at] = True
    place = (torch.arange(count) * 7) % len(at)
    place[at] = torch.arange(len(at))
    options: dict[str, Any] = {"target": at[place].int()} if merged else {}
    spec = ops.specs()["compact"]
    bound, axes = bound_call(
        "compact", x[None, None], mask=mask[None, None], capacity=len(at),
        **{n: v[None, None] for n, v in options.items()},
    )  # fmt: skip

    def peer() -> Tensor:
        if not merged:
            return x[mask]
        sums = torch.zeros(len(at), depth).index_add_(0, place, x.float())
        sizes = torch.zeros(len(at)).index_add_(0, place, torch.ones(count))
        return (sums / sizes[:, None]).bfloat16()

    def check() -> tuple[float, float]:
        y = ops.compact(x, mask=mask, capacity=len(at), **options).y
        return rms_error(y, peer().double()), spec.tolerance(x.dtype, axes, bound)

    return Case(
        "compact", f"{'merge' if merged else 'gather'} bf16 {KEPT:.0%} of {count} x {depth}",
        lambda: ops.compact(x, mask=mask, capacity=len(at), **options), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch, eager",
        writes=x[: len(at)].nbytes,
    )  # fmt: skip


def compact_inplace(count: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Rows to the front of their own tensor, which over the calls keeps less and less of its own
    but moves the same bytes."""
    x = _tokens(count, depth, dtype)[0].clone()
    at = _listed(count)
    index = at.int()
    bound, axes = bound_call("compact_inplace", x[None, None], index[None, None])
    spec = ops.specs()["compact_inplace"]

    def ours() -> None:
        ops.compact_inplace(x, index)

    def peer() -> None:
        x[: len(at)] = x[at]

    def check() -> tuple[float, float]:
        want = x[at]
        ops.compact_inplace(x, index)
        return float((x[: len(at)] != want).any()), 0.0

    return Case(
        "compact_inplace", f"{dtype_name(dtype)} {KEPT:.0%} of {count} x {depth}",
        ours, check, spec.bytes(axes, bound), 0.0, peer,
        "torch, eager", state=(x,), results={
            name: after(run, lambda: x[: len(at)].clone())
            for name, run in (("ours", ours), ("torch, eager", peer))
        }, writes=x[: len(at)].nbytes,
    )  # fmt: skip


def scatter_back(count: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Rows to their places."""
    y, x = _tokens(count, depth, dtype)[0].clone(), _tokens(count, depth, dtype)[1]
    at = _listed(count)
    x, index = x[: len(at)], at.int()
    bound, axes = bound_call("scatter_back", y[None, None], x[None, None], index[None, None])
    spec = ops.specs()["scatter_back"]

    def ours() -> None:
        ops.scatter_back(y, x, index)

    def peer() -> None:
        y[at] = x

    def check() -> tuple[float, float]:
        ops.scatter_back(y, x, index)
        return float((y[at] != x).any()), 0.0

    return Case(
        "scatter_back", f"{dtype_name(dtype)} {KEPT:.0%} of {count} x {depth}",
        ours, check, spec.bytes(axes, bound), 0.0, peer,
        "torch, eager", state=(y,), results={
            name: after(run, y.clone) for name, run in (("ours", ours), ("torch, eager", peer))
        }, writes=x.nbytes,
    )  # fmt: skip
