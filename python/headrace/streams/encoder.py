# SPDX-License-Identifier: Apache-2.0
"""Streams through an audio encoder: frames come as they like, and leave in whole chunks.

A frame sees its own chunk, both ways, and the `window` frames before the chunk; convolutions see
what came before. Keys and values live in pages as an engine's do, convolutions keep their last
inputs, and nothing is encoded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import interrupts, ops
from ..adapters import Adapter, AdapterBank
from ..errors import bad_type, bad_value
from ..memory import UNLIMITED, Edit, Lease, PagePool, Plan, Table
from ..memory.view import BEFORE, Row, View
from .adapting import Sites
from .encoder_stream import CALL, EncoderStream, Run, State


class Encoder:
    """Streams through one encoder (`headrace.models.Conformer`) over one page pool.

    chunk: frames that leave together, of those the encoder makes; its look-ahead is chunk - 1.
    window: frames before the chunk that it sees. first: length of the first chunk, if another.
    streams: how many the pool has room for. exact: every product through `ops.linear`. adapters: a
    bank for the model; each stream may have its own of them. Raises TypeError or ValueError naming
    the argument.
    """

    def __init__(
        self,
        model: Any,
        *,
        chunk: int,
        window: int,
        first: int | None = None,
        streams: int = 16,
        page_size: int = 16,
        exact: bool = True,
        adapters: AdapterBank | None = None,
    ) -> None:
        first = chunk if first is None else first
        sizes = {"chunk": chunk, "window": window, "first": first, "streams": streams}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise bad_type("Encoder", name, "a whole number", repr(value))
            if value < (name != "window"):
                raise bad_value("Encoder", name, f"{int(name != 'window')} or more", value)
        self.model, self.chunk, self.window, self.first = model, chunk, window, first
        self.plan = Plan(reach=window + 1)
        c = model.config
        self.stride: int = 2**c.stages
        """Frames that come in, for each that goes out."""
        self.device = model.inv_freq.device
        most = max(first, chunk, CALL)
        pages = self.plan.window_pages(page_size) + -(-most // page_size) + 1
        self.pool = PagePool(
            c.layers, streams * pages, c.heads, c.head_dim, page_size, device=self.device
        )
        self._inv_freq = model.inv_freq.double()
        self._linear: Callable[..., Tensor] = ops.linear if exact else F.linear
        self.adapters = adapters
        self._sites = None if adapters is None else Sites(model, adapters, self._probe)

    def open(self, *, adapter: str | Adapter | None = None) -> EncoderStream:
        """A new stream. adapter: a name or digest that the bank knows, kept until it closes."""
        chosen = None
        if adapter is not None:
            if self.adapters is None or self._sites is None:
                hint = "make the Encoder with adapters="
                raise bad_value("open", "adapter", "None", repr(adapter), hint)
            chosen = self._sites.check("open", self.adapters.find(adapter, "open"))
        c = self.model.config
        lease = Lease(self.pool, Table(0, 0, self.plan))
        widths = [c.inputs, *[c.width] * c.stages][: c.stages]
        cells = [torch.zeros(1, width, device=self.device) for width in widths]
        taps = torch.zeros(c.layers, c.width, max(c.taps - 1, 0), device=self.device)
        return EncoderStream(self, lease, State(cells, taps), adapter=chosen)

    def step(
        self, batch: Mapping[EncoderStream, Tensor], *, ends: bool = False
    ) -> dict[EncoderStream, Tensor]:
        """Reads frames fp32 [n, inputs] of many streams, any number; gives encodings [m, width] of
        the chunks that they make whole, one model call for all.

        ends: nothing more comes, so that what is left is a chunk too, but for frames that are too
        few for one encoding: the tail. All or nothing: after any error all streams are as before.
        """
        runs = [Run(stream, self._waiting(stream, x), ends) for stream, x in batch.items()]
        edit = Edit(self.pool)
        try:
            with torch.inference_mode():
                while any(run.chunks for run in runs):
                    self._call(edit, [run for run in runs if run.chunks])
            with interrupts.deferred():
                for run in runs:
                    run.stream._lease.table, run.stream._state = run.table, run.state
                    run.stream._waiting = run.frames[run.at :].clone()
                edit.commit()
        except BaseException:
            with interrupts.deferred():
                edit.undo()
            raise
        none = torch.zeros(0, self.model.config.width, device=self.device)
        return {run.stream: torch.cat([none, *run.out]) for run in runs}

    def close(self) -> None:
        """Gives the pool's memory back; streams are void."""
        self.pool.close()

    def _waiting(self, stream: EncoderStream, frames: Tensor) -> Tensor:
        """All that a stream has not yet encoded."""
        if not isinstance(stream, EncoderStream) or stream.encoder is not self:
            raise bad_value("step", "batch", "streams of this encoder", repr(stream))
        if stream.closed:
            raise bad_value("step", "stream", "an open stream", "a closed one")
        inputs = self.model.config.inputs
        if not isinstance(frames, Tensor):
            raise bad_type("step", "frames", "a tensor", type(frames).__name__)
        if frames.dim() != 2 or frames.shape[1] != inputs:
            raise bad_value("step", "frames", f"[n, {inputs}]", list(frames.shape))
        return torch.cat([stream._waiting, frames.to(self.device, torch.float32)])

    def _call(self, edit: Edit, runs: list[Run]) -> None:
        """The next chunks of every run, in one model call or one per wave of adapters."""
        taken = [run.take() for run in runs]
        if self._sites is None or not any(run.stream._adapter for run in runs):
            return self._advance(edit, runs, taken, self._linear)

        def call(chosen: list[int], linear: Callable[..., Tensor]) -> None:
            self._advance(edit, [runs[i] for i in chosen], [taken[i] for i in chosen], linear)

        adapters = [run.stream._adapter for run in runs]
        self._sites.call(adapters, list(map(sum, taken)), self._linear, call)

    def _advance(
        self, edit: Edit, runs: list[Run], taken: list[list[int]], linear: Callable[..., Tensor]
    ) -> None:
        counts = [sum(chunks) for chunks in taken]
        grown, slots = edit.advance([run.table for run in runs], counts)
        x = torch.cat([r.next(self.stride * n) for r, n in zip(runs, counts, strict=True)])
        states = [run.state for run in runs]
        taps = torch.stack([state.taps for state in states], 1)
        new = [State(list(state.cells), state.taps) for state in states]
        ends = torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=self.device)
        rows = torch.arange(len(runs), dtype=torch.int32, device=self.device)

        def convolve(layer: int, h: Tensor, kernel: Tensor) -> Tensor:
            made: Tensor = ops.causal_conv(
                h.contiguous(), kernel, None, taps[layer], ends, rows, activation=None
            )
            return made

        def strided(stage: int, h: Tensor) -> Tensor:
            parts = h.split([n * self.stride >> stage for n in counts])
            for state, part in zip(new, parts, strict=True):
                part = torch.cat([state.cells[stage], part])
                state.cells[stage] = part[-1:]
                wide.append(part.unfold(0, 3, 2).flatten(1))
            made = torch.cat(wide)
            wide.clear()
            return made

        wide: list[Tensor] = []
        attend = self._attend(grown, np.split(slots, list(accumulate(counts))[:-1]), taken)
        encoded = self.model(x, attend, convolve, strided, linear).split(counts)
        with interrupts.deferred():
            for i, (run, table) in enumerate(zip(runs, edit.let_go(grown), strict=True)):
                new[i].taps = taps[:, i].clone()
                run.table, run.state = table, new[i]
                run.out.append(encoded[i])

    def _attend(
        self, tables: Sequence[Table], wheres: Sequence[np.ndarray], taken: Sequence[list[int]]
    ) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        seen: list[list[Row]] = []
        where: list[np.ndarray] = []
        starts: list[int] = []
        for table, slots, chunks in zip(tables, wheres, taken, strict=True):
            at = table.end - len(slots)
            for size in chunks:
                seen.append(_rows(table, max(0, at - self.window), at + size))
                starts.append(at)
                where.append(slots[:size])
                slots, at = slots[size:], at + size
        view = View.of(where, seen, starts, self.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pages, _ = self.pool.layer(layer)
            ops.append(k, v, *pages, view.where, inv_freq=self._inv_freq)
            self.pool.written_bytes += len(k) * self.pool.row_bytes
            lists = (*view.lists(layer), view.q_indptr, view.q_pos)
            o, _ = ops.paged_attention(
                q, *pages, *lists, inv_freq=self._inv_freq, max_rows=view.max_rows
            )
            return o

        return attend

    def _probe(self, linear: Callable[..., Tensor]) -> None:
        """One encoding, to find the products of the model."""
        x = torch.zeros(self.stride, self.model.config.inputs, device=self.device)
        self.model(
            x,
            lambda layer, q, k, v: v,
            lambda layer, h, kernel: h,
            lambda stage, h: h.new_zeros(len(h) // 2, 3 * h.shape[1]),
            linear,
        )


def _rows(table: Table, start: int, stop: int) -> list[Row]:
    """The tokens start..stop-1 of a stream, seen by all queries of a list."""
    rows: list[Row] = []
    for page, end in table.window_spans():
        a, b = max(page.start, start), min(end, stop)
        if a < b:
            place = (page.id, a - page.start, b - a, page.origin)
            rows.append((*place, UNLIMITED, BEFORE, UNLIMITED))
    return rows
