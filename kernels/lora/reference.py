# SPDX-License-Identifier: Apache-2.0
"""What the multi-adapter ops mean, in plain torch. Computes in fp64 for fp64 inputs, else fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(codes: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights [..., n] from floats, int8 codes or pairs of 4-bit codes (uint8 [..., n / 2])."""
    if scales is None:
        return codes.to(dtype)
    if codes.dtype == torch.uint8:
        blocks = codes.unflatten(-1, (-1, 16)).to(torch.int16)  # 32 codes in 16 bytes
        codes = torch.cat([blocks & 15, blocks >> 4], -1).flatten(-2) - 8
    grouped = codes.to(dtype).unflatten(-1, (scales.shape[-1], -1))
    return (grouped * scales.to(dtype)[..., None]).flatten(-2)


def lora(x, a, b, slots, scale, y, ranks):
    """y += scale (x A^T) B^T with the adapter of each row; see headrace.ops.lora."""
    rows = torch.arange(a.shape[0] * a.shape[1], dtype=torch.int32)
    indptr = torch.arange(a.shape[0] + 1, dtype=torch.int32) * a.shape[1]
    lora_rows(
        x,
        a.flatten(0, 1)[:, None],
        b.mT.flatten(0, 1),
        rows,
        indptr,
        slots[:, None],
        scale,
        y,
        ranks=None if ranks is None else ranks[:, None],
    )


def lora_rows(
    x,
    a,
    b,
    rows,
    row_indptr,
    slots,
    scale,
    y,
    weights=None,
    ranks=None,
    slice_ends=None,
    a_scale=None,
    b_scale=None,
    bias=None,
    gain=None,
    base_bias=None,
    epilogue=None,
    order=None,
    tiles=None,
):
    """The same over a pool of rank rows; see headrace.ops.lora_rows. The route changes nothing."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    ends = [y.shape[1]] if slice_ends is None else slice_ends.tolist()
    for t, w in (slots >= 0).nonzero().tolist():
        s = int(slots[t, w])
        mine = rows[int(row_indptr[s]) : int(row_indptr[s + 1])].long()
        factor = scale[s].to(dtype) * (1 if weights is None else weights[t, w].to(dtype))
        delta, begin = torch.zeros(y.shape[1], dtype=dtype, device=y.device), 0
        for j, end in enumerate(ends):
            used = mine if ranks is None else mine[: int(ranks[s, j])]
            down = unpack(a[used, j], None if a_scale is None else a_scale[used, j], dtype)
            up = unpack(b[used], None if b_scale is None else b_scale[used], dtype)
            delta[begin:end] = factor * (down @ x[t].to(dtype)) @ up[:, begin:end]
            begin = end
        bias_row, gain_row = (-1, -1) if epilogue is None else epilogue[s].tolist()
        if bias_row >= 0:
            delta += factor * bias[bias_row].to(dtype)
        if w == 0 or not (slots[t, :w] >= 0).any():
            total = torch.zeros_like(delta)  # several adapters add up before the one rounding
        total += delta
        if (slots[t, w + 1 :] >= 0).any():
            continue
        old = y[t].to(dtype)
        if gain_row >= 0:
            base = 0 if base_bias is None else base_bias.to(dtype)
            y[t] = (gain[gain_row].to(dtype) * (old - base + total) + base).to(y.dtype)
        else:
            y[t] = (old + total).to(y.dtype)
