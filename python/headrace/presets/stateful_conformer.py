# SPDX-License-Identifier: Apache-2.0
"""Stateful Conformer: speech encoded chunk by chunk, each layer with its caches, at a chosen delay.

Noroozi et al., Stateful Conformer with Cache-based Inference for Streaming Automatic Speech
Recognition (2023), arXiv 2312.17279; its abstract, the notes of NeMo's released models and the
documentation of other implementations were read. Frames of 10 ms are brought to 80 ms by strided
convolutions. In every layer a frame sees its own chunk and the 70 frames before the chunk, and the
depthwise convolution, of 9 taps, sees the past alone. A chunk is one frame and its look-ahead: 0,
80, 480 or 1040 ms, chosen when the system is made, of those that the model was trained for. The
cache of a layer is then 70 frames for attention and 8 for the convolution, and nothing is encoded
twice.

Chosen here: rotary positions in place of learned relative ones; every strided convolution has 3
taps and sees its own two frames and the one before, so that an encoding sees the 80 ms that it
stands for and 70 ms before; the model is `headrace.models.Conformer`, with random weights.

The tail: once nothing more comes, `finish` encodes what is left as a chunk of its own. Frames that
do not fill 80 ms are dropped, by the whole encoder too.

Oracle: the encoder over the whole file, dense, under the mask of chunks. Recompute: the buffered
form, in which every chunk is encoded anew with the frames that it sees and no other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..models import Conformer
from ..streams import Encoder
from .encoding import chunked, dense, equality, whole
from .given import counts
from .proof import Check, Preset

__all__ = ["stateful_conformer"]

WINDOW, FRAME_MS = 70, 10
LOOK_AHEAD = (0, 80, 480, 1040)


def _chunk(model: Any, look_ahead: int) -> int:
    """Encodings that leave together."""
    step = FRAME_MS * 2**model.config.stages
    if look_ahead < 0 or look_ahead % step:
        raise bad_value("stateful_conformer", "look_ahead", f"a multiple of {step} ms", look_ahead)
    return 1 + look_ahead // step


def stateful_conformer(
    model: Any, *, look_ahead: int = 1040, window: int = WINDOW, **options: Any
) -> Encoder:
    """The system: `open().feed(frames)` of 10 ms each.

    look_ahead: in ms, of those that the model was trained for. window: frames of attention before a
    chunk. Options as in `headrace.streams.Encoder`, whose errors it raises. ValueError where
    look_ahead is no multiple of the length of an encoding.
    """
    counts("stateful_conformer", least=0, look_ahead=look_ahead)
    return Encoder(model, chunk=_chunk(model, look_ahead), window=window, **options)


def oracle(model: Any, frames: Tensor, *, look_ahead: int = 1040, window: int = 70) -> Tensor:
    """Encodings fp64 [T // stride, width] of a whole file [T, inputs]."""
    chunk = _chunk(model, look_ahead)
    return whole(model, frames, lambda m, count: dense(m, chunked(count, chunk, window)))


def recompute(
    model: Any, frames: Tensor, *, look_ahead: int = 1040, window: int = WINDOW
) -> Tensor:
    """The same where every chunk is encoded anew behind the `window` frames before it."""
    chunk, stride, out = _chunk(model, look_ahead), 2**model.config.stages, []
    for start in range(0, len(frames) // stride, chunk):
        before = min(start, window)
        part = frames[stride * (start - before) : stride * (start + chunk)]

        def mix(m: Any, count: int, before: int = before) -> Any:
            ahead = chunked(count + chunk, chunk, window, first=before % chunk or None)
            return dense(m, ahead[:count, :count])

        out.append(whole(model, part, mix)[before:])
    return torch.cat(out)


def check(model: Any) -> list[Check]:
    """Equality with the whole encoder for every look-ahead, however the frames come."""
    made = torch.Generator().manual_seed(13)
    count = 8 * 130 + 5
    frames = torch.randn(count, model.config.inputs, generator=made)
    checks = []
    for look_ahead in LOOK_AHEAD:

        def make(look_ahead: int = look_ahead, **options: Any) -> Encoder:
            return stateful_conformer(model, look_ahead=look_ahead, **options)

        want = oracle(model, frames, look_ahead=look_ahead)
        checks += equality(make, frames, want, (3, count), f"{look_ahead} ms")
    return checks


PRESET = Preset(
    "stateful_conformer",
    "Noroozi et al., 2023; arXiv 2312.17279",
    stateful_conformer,
    check,
    Conformer,
    oracle,
    recompute,
    kind="net",
)
