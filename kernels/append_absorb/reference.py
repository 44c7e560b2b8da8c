# SPDX-License-Identifier: Apache-2.0
"""What append_absorb means, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch
from headrace.kernels.attention.reference import LARGEST, append, rotate


def _held(pages, scale, page, slot, dtype):
    """Rows [T, Hkv, D] of what slots hold; pages [N, Hkv, P, D]."""
    rows = pages[page, :, slot].to(dtype)
    if pages.dtype not in LARGEST:
        return rows
    step = scale[page, :, 0] if scale.shape[2] == 1 else scale[page, :, slot]
    return rows * step[..., None].to(dtype)


def append_absorb(
    k, v, k_pages, v_pages, where, evicted, state, norm, indptr, rows,
    inv_freq, freq_axis, k_scale, v_scale, log_decay, count, feature, raw,
):  # fmt: skip
    """Token after token: state = decay state + k^ v^T of what its slot held; then appends."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    axes, (page, slot) = where.shape[1] - 2, where[:, :2].T
    old = _held(k_pages.transpose(2, 3), k_scale, page, slot, dtype).transpose(0, 1)
    old_v = _held(v_pages, v_scale, page, slot, dtype)
    away, to = evicted[:, 1 : 1 + axes], evicted[:, 1 + axes :]
    plain = rotate(old, -away, inv_freq, freq_axis)
    phi = (plain, plain.relu(), torch.where(plain > 0, plain + 1, plain.exp()))[feature]
    hat = rotate(plain if raw else phi, to, inv_freq, freq_axis).transpose(0, 1)
    phi = phi.transpose(0, 1)
    decay = 1.0 if log_decay is None else log_decay.to(dtype).exp()[:, None]
    for b, row in enumerate(rows.tolist()):
        s, z = state[row].to(dtype), None if norm is None else norm[row].to(dtype)
        for t in range(int(indptr[b]), int(indptr[b + 1])):
            if not evicted[t, 0]:
                continue
            new = hat[t][..., None] * old_v[t][:, None]
            s = s * (decay if log_decay is None else decay[..., None]) + new
            z = None if z is None else z * decay + phi[t]
            if count is not None:
                count[row] += 1
        state[row] = s.to(state.dtype)
        if z is not None:
            norm[row] = z.to(norm.dtype)
    append(k, v, k_pages, v_pages, where, inv_freq, freq_axis, k_scale, v_scale)
