# SPDX-License-Identifier: Apache-2.0
"""What presets of encoders share: dense forwards in fp64, and checks against them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import Conformer
from ..streams import Encoder
from .proof import Check

BOUND = 1e-4
"""Largest difference of two encodings that counts as rounding, over the largest value in them."""

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def gap(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value; infinity where there are more or fewer rows."""
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).abs().max() / want.abs().max())


def chunked(count: int, chunk: int, window: int, first: int | None = None) -> Tensor:
    """bool [count, count]: a frame sees its own chunk and `window` frames before the chunk."""
    first = chunk if first is None else first
    frame = torch.arange(count)
    start = torch.where(frame < first, 0, first + (frame - first) // chunk * chunk)
    length = torch.where(frame < first, first, chunk)
    key = frame[None]
    return (key >= (start - window)[:, None]) & (key < (start + length)[:, None])


def dense(model: Any, seen: Tensor, place: Tensor | None = None) -> Mix:
    """Masked attention over all frames, each turned by its place; seen bool [N, N]."""
    place = torch.arange(len(seen)) if place is None else place

    def turned(x: Tensor) -> Tensor:
        angle = (place.double()[:, None] * model.inv_freq)[:, None]
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = torch.einsum("ihd,jhd->hij", turned(q), turned(k)) * q.shape[2] ** -0.5
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weights, v)

    return attend


@torch.inference_mode()
def whole(model: Conformer, frames: Tensor, mix: Callable[[Any, int], Mix]) -> Tensor:
    """Encodings fp64 of a whole file [T, inputs], without a cache; mix(model in fp64, encodings)
    makes its attention."""
    model = copy.deepcopy(model).double()

    def convolve(layer: int, h: Tensor, kernel: Tensor) -> Tensor:
        taps, width = kernel.shape[1], len(kernel)
        return F.conv1d(F.pad(h.T[None], (taps - 1, 0)), kernel[:, None], groups=width)[0].T

    def strided(stage: int, h: Tensor) -> Tensor:
        rows = F.pad(h, (0, 0, 1, 0))
        return torch.stack([rows[i : i + 3].T.flatten() for i in range(0, len(rows) - 2, 2)])

    count = len(frames) // 2**model.config.stages
    used = frames[: count * 2**model.config.stages].double()
    return model(used, mix(model, count), convolve, strided)


def streamed(encoder: Encoder, frames: Tensor, size: int, **options: Any) -> tuple[Tensor, int]:
    """What a stream gives that is fed `size` frames at a time, to the end, and how many encodings
    it was behind what had come in at the worst of times."""
    out, late = [], 0
    with encoder.open(**options) as stream:
        for part in frames.split(size):
            out.append(stream.feed(part))
            late = max(late, stream.waiting // encoder.stride)
        out.append(stream.finish())
    return torch.cat(out), late


def equality(
    make: Callable[..., Encoder],
    frames: Tensor,
    want: Tensor,
    sizes: Sequence[int],
    name: str,
    **options: Any,
) -> list[Check]:
    """That streams equal an oracle however the frames come, and that nothing else shows in them.

    make(exact=) gives the encoder; options as of `Encoder.open`.
    """
    checks: list[Check] = []
    first: Tensor | None = None
    encoder = make(exact=True)
    for size in sizes:
        got, late = streamed(encoder, frames, size, **options)
        claim = f"{name}, {size} at a time"
        checks.append(
            Check(f"{claim}: max |value - oracle| over max |oracle|", gap(got, want), BOUND)
        )
        ahead = max(encoder.first, encoder.chunk) - 1
        checks.append(Check(f"{claim}: encodings waiting for the look-ahead", late, ahead))
        first = got if first is None else first
        differ = int((got != first).sum())
        checks.append(Check(f"{claim}, beside {sizes[0]} at a time: values that differ", differ, 0))
    half = len(frames) // 2
    many = {encoder.open(**options): frames.roll(i, 0)[: len(frames) - 8 * i] for i in range(4)}
    one = next(iter(many))
    out = [encoder.step({s: x[:half] for s, x in many.items()})[one]]
    out += [one.feed(frames[half:]), one.finish()]
    assert first is not None
    differ = int((torch.cat(out) != first).sum())
    checks.append(Check(f"{name}, beside 3 others: values that differ", differ, 0))
    for stream in [s for s in many if s is not one]:
        stream.close()
    most = encoder.plan.window_pages(encoder.pool.page_size)
    checks.append(Check(f"{name}: pages of a stream, of those planned", len(one.pages), most))
    one.close()
    with encoder.open(**options) as stream:
        out = [stream.feed(frames[:half])]
        with stream.fork() as fork:
            stream.feed(frames[:half])  # which the fork must not see
            out += [fork.feed(frames[half:]), fork.finish()]
    claim = f"{name}, of a fork: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, gap(torch.cat(out), want), BOUND))
    checks.append(Check(f"{name}: pages held after all are closed", encoder.pool.live_pages, 0))
    encoder.close()
    encoder = make(exact=False)
    got, _ = streamed(encoder, frames, sizes[-1], **options)
    claim = f"{name}, torch's products: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, gap(got, want), BOUND))
    encoder.close()
    return checks
