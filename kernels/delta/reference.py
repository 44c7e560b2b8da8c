# SPDX-License-Identifier: Apache-2.0
"""What the delta family means, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch


def frame_delta_rule(
    q, k, v, beta, state, norm, frames, indptr, rows, log_decay, q_hat, k_hat, update, eps
):
    """Frame after frame; all tokens of a frame meet the state as it was, then read it as it is."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = v.shape[1] // q.shape[1]
    q_hat, k_hat = (q, k) if q_hat is None else (q_hat, k_hat)

    def of(x, t):  # tokens t as [HV, n, K]
        return x[t].to(dtype).repeat_interleave(group, 1).transpose(0, 1)

    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    for b, row in enumerate(rows.tolist()):
        s, z = state[row].to(dtype), norm[row].to(dtype)[..., None]
        for f in range(int(indptr[b]), int(indptr[b + 1])):
            t = slice(int(frames[f]), int(frames[f + 1]))
            if log_decay is not None:
                g = log_decay[f].to(dtype).exp()[:, None, None]
                s, z = g * s, g * z
            step, values = beta[t].to(dtype).T[..., None], v[t].to(dtype).transpose(0, 1)
            s = s + of(k_hat, t).mT @ (step * (values - of(k_hat, t) @ s))
            z = z + of(k, t).mT @ (step * (1 - of(k, t) @ z))
            out[t] = (of(q_hat, t) @ s / (of(q, t) @ z + eps)).transpose(0, 1).to(out.dtype)
        if update:
            state[row], norm[row] = s.to(state.dtype), z[..., 0].to(norm.dtype)
    return out


def gated_delta_rule(q, k, v, log_decay, beta, state, indptr, rows, scale, normalize):
    """Token after token: S = a S + k (beta (v - (a S)^T k))^T, o = scale S^T q."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = v.shape[1] // q.shape[1]
    q, k = (x.to(dtype).repeat_interleave(group, 1) for x in (q, k))
    if normalize:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    out = v.new_empty(v.shape)
    for b, row in enumerate(rows.tolist()):
        s = state[row].to(dtype)  # [HV, K, V]
        for t in range(int(indptr[b]), int(indptr[b + 1])):
            s = s * log_decay[t].to(dtype).exp()[:, None, None]
            found = torch.einsum("hkv,hk->hv", s, k[t])
            delta = beta[t].to(dtype)[:, None] * (v[t].to(dtype) - found)
            s = s + k[t][..., None] * delta[:, None]
            out[t] = (scale * torch.einsum("hkv,hk->hv", s, q[t])).to(v.dtype)
        state[row] = s.to(state.dtype)
    return out
