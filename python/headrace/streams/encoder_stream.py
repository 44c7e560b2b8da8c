# SPDX-License-Identifier: Apache-2.0
"""A stream through an encoder, and what of it a step moves on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..memory import Lease

if TYPE_CHECKING:
    from ..adapters import Adapter
    from .encoder import Encoder

CALL = 256
"""Frames of a stream in one model call, if a chunk is not longer."""


class State:
    """What convolutions keep: cells, by stage [1, C]; taps [layers, width, taps - 1]. A step makes
    a new one."""

    def __init__(self, cells: list[Tensor], taps: Tensor) -> None:
        self.cells, self.taps = cells, taps


class Run:
    """What a stream reads in a step."""

    def __init__(self, stream: EncoderStream, frames: Tensor, ends: bool) -> None:
        self.stream, self.frames, self.at = stream, frames, 0
        self.table, self.state = stream._lease.table, stream._state
        self.out: list[Tensor] = []
        encoder = stream.encoder
        left, begun = len(frames) // encoder.stride, self.table.end > 0
        self.chunks: list[int] = []
        while left >= (size := encoder.chunk if begun else encoder.first):
            self.chunks.append(size)
            left, begun = left - size, True
        if ends and left:
            self.chunks.append(left)

    def take(self) -> list[int]:
        """Lengths of the chunks that go into the next model call."""
        taken = [self.chunks.pop(0)]
        while self.chunks and sum(taken) + self.chunks[0] <= CALL:
            taken.append(self.chunks.pop(0))
        return taken

    def next(self, count: int) -> Tensor:
        """So many frames more."""
        self.at += count
        return self.frames[self.at - count : self.at]


class EncoderStream:
    """One sequence of frames; made by `Encoder.open`."""

    def __init__(
        self,
        encoder: Encoder,
        lease: Lease,
        state: State,
        waiting: Tensor | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.encoder, self._lease, self._state, self._adapter = encoder, lease, state, adapter
        none = torch.zeros(0, encoder.model.config.inputs, device=encoder.device)
        self._waiting = none if waiting is None else waiting

    @property
    def closed(self) -> bool:
        return self._lease.released

    @property
    def encoded(self) -> int:
        """Encodings that it has given so far."""
        return self._lease.table.end

    @property
    def waiting(self) -> int:
        """Frames that have come in and are not yet encoded."""
        return len(self._waiting)

    @property
    def pages(self) -> list[int]:
        """Ids of the pages it holds."""
        return self._lease.table.page_ids

    def feed(self, frames: Tensor) -> Tensor:
        """`Encoder.step` for this stream alone."""
        return self.encoder.step({self: frames})[self]

    def finish(self) -> Tensor:
        """Encodings of what is left, once nothing more comes; see `Encoder.step`."""
        return self.encoder.step({self: self._waiting[:0]}, ends=True)[self]

    def fork(self) -> EncoderStream:
        """A stream that goes on from here on its own, sharing all pages so far."""
        share = (self._lease.share(), self._state, self._waiting, self._adapter)
        return EncoderStream(self.encoder, *share)

    def close(self) -> None:
        """Gives the pages back. Closing twice is fine."""
        self._lease.release()
        self._adapter = None

    def __enter__(self) -> EncoderStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
