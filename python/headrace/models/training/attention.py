# SPDX-License-Identifier: Apache-2.0
"""Attention for training and evaluation in plain torch: whole sequences at once, exactly the
streaming policy.

Under the policy a query at position t sees key j iff j <= t and (j < S or t - j < W), with t
counted from the start of the stream. Window keys are seen at their true distance; a sink (key j,
rotated at j) by the query rotated at min(t, S + W - 1), the place that the query has in a full
cache. A key that is both counts once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder import Attend, Decoder

_HIDDEN = -30000.0  # far below any logit, finite so that no row can turn into nan


def rotation(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D / 2] of positions [T] int64; angles in float64, results in dtype."""
    angles = positions.to(torch.float64)[:, None] * inv_freq.to(torch.float64)[None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [..., T, H, D] by cos, sin [T, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def dense(model: Decoder, sequence: int) -> Attend:
    """Causal attention over the whole of each sequence; rows [B * sequence] come sequence by
    sequence.
    """
    positions = torch.arange(sequence)
    tables: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cos, sin = _tables(tables, q.dtype, lambda: rotation(positions, model.inv_freq, q.dtype))
        q, k, v = (x.view(-1, sequence, *x.shape[1:]) for x in (q, k, v))
        batch, _, heads, dim = q.shape
        kv_heads = k.shape[2]
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        sink = model.sink_logits(layer)
        if sink is not None:
            # A key of zeros but for what meets the sink's logit: a term without a value.
            feature = (sink.to(q.dtype) * dim**0.5).view(1, 1, heads, 1)
            q = torch.cat((q, feature.expand(batch, sequence, heads, 1)), -1)
            k, v = F.pad(k, (0, 1, 0, 0, 1, 0)), F.pad(v, (0, 0, 0, 0, 1, 0))
            k = k + F.pad(k.new_ones(1, 1, 1, 1), (dim, 0, 0, 0, 0, sequence))
            visible = torch.ones(sequence, sequence + 1, dtype=torch.bool).tril(1)
        else:
            visible = torch.ones(sequence, sequence, dtype=torch.bool).tril()
        q = (
            q.view(batch, sequence, kv_heads, heads // kv_heads, -1)
            .permute(0, 2, 3, 1, 4)
            .flatten(0, 1)
        )
        scores = q @ k.permute(0, 2, 3, 1).flatten(0, 1)[:, None] * dim**-0.5
        probabilities = scores.masked_fill(~visible, _HIDDEN).softmax(-1)
        out = probabilities @ v.transpose(1, 2).flatten(0, 1)[:, None]
        out = out.view(batch, heads, sequence, dim).transpose(1, 2)
        return out.reshape(batch * sequence, heads, dim)

    return attend


def banded(model: Decoder, sequence: int, window: int, sinks: int, block: int = 64) -> Attend:
    """The streaming policy over whole sequences; rows [B * sequence] come sequence by sequence.

    Each block of queries is multiplied with its sinks and the `window - 1 + block` keys up to its
    end. The two kinds of distance share one product by doubling the features: [R(t) q; R(min(t,
    cap)) q] meets [R(j) k; 0] for a window key and [0; R(j) k] for a sink. One more feature hides
    the slots of a block that hold no key.

    sequence must be a multiple of block, and sinks <= block <= window. Learned sink logits of the
    model are applied.
    """
    if sequence % block or not sinks <= block <= window:
        raise ValueError(
            "banded(sequence, window, sinks, block): expected sequence % block == 0 and "
            f"sinks <= block <= window, got {sequence}, {window}, {sinks}, {block}"
        )
    blocks, front, learned = sequence // block, window - 1, model.config.sink_logits
    front += -(front + block + sinks + learned) % 16  # even row lengths for the matrix products
    slots = front + block
    positions = torch.arange(sequence)
    capped = positions.clamp(max=sinks + window - 1)
    row, slot = torch.arange(block)[:, None], torch.arange(slots)[None, :]
    seen = (slot - front <= row) & (row - slot + front < window)
    base = torch.zeros(block, slots + sinks + learned).masked_fill(
        ~F.pad(seen, (0, sinks + learned), value=True), _HIDDEN
    )
    # Keys as the blocks see them: before the stream is nothing, and the sinks stand apart. Only the
    # first block sees them in its window (both distances agree there), which keeps it causal.
    key = torch.arange(blocks)[:, None] * block - front + slot
    holds = (key >= 0) & ((key >= sinks) | (torch.arange(blocks)[:, None] == 0))
    apart = (torch.arange(blocks)[:, None] > 0).expand(blocks, sinks)
    hide = torch.cat((holds, apart, torch.ones(blocks, int(learned), dtype=torch.bool)), 1)
    hide = torch.zeros(hide.shape).masked_fill(~hide, _HIDDEN)
    tables: dict[torch.dtype, tuple[Tensor, ...]] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, dim = q.shape[1:]
        kv_heads = k.shape[1]
        group = heads // kv_heads
        cos, sin, cap_cos, cap_sin, mask, hidden = _tables(
            tables,
            q.dtype,
            lambda: (
                *rotation(positions, model.inv_freq, q.dtype),
                *rotation(capped, model.inv_freq, q.dtype),
                base.repeat(group, 1).to(q.dtype),
                hide.to(q.dtype),
            ),
        )
        q, k, v = (x.view(-1, sequence, *x.shape[1:]) for x in (q, k, v))
        batch = q.shape[0]
        q = q * dim**-0.5
        k = rotate(k, cos, sin).transpose(1, 2)  # [B, Hkv, T, D]
        v = v.transpose(1, 2)
        features = [rotate(q, cos, sin)]
        if sinks:
            features.append(rotate(q, cap_cos, cap_sin))
        features.append(q.new_ones(1, 1, 1, 1).expand(batch, sequence, heads, 1))
        sink = model.sink_logits(layer)
        if sink is not None:
            features.append(sink.to(q.dtype).view(1, 1, heads, 1).expand(batch, sequence, heads, 1))
        queries = torch.cat(features, -1)  # [B, T, Hq, F]
        width = queries.shape[-1]
        queries = (
            queries.view(batch, blocks, block, kv_heads, group, width)
            .permute(0, 3, 1, 4, 2, 5)
            .reshape(batch * kv_heads * blocks, group * block, width)
        )
        keys = F.pad(k, (0, 0, front, 0)).unfold(2, slots, block)  # [B, Hkv, blocks, D, slots]
        values = F.pad(v, (0, 0, front, 0)).unfold(2, slots, block)
        shape = (batch, kv_heads, blocks)
        if sinks:
            keys = F.pad(keys, (0, sinks, 0, dim))
            first = k[:, :, :sinks].transpose(2, 3)[:, :, None].expand(*shape, dim, sinks)
            keys = keys + F.pad(first, (slots, 0, dim, 0))
            first = v[:, :, :sinks].transpose(2, 3)[:, :, None].expand(*shape, dim, sinks)
            values = torch.cat((values, first), -1)
        if learned:
            keys, values = F.pad(keys, (0, 1)), F.pad(values, (0, 1))
        extra = [keys, hidden[:, None, :].expand(*shape, 1, hidden.shape[-1])]
        if learned:
            extra.append(F.pad(keys.new_ones(1), (hidden.shape[-1] - 1, 0)).expand(*shape, 1, -1))
        keys = torch.cat(extra, -2).flatten(0, 2)
        scores = torch.baddbmm(mask[None], queries, keys)
        out = torch.bmm(scores.softmax(-1), values.flatten(0, 2).transpose(1, 2))
        out = out.view(batch, kv_heads, blocks, group, block, dim).permute(0, 2, 4, 1, 3, 5)
        return out.reshape(batch * sequence, heads, dim)

    return attend


def _tables(
    cache: dict, dtype: torch.dtype, make: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    if dtype not in cache:
        cache[dtype] = make()
    return cache[dtype]
