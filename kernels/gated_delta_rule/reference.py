# SPDX-License-Identifier: Apache-2.0
"""What gated_delta_rule means, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch


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
