# SPDX-License-Identifier: Apache-2.0
"""What linear_attention means, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch


def _phi(x, feature):
    return (x, x.relu(), torch.where(x > 0, x + 1, x.exp()))[feature]


def _turn(x, offset, inv_freq):
    if inv_freq is None:
        return x
    half = inv_freq.numel()
    angle = (offset.double()[:, None] * inv_freq)[:, None]
    c, s = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * c - b * s, b * c + a * s, rest], -1)


def linear_attention(
    q, k, v, state, norm, indptr, rows, log_decay, inv_freq, offset, count, feature, raw, scale, eps
):
    """Token after token: state = decay state + k^ v^T, o = q^ state / (phi(q) . norm + eps)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // state.shape[1]
    out = q.new_empty(*q.shape[:2], state.shape[3])
    decay = 1.0 if log_decay is None else log_decay.to(dtype).exp()[:, None]
    plain = q.to(dtype), None if k is None else k.to(dtype)
    phi = [None if x is None else _phi(x, feature) for x in plain]
    hat = [
        None if x is None else _turn(x if raw else p, offset, inv_freq)
        for x, p in zip(plain, phi, strict=True)
    ]
    for b, row in enumerate(rows.tolist()):
        s, z = state[row].to(dtype), None if norm is None else norm[row].to(dtype)
        for t in range(int(indptr[b]), int(indptr[b + 1])):
            if k is not None:
                new = hat[1][t][..., None] * v[t].to(dtype)[:, None]
                s = s * (decay if log_decay is None else decay[..., None]) + new
                z = None if norm is None else z * decay + phi[1][t]
            top = torch.einsum("hd,hdv->hv", hat[0][t], s.repeat_interleave(group, 0))
            if norm is None:
                out[t] = (top * scale).to(q.dtype)
            else:
                under = (phi[0][t] * z.repeat_interleave(group, 0)).sum(-1, keepdim=True)
                out[t] = (top / (under + eps * (1 if count is None else int(count[row])))).to(
                    q.dtype
                )
        state[row] = s.to(state.dtype)
        if norm is not None:
            norm[row] = z.to(norm.dtype)
    return out
