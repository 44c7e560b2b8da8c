# SPDX-License-Identifier: Apache-2.0
"""The cache that a stock model is given: what it keeps is a memory, where keys are is a scheme."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ... import interrupts
from ...errors import bad_type, bad_value, unsupported
from ...memory import Recalled, Region, Spill
from ...memory.pool import DTYPES
from ...memory.regions import compile_plan
from ...streams import Absolute, InCache
from ...streams.positions import Positions
from .families import Attention, attention_of
from .far import Far, Heard, recall
from .layer import StreamingLayer
from .rows import GrowingPool, Rows
from .step import Step

LOOKBACK = 256
"""Forwards whose padding is remembered, for `crop`."""


class StreamingCache(Cache):
    """Keys and values of endless streams, one per row of a batch; pass it as past_key_values.

    config: of the model, or of its text part. memory: what every row keeps, e.g. Sink(4) +
    Window(2044). positions: InCache() (the default), so that no rotary angle exceeds the size of
    the memory however long the stream gets, or Absolute(). dtype: of the pages, as PagePool has it;
    None takes that of the keys. chunk: longest run of tokens of a row in one call of a kernel; any
    result is the same.

    The model must run with the attention implementation "headrace" (`model.set_attn_implementation`
    or `attached(model)`); without this cache that is the same as sdpa. Keys and queries arrive
    turned by the angles of their position_ids; both are turned back by the very same angles, so
    that position_ids may grow without end. In layers with a sliding window of their own a token
    sees what is in that window and in the memory.

    The RoPE types dynamic and longrope have frequencies that depend on the length. A stream has
    those of rope_length tokens from its first to its last, so that no key has to be turned anew;
    None takes the most that a query sees, where InCache() and the memory set a bound to it.

    Rows may be padded on any side, as attention_mask says. Beams, sampling, prefill_chunk_size and
    assisted decoding are supported; the last `SLACK` tokens, at least, can be taken back by `crop`.
    `copy.deepcopy` makes a cache that goes on by itself and shares all full pages.

    Raises TypeError, ValueError or NotImplementedError naming the argument. After a forward that
    ends before its last attention layer does, the cache is as it was before.
    """

    def __init__(
        self,
        config: Any,
        *,
        memory: Region,
        positions: Positions | None = None,
        dtype: torch.dtype | None = None,
        page_size: int = 64,
        chunk: int = 512,
        rope_length: int | None = None,
    ) -> None:
        positions = InCache() if positions is None else positions
        if type(positions) not in (InCache, Absolute):
            raise bad_type(
                "StreamingCache", "positions", "InCache() or Absolute()", repr(positions)
            )
        if dtype is not None and dtype not in DTYPES:
            names = ", ".join(str(x).removeprefix("torch.") for x in DTYPES)
            raise bad_type("StreamingCache", "dtype", names, dtype)
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise bad_value("StreamingCache", "chunk", "a whole number, 1 or more", chunk)
        self.attention: Attention = attention_of(config, memory, positions, rope_length)
        self.memory, self.positions = memory, positions
        self.archive = memory.archive if isinstance(memory, Spill) else None
        if any(isinstance(region, Spill) for region in getattr(memory, "regions", ())):
            raise unsupported("StreamingCache", "memory", "an Archive last of all", repr(memory))
        self.plan = positions.place(compile_plan(memory))
        self.dtype, self.page_size, self.chunk = dtype, page_size, chunk
        self.rows: Rows | None = None
        self.heard: Heard | None = None
        self._start()
        super().__init__(
            layers=[StreamingLayer(self, i) for i in range(len(self.attention.sliding))]
        )

    def _start(self) -> None:
        self.seen = 0
        self.shift: list[int] = []
        self.step: Step | None = None
        self.pending: int | None = None
        self._padding: deque[Tensor | int] = deque(maxlen=LOOKBACK)

    @property
    def axis(self) -> Tensor | None:
        """`Attention.freq_axis`, or None where positions have one axis: with InCache() always."""
        return None if isinstance(self.positions, InCache) else self.attention.freq_axis

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that rows hold."""
        return 0 if self.rows is None else self.rows.pool.resident_bytes

    @property
    def alive(self) -> list[int]:
        """For each row, how many tokens its next query will see."""
        return [] if self.rows is None else [lease.table.alive for lease in self.rows.leases]

    # A forward, in order: `announce` by the mask, then for each layer `arrive` by the model and
    # `attend` by the attention function.

    def announce(self, rows: int, columns: int, real: Tensor | None) -> None:
        """A forward of `columns` tokens begins; real bool [rows, columns] tells them from padding.

        One that did not come to its end leaves no trace.
        """
        self.pending = None
        if self.step is not None and self.rows is not None:
            self.rows.undo()
        if self.rows is not None and len(self.rows) != rows:
            raise bad_value("StreamingCache", "batch", f"{len(self.rows)} rows", rows)
        self.step = Step(rows, columns, real)

    def arrive(self, layer: int) -> None:
        """A layer hands over its keys, which attention is to fetch next."""
        if self.step is None or self.pending is not None or self.step.layer != layer:
            self._abandon()
            raise unsupported(
                "StreamingCache",
                "attention",
                'the attention implementations "headrace"',
                "another, or a mask made by hand",
                'call model.set_attn_implementation("headrace")',
            )
        self.pending = layer

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ids: Tensor | None,
        turned: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Output [B, L, Hq, D] of a layer for q [B, Hq, L, D] and k, v [B, Hkv, L, D].

        turned: the cosines and sines that the model took, where they are known.
        """
        step, self.pending = self.step, None
        assert step is not None
        try:
            if step.pieces is None:
                step.begin(self, q, k, ids, turned)
            out = step.attend(self, layer, q, k, v, **options)
        except BaseException:
            self._abandon()
            raise
        step.layer = layer + 1
        if layer == len(self.layers) - 1:
            assert self.rows is not None
            with interrupts.deferred():
                self.rows.commit()
                self.shift, self.step = step.shift, None
                self.seen += step.columns
                self._padding.append(step.columns if step.real is None else step.real)
        return out

    def open(self, rows: int, k: Tensor) -> Rows:
        """The rows, made at the first forward, when their number and the kind of keys are known."""
        if self.rows is None:
            with torch.inference_mode(False):
                pool = GrowingPool(
                    len(self.layers),
                    rows,
                    k.shape[1],
                    k.shape[3],
                    self.page_size,
                    k.dtype if self.dtype is None else self.dtype,
                    k.device,
                )
                far = None
                if self.archive is not None:
                    far = Far(self.archive, pool, self.attention.inv_freq, self.axis)
                self.rows = Rows(pool, self.plan, rows, self.chunk, far)
        return self.rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    @property
    def is_initialized(self) -> bool:
        return self.rows is not None

    @property
    def batch_size(self) -> int:
        return -1 if self.rows is None else len(self.rows)

    def reset(self) -> None:
        """Forgets everything, what is in an archive included."""
        if self.rows is not None:
            self.rows.undo()
            self.rows.release()
        self.rows = None
        self._start()

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last -tokens_to_remove tokens of every row back, exactly.

        ValueError, and nothing is changed, when their pages are gone.
        """
        count = -tokens_to_remove
        if count < 0:
            raise bad_value("crop", "tokens_to_remove", "0 or less", tokens_to_remove)
        if count > self.seen:
            raise bad_value("crop", "tokens_to_remove", f"{-self.seen} or more", tokens_to_remove)
        self._abandon()
        if count == 0 or self.rows is None:
            return
        lengths, left, kept = [0] * len(self.rows), count, self._padding.copy()
        while left:
            if not kept:
                expected = f"tokens of the last {LOOKBACK} forwards"
                raise bad_value("crop", "tokens_to_remove", expected, tokens_to_remove)
            last = kept.pop()
            size = last if isinstance(last, int) else last.shape[1]
            cut = min(size, left)
            left -= cut
            if isinstance(last, int):
                lengths = [n + cut for n in lengths]
            else:
                lengths = [
                    n + m
                    for n, m in zip(lengths, last[:, size - cut :].sum(1).tolist(), strict=True)
                ]
            if cut < size:
                kept.append(last - cut if isinstance(last, int) else last[:, : size - cut])
        self.rows.cut(lengths)
        self._padding, self.seen = kept, self.seen - count

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i goes on as row beam_idx[i] was."""
        self._pick(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self._pick([i for i in range(max(self.batch_size, 0)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows that `indices` (numbers, or bool for each row) names, in that order."""
        self._pick(torch.arange(max(self.batch_size, 0))[indices.cpu()].tolist())

    def _pick(self, chosen: Sequence[int]) -> None:
        self._abandon()
        if self.rows is None or list(chosen) == list(range(len(self.rows))):
            return
        self.rows.pick(chosen)
        self.shift = [self.shift[i] for i in chosen]
        kept = (x if isinstance(x, int) else x[list(chosen)] for x in self._padding)
        self._padding = deque(kept, maxlen=LOOKBACK)

    def _abandon(self) -> None:
        if self.step is not None and self.rows is not None:
            self.rows.undo()
        self.step = self.pending = None

    def recall(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        *,
        top: int | None = None,
        mass: float | None = None,
        bound: str = "proven",
        **inputs: Any,
    ) -> list[Recalled]:
        """Brings back of the archive what a question needs, and what no query sees any more but is
        still held; forwards to come see it, before the window, until `forget`.

        The model reads input_ids int64 [B, L] on the side (they do not count as read; `inputs` go
        to it too), and each layer of each row finds its own pages: the `top` that its mean query
        likes best (ReKV; Di et al., 2025), or as many as it takes for every query and head to see
        the share `mass` of its softmax; all without either. bound: what vouches for the share,
        "proven", "sampled" or "estimate", as for `headrace.Stream.recall`. Layers with a sliding
        window of their own recall nothing. Gives for every row what it recalled (see
        `headrace.memory.Recalled`); after an error what was recalled before still is.

        ValueError, TypeError or NotImplementedError naming the argument.
        """
        return recall(self, model, input_ids, top, mass, bound, inputs)

    def forget(self) -> None:
        """Forwards to come see nothing of the archive."""
        self._abandon()
        if self.rows is not None:
            self.rows.forget()

    def fork(self, archive: bool = True) -> StreamingCache:
        """Another cache that goes on by itself; without `archive` it keeps what it has recalled
        out of sight, and lets go of what leaves its window.
        """
        other = object.__new__(StreamingCache)
        other.__dict__.update(self.__dict__)
        other.layers = [StreamingLayer(other, i) for i in range(len(self.layers))]
        other._padding, other.shift = self._padding.copy(), list(self.shift)
        other.step = other.pending = other.rows = other.heard = None
        if self.rows is not None:
            self._abandon()
            far = self.rows.far if archive else None
            other.rows = Rows(self.rows.pool, self.plan, len(self.rows), self.chunk, far)
            other.rows.pick(range(len(self.rows)), self.rows)
            if not archive:
                other.rows.forget()
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamingCache:
        memo[id(self)] = other = self.fork()
        return other
