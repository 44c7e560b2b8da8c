# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of the ops that compare and move rows; whatever they must not read is NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.samples import DTYPES, LAYOUTS, Call, cover, rng, strided

METRICS = ("cos", "dot", "l1", "l2", "gauss")
REFERENCES = ("aligned", "frame", "row", "indexed")
MOVED = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int32,
         torch.int64, torch.float8_e4m3fn)  # fmt: skip


def values(gen: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=gen).byte()
    if not dtype.is_floating_point:
        return torch.randint(-128, 128, shape, generator=gen).to(dtype)
    return torch.randn(*shape, generator=gen).to(dtype)


def layout_of(x: Tensor, how: str) -> Tensor:
    """As samples.strided; what lies between whole numbers is the largest of them."""
    if x.is_floating_point() and x.element_size() > 1:
        return strided(x, how)
    kind = torch.int8 if x.element_size() == 1 else x.dtype
    apart = strided(x.view(kind).double(), how)
    plain = apart.nan_to_num(127).to(kind)
    if how == "plain":
        return plain.view(x.dtype)
    room = torch.full((apart.untyped_storage().nbytes() // 8,), 127, dtype=kind)
    room = room.as_strided(apart.shape, apart.stride(), apart.storage_offset())
    return room.copy_(plain).view(x.dtype)


def similarity(
    seed: int,
    frames: int = 2,
    height: int = 5,
    width: int = 7,
    depth: int = 24,
    metric: str = "cos",
    dtype: torch.dtype = torch.float32,
    wide_ref: bool = False,
    against: str = "aligned",
    layout: str = "plain",
    **options,
) -> Call:
    """similarity to a reference aligned, of a frame, a single row, or one named by an index."""
    gen = rng(seed)
    x = values(gen, frames, height, width, depth, dtype=dtype)
    ref_dtype = torch.float32 if wide_ref else dtype
    shape = {"aligned": (frames, height, width), "frame": (1, height, width), "row": (1, 1, 1)}
    ref = values(gen, *shape.get(against, (1, 1, 9)), depth, dtype=ref_dtype)
    if against == "aligned" and x.is_floating_point():
        ref = (x + 0.5 * ref).to(ref_dtype)
    kwargs = dict(options)
    if against == "indexed":
        index = torch.randint(-2, 11, (frames, height, width), generator=gen).int()
        kwargs["index"] = index
        used = torch.isin(torch.arange(9), index)
        if ref.is_floating_point():
            ref[:, :, ~used] = torch.nan
        if x.is_floating_point():
            x[(index < 0) | (index >= 9)] = torch.nan
    if metric == "gauss":
        kwargs.setdefault("alpha", float(max(depth, 1)) * (1e4 if dtype == torch.uint8 else 1.0))
    return (layout_of(x, layout), layout_of(ref, layout), metric), kwargs


def choice(gen: torch.Generator, batch: int, heads: int, size: int, share: float) -> Tensor:
    return torch.rand(batch, heads, size, generator=gen) < share


def listed(mask: Tensor, spare: int = 0) -> tuple[Tensor, Tensor]:
    """int32 indices with nonsense behind their counts, and the counts."""
    count = mask.sum(-1)
    rows = int(count.max()) + spare if count.numel() else spare
    index = mask.new_full((*mask.shape[:2], rows), 0, dtype=torch.int32) + 10**6
    for b, h in torch.cartesian_prod(*map(torch.arange, mask.shape[:2])).tolist():
        index[b, h, : count[b, h]] = mask[b, h].nonzero()[:, 0].int()
    return index, count.int()


def compact(
    seed: int,
    batch: int = 2,
    heads: int = 3,
    size: int = 67,
    depth: int = 20,
    dtype: torch.dtype = torch.float32,
    masked: bool = True,
    share: float = 0.4,
    shared: bool = False,
    merged: bool = False,
    weighted: bool = False,
    layout: str = "plain",
    capacity: int | None = None,
) -> Call:
    """compact by a mask or an index; rows that nothing keeps nor merges are NaN."""
    gen = rng(seed)
    x = values(gen, batch, heads, size, depth, dtype=dtype)
    mask = choice(gen, 1 if shared else batch, 1 if shared else heads, size, share)
    kwargs: dict = {"mask": mask, "capacity": capacity} if masked else {}
    read = mask
    if merged:
        target = torch.randint(-1, size + 1, mask.shape, generator=gen).int()
        kwargs["target"] = target
        first = mask if capacity is None or not masked else mask & (mask.cumsum(-1) <= capacity)
        goal = torch.where((target < 0) | (target >= size), size, target.long())
        read = first | torch.nn.functional.pad(first, (0, 1)).gather(-1, goal)
    if weighted:
        kwargs["weights"] = torch.rand(mask.shape, generator=gen) * choice(gen, *mask.shape, 0.9)
    if x.is_floating_point():
        x[~read.expand(x.shape[:3])] = torch.nan
    return (layout_of(x, layout), *(() if masked else listed(mask, spare=2))), kwargs


def compact_inplace(
    seed: int,
    batch: int = 2,
    heads: int = 3,
    size: int = 67,
    depth: int = 20,
    dtype: torch.dtype = torch.float32,
    share: float = 0.4,
    shared: bool = False,
    counted: bool = True,
    layout: str = "plain",
) -> Call:
    """compact_inplace of any rows."""
    gen = rng(seed)
    x = layout_of(values(gen, batch, heads, size, depth, dtype=dtype), layout)
    mask = choice(gen, 1, 1, size, share) if shared else choice(gen, batch, heads, size, share)
    if not counted:
        return (x, listed(mask[:1, :1])[0]), {}
    return (x, *listed(mask, spare=seed % 3)), {}


def scatter_back(seed: int, **options) -> Call:
    """scatter_back of rows of which those behind the count are NaN."""
    (y, index, *count), _ = compact_inplace(seed, **options)
    gen = rng(seed + 99)
    x = values(gen, *y.shape[:2], index.shape[2], y.shape[3], dtype=y.dtype)
    if count and y.is_floating_point() and y.element_size() > 1:
        behind = torch.arange(index.shape[2]) >= count[0][..., None]
        x[behind.expand(x.shape[:3])] = torch.nan
    return (y, layout_of(x, options.get("layout", "plain")), index, *count), {}


def aligned(call: Call) -> Call:
    """The same, rows coming from the places that they go to."""
    (y, _, *rest), _ = call
    return (y, y.flip(2), *rest), {"aligned": True}


u8 = torch.uint8
SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "similarity": [
        lambda: similarity(1),
        lambda: similarity(2, metric="l1", dtype=u8, height=30, width=45, depth=3,
                           patch_height=14, patch_width=14),
        lambda: similarity(3, against="indexed", dtype=torch.bfloat16, wide_ref=True),
        lambda: similarity(4, metric="l2", radius=1, layout="rows"),
        lambda: similarity(5, metric="gauss", against="row", patch_height=0, patch_width=0),
        lambda: similarity(6, width=0),
    ],
    "compact": [
        lambda: compact(1),
        lambda: compact(2, masked=False, dtype=torch.bfloat16, layout="rows"),
        lambda: compact(3, merged=True, weighted=True, shared=True),
        lambda: compact(4, dtype=torch.int64, capacity=5, depth=3),
        lambda: compact(5, masked=False, merged=True, dtype=torch.float16),
        lambda: compact(6, size=0),
    ],
    "compact_inplace": [
        lambda: compact_inplace(1),
        lambda: compact_inplace(2, dtype=u8, counted=False, layout="rows"),
        lambda: compact_inplace(3, size=0),
    ],
    "scatter_back": [
        lambda: scatter_back(1),
        lambda: scatter_back(2, dtype=torch.bfloat16, counted=False, layout="wide"),
        lambda: scatter_back(3, size=0),
        lambda: aligned(scatter_back(4)),
    ],
}  # fmt: skip


def same_place(x: Tensor) -> Tensor:
    """A copy behind the same strides, with guards of its own kind between its rows."""
    room = torch.full((x.untyped_storage().nbytes(),), 77, dtype=torch.uint8).view(x.dtype)
    return room.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(x)


def moves() -> list[dict[str, Any]]:
    """Cases of what moves rows within a tensor."""
    grid = cover(
        16,
        24,
        batch=(0, 1, 2),
        heads=(1, 3),
        size=(0, 1, 2, 63, 64, 65, 257),
        depth=(0, 1, 3, 16, 65, 700, 3000),
        dtype=(*DTYPES, torch.uint8, torch.int32, torch.int64),
        share=(0.0, 0.3, 1.0),
        shared=(False, True),
        counted=(True, True, False),
        layout=LAYOUTS,
    )
    empty = {"shared": True, "counted": True}
    return [case | empty if case["batch"] == 0 else case for case in grid]


SOME_MOVE = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "heads": st.integers(1, 3),
        "size": st.integers(0, 90),
        "depth": st.integers(1, 40),
        "share": st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    }
)
