# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.lora.spec import LORA_ROWS
from .registry import register


def lora_rows(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    rows: Tensor,
    row_indptr: Tensor,
    slots: Tensor,
    scale: Tensor,
    y: Tensor,
    *,
    weights: Tensor | None = None,
    ranks: Tensor | None = None,
    slice_ends: Tensor | None = None,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    base_bias: Tensor | None = None,
    epilogue: Tensor | None = None,
    order: Tensor | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """`lora` over a pool of rank rows, where adapters of any rank lie side by side.

    Rank row c holds one row of A for each of J slices of a fused projection, a[c] [J, K], and one
    row of B for all of them, b[c] [N], of which slice j owns the columns up to slice_ends[j] (int32
    [J]; None when J is 1). Slot s owns rank rows rows[row_indptr[s]:row_indptr[s + 1]] (int32), or,
    of slice j, the first ranks[s, j] of these (int32 [S, J]). Pools are fp32, bf16, fp16, int8
    codes, or pairs of 4-bit codes (uint8, half as wide), see `headrace.adapters.quantize_rows`,
    with a_scale fp32 [C, J, K / group] and b_scale fp32 [C, N / group].

    slots int32 [T, W], W up to 4: a row may mix adapters, weights fp32 [T, W] (None: 1); -1 names
    none. `headrace.adapters.LoraRoute` makes the slots of a step, of adapters that begin at a later
    token and of pairs of adapter and expert too; order int32 [T] and tiles int32 [T, 2] are its,
    and spare a GPU the sorting. `headrace.adapters.LoraSite` holds all but x, y and the route. x
    [T, K], y [T, N] (accumulated into, returned), scale fp32 [S]. epilogue int32 [S, 2] names rows
    of bias fp32 [., N] (LoRA bias, scaled like the rest) and gain fp32 [., N] (DoRA: magnitude over
    norm, so that y becomes gain (y - base_bias + update) + base_bias, with base_bias fp32 [N]); -1
    for none; a row of several adapters takes no gain.

    Exactness as `lora`. Raises TypeError, ValueError or NotImplementedError naming the argument,
    before anything is written. A GPU looks at values in debug mode alone, and leaves out what names
    a slot or a row that there is not.

    Source: S-LoRA (Sheng et al., 2023); DoRA (Liu et al., 2024); activated LoRA (2025).
    """
    _way()(
        x, a, b, rows, row_indptr, slots, scale, y, weights, ranks, slice_ends, a_scale, b_scale,
        bias, gain, base_bias, epilogue, order, tiles,
    )  # fmt: skip
    return y


_way = register(LORA_ROWS)
