# SPDX-License-Identifier: Apache-2.0
"""What presets over an archive share: frames that end pages, and a dense forward to compare with.

The forward is plain torch in fp64: every layer sees what a function of its own queries and keys
says, so that it can choose by brute force what a stream must have found.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..streams import Report, Stream
from ..streams.asking import seal

See = Callable[[int, Tensor, Tensor], tuple[Tensor, "Tensor | None"]]
"""(layer, q [T, Hq, D], k [T, Hkv, D], neither rotated) -> seen bool [T, T] or [Hq, T, T], and
distance int64 [T, T]; None for tokens that stand where they came."""


def pages_of(tokens: int) -> int:
    """The page size that holds a frame: the multiple of 16 from its tokens on."""
    return max(16, -(-tokens // 16) * 16)


def watch(stream: Stream, frames: Sequence[Tensor]) -> None:
    """Reads frames, int64 [n] each; each begins a page."""
    for frame in frames:
        stream.feed(frame)
        seal(stream)


@torch.inference_mode()
def dense(model: Any, tokens: Tensor, see: See, sights: list[Tensor] | None = None) -> Tensor:
    """Logits fp64 [T, V] of tokens int64 [T] when every layer sees what `see` says; sights: what
    each layer saw is added to it."""
    inv_freq = model.inv_freq.double()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen, distance = see(layer, q, k)
        if sights is not None:
            sights.append(seen)
        weights = softmax(logits_of(q, k, distance, inv_freq), seen, model.sink_logits(layer))
        group = q.shape[1] // k.shape[1]
        return torch.einsum("htj,jhd->thd", weights, v.repeat_interleave(group, 1))

    made: Tensor = copy.deepcopy(model).double()(tokens, attend)
    return made


def anew(
    model: Any, tokens: Tensor, sights: Sequence[Tensor], count: int, *, in_a_row: bool = False
) -> Tensor:
    """Logits fp64 [count, V] of the last of tokens, behind all that any layer or head of theirs
    sees, encoded causally as if nothing else had been read; where it stands, or in a row."""
    alive = torch.stack([seen[..., -count:, :].flatten(0, -2).any(0) for seen in sights]).any(0)
    at = alive.nonzero()[:, 0]
    at = torch.arange(len(at)) if in_a_row else at
    causal = torch.ones(len(at), len(at)).tril().bool()
    return dense(model, tokens[alive], lambda *_: (causal, at[:, None] - at))[-count:]


def logits_of(q: Tensor, k: Tensor, distance: Tensor | None, inv_freq: Tensor) -> Tensor:
    """fp64 [Hq, T, S]: scaled products of q [T, Hq, D] with k [S, Hkv, D] at these distances."""
    x, y = (_pairs(t.double()) for t in (q, k))
    y, scale = y.repeat_interleave(q.shape[1] // k.shape[1], 1), float(q.shape[-1]) ** -0.5
    if distance is None:
        x, y = (t * _turns(torch.arange(len(t)), inv_freq)[:, None] for t in (x, y))
        return torch.einsum("thd,jhd->htj", x, y.conj()).real * scale
    made: Tensor = torch.einsum("thd,jhd,tjd->htj", x, y.conj(), _turns(distance, inv_freq))
    return made.real * scale


def _turns(steps: Tensor, inv_freq: Tensor) -> Tensor:
    angle = steps.double()[..., None] * inv_freq
    return torch.complex(angle.cos(), angle.sin())


def softmax(logits: Tensor, seen: Tensor, sink_logits: Tensor | None = None) -> Tensor:
    """Weights of [H, T, S] over what is seen [T, S]; a learned sink [H] takes its share."""
    logits = logits.masked_fill(~seen, -torch.inf)
    if sink_logits is not None:
        extra = sink_logits.to(logits)[:, None, None].expand(*logits.shape[:2], 1)
        logits = torch.cat([logits, extra], -1)
    weights = logits.softmax(-1).nan_to_num(0.0)
    return weights if sink_logits is None else weights[..., :-1]


def reported(report: Report) -> Tensor:
    """The logits that were asked for."""
    assert report.logits is not None
    return report.logits


def _pairs(x: Tensor) -> Tensor:
    return torch.complex(*x.chunk(2, -1))
