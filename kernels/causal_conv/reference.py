# SPDX-License-Identifier: Apache-2.0
"""What causal_conv means, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch


def causal_conv(x, weight, bias, state, indptr, rows, silu):
    """y[t] = act(bias + sum_j weight[:, W-1-j] x[t-j]), x before the stream from its state."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y, taps = torch.empty_like(x), weight.shape[1]
    for b, row in enumerate(rows.tolist()):
        first, last = int(indptr[b]), int(indptr[b + 1])
        seen = torch.cat([state[row].mT, x[first:last]])  # [L + tokens, C]
        wide, n = seen.to(dtype), last - first
        total = sum(weight[:, j].to(dtype) * wide[j : j + n] for j in range(taps))
        if bias is not None:
            total = total + bias.to(dtype)
        y[first:last] = (total * total.sigmoid() if silu else total).to(x.dtype)
        state[row] = seen[last - first :].mT
    return y
