# SPDX-License-Identifier: Apache-2.0
"""Loss of a decoder on held-out text under different memories, all in plain torch and fp32.

The same streams, and on them the same target bytes, serve every memory, so that differences are
paired. A stream is cut from the held-out files at an even spacing and runs across file boundaries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder import Attend, Decoder
from . import data
from .attention import banded, dense, rotate, rotation

CONTEXT = 256  # tokens that every bounded memory here holds, or four fewer


@dataclass(frozen=True)
class Row:
    """Nats per byte of one memory, as means over places in the streams; nan: it has no such
    places.
    """

    memory: str
    early: float  # t < 256
    steady: float  # t >= 256
    last: float  # last quarter of the stream
    sampled: float  # sampled places, the same for all rows
    error: float  # standard error of `sampled` minus the first row's, from the pairs


def losses(model: Decoder, text: Tensor, attend: Attend) -> Tensor:
    """Nats [B, L] fp32 of each next byte of text [B, L + 1], one forward over all rows."""
    with torch.no_grad():
        logits = model(text[:, :-1].flatten(), attend)
    return F.cross_entropy(logits, text[:, 1:].flatten(), reduction="none").view(len(text), -1)


def cached(model: Decoder, streams: Tensor, window: int, sinks: int) -> Tensor:
    """Nats [B, L] under the streaming policy; equal to feeding each stream byte by byte."""
    attend = banded(model, streams.shape[1] - 1, window, sinks, block=128)
    return torch.cat([losses(model, stream[None], attend) for stream in streams])


def recomputed(model: Decoder, streams: Tensor, places: Tensor, context: int = CONTEXT) -> Tensor:
    """Nats [len(places)] when the last `context` bytes are encoded anew, from position 0, for
    each of places [N, 2].
    """
    attend = dense(model, context)
    pieces = torch.stack([streams[b, t - context + 1 : t + 2] for b, t in places.tolist()])
    return torch.cat([losses(model, part, attend)[:, -1] for part in pieces.split(16)])


def evaluate(
    model: Decoder, held_out: Tensor, count: int = 8, length: int = 8192, samples: int = 1024
) -> list[Row]:
    """Rows for the memory nearest to the model's training (first) and for the others that people
    use.

    held_out: uint8 [bytes]; count streams of length bytes; samples places to encode anew, all at t
    >= 1024.
    """
    streams = data.spread(held_out, count, length)
    generator = torch.Generator().manual_seed(0)
    places = torch.stack(
        (
            torch.randint(0, count, (samples,), generator=generator),
            torch.randint(1024, length, (samples,), generator=generator),
        ),
        1,
    )
    short = losses_in_pieces(model, streams, CONTEXT)
    far = losses_in_pieces(model, streams, 1024)
    again = recomputed(model, streams, places)
    c = model.config
    memories = [(252, 4), (252, 0), (256, 0)]
    if c.window is not None:
        memories.sort(key=lambda memory: memory != (c.window, c.sinks))
    reference = again if c.window is None else None
    rows = []
    for window, sinks in memories:
        nats = cached(model, streams, window, sinks)
        at = nats[places[:, 0], places[:, 1]]
        reference = at if reference is None else reference
        rows.append(
            Row(
                f"cache: window {window}, {sinks} sinks",
                nats[:, :CONTEXT].mean().item(),
                nats[:, CONTEXT:].mean().item(),
                nats[:, -length // 4 :].mean().item(),
                at.mean().item(),
                (at - reference).std().item() / math.sqrt(samples),
            )
        )
    nan = math.nan
    assert reference is not None
    error = (again - reference).std().item() / math.sqrt(samples)
    rows.append(
        Row(f"last {CONTEXT} bytes encoded anew", nan, nan, nan, again.mean().item(), error)
    )
    if c.window is None:
        rows.insert(0, rows.pop())  # the nearest to what a densely trained model saw
    rows.append(Row(f"dense, pieces of {CONTEXT}", short.mean().item(), nan, nan, nan, nan))
    early, late = far[:, :CONTEXT].mean().item(), far[:, CONTEXT:].mean().item()
    rows.append(Row("dense, pieces of 1024", early, late, far[:, 768:].mean().item(), nan, nan))
    return rows


def losses_in_pieces(model: Decoder, streams: Tensor, size: int) -> Tensor:
    """Nats [pieces, size] of the streams cut into pieces of `size` bytes, each seen densely and
    alone.
    """
    attend = dense(model, size)
    pieces = streams.unfold(1, size + 1, size).flatten(0, 1)
    return torch.cat([losses(model, part, attend) for part in pieces.split(max(1, 4096 // size))])


def first_mass(model: Decoder, text: Tensor, first: int = 4) -> Tensor:
    """Attention that the first keys draw, fp32 [layers, Hq]: probability on keys 0..first-1, mean
    over the queries in the second half of each row of text [B, L + 1], seen densely.

    A head without preferences gives about first / (0.72 L); a head with an attention sink, most.
    """
    length = text.shape[1] - 1
    half = length // 2
    cos, sin = rotation(torch.arange(length), model.inv_freq, torch.float32)
    visible = torch.ones(length, length, dtype=torch.bool).tril()[half:]
    masses: dict[int, Tensor] = {}
    plain = dense(model, length)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys = (rotate(x.view(len(text), length, *x.shape[1:]), cos, sin) for x in (q, k))
        keys = keys.repeat_interleave(q.shape[1] // k.shape[1], 2)
        logits = torch.einsum("bthd,bshd->bhts", queries[:, half:], keys) * q.shape[-1] ** -0.5
        logits = logits.masked_fill(~visible, -math.inf)
        sink = model.sink_logits(layer)
        total = logits.logsumexp(-1, keepdim=True)
        if sink is not None:
            total = torch.logaddexp(total, sink.view(1, -1, 1, 1))
        masses[layer] = (logits - total).exp()[..., :first].sum(-1).mean((0, 2))
        return plain(layer, q, k, v)

    losses(model, text, attend)
    return torch.stack([masses[layer] for layer in range(model.config.layers)])


def table(rows: list[Row]) -> str:
    """Markdown; nats per byte, with bits per byte in brackets for the steady state."""

    def show(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.4f}"

    lines = [
        "| memory | t < 256 | t >= 256 (bits) | last quarter | sampled | error of difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        bits = "" if math.isnan(row.steady) else f" ({row.steady / math.log(2):.3f})"
        lines.append(
            f"| {row.memory} | {show(row.early)} | {show(row.steady)}{bits} | {show(row.last)} "
            f"| {show(row.sampled)} | {show(row.error)} |"
        )
    return "\n".join(lines)
