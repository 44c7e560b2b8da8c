# SPDX-License-Identifier: Apache-2.0
"""The engine: a model, a page pool, and one ragged step for many streams."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import bad_type, bad_value
from ..memory import Edit, Lease, PagePool, Plan, Region, Table, view
from ..memory.regions import UNLIMITED, compile_plan
from . import interrupts
from .history import History
from .positions import InCache, Positions
from .report import Report
from .stream import Stream
from .tokens import Tokens, ids

STREAMS = 16
"""Streams that a pool of the default size has room for."""
DENSE_TOKENS = 1 << 16
"""Tokens that it has room for when the window is unlimited."""


class Model(Protocol):
    """What the engine asks of a model; `headrace.models.Decoder` is one.

    config has vocab, layers, kv_heads and head_dim. Calling it with tokens int64 [T], attend(layer,
    q, k, v) and linear gives logits [T, vocab]; q and k come un-rotated. inv_freq fp64 [head_dim /
    2].
    """

    config: Any
    inv_freq: Tensor

    def __call__(
        self, tokens: Tensor, attend: Callable[..., Tensor], linear: Callable[..., Tensor] = ...
    ) -> Tensor: ...

    def sink_logits(self, layer: int) -> Tensor | None: ...


def wrap(
    model: Model,
    *,
    memory: Region,
    positions: Positions | None = None,
    pool_pages: int | None = None,
    page_size: int = 64,
    dtype: torch.dtype = torch.float32,
    exact: bool = True,
    chunk: int = 256,
) -> Engine:
    """An engine that streams through a model.

    memory: what a stream keeps, e.g. `Sink(4) + Window(252)`. positions: InCache() (the default) or
    Absolute(). pool_pages: pages of `page_size` tokens for all streams together; None makes room
    for 16 streams, or for 65,536 tokens when the window is unlimited. dtype: of keys and values in
    the pool (float32, bfloat16, float16, or int8 and float8_e4m3fn with a scale for every row,
    with about 4 and 15 times the error of bfloat16). exact: every matrix product through
    `ops.linear`, so that a stream has the same bits whatever else is in the step; False leaves them
    to torch. chunk: longest run of tokens of a stream in one model call. Raises TypeError,
    ValueError or NotImplementedError naming the argument.
    """
    return Engine(
        model,
        memory,
        positions if positions is not None else InCache(),
        pool_pages,
        page_size,
        dtype,
        exact,
        chunk,
    )


class Engine:
    """Streams through one model over one page pool; made by `wrap`. To be used from one thread."""

    def __init__(
        self,
        model: Model,
        memory: Region,
        positions: Positions,
        pool_pages: int | None,
        page_size: int,
        dtype: torch.dtype,
        exact: bool,
        chunk: int,
    ) -> None:
        for name in ("config", "inv_freq", "sink_logits"):
            if not hasattr(model, name):
                raise bad_type(
                    "wrap",
                    "model",
                    "a decoder, such as headrace.models.load gives",
                    type(model).__name__,
                    f"it has no {name}",
                )
        if not isinstance(positions, Positions):
            raise bad_type("wrap", "positions", "InCache() or Absolute()", repr(positions))
        sizes = {"chunk": chunk, "page_size": page_size, "pool_pages": pool_pages}
        for name, value in sizes.items():
            if value is None and name == "pool_pages":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise bad_type("wrap", name, "a whole number", repr(value))
            if value < 1:
                raise bad_value("wrap", name, "1 or more", value)
        self.model, self.memory, self.positions = model, memory, positions
        self.exact, self.chunk = exact, chunk
        self.plan: Plan = positions.place(compile_plan(memory))
        c = model.config
        self.vocab: int = c.vocab
        self.device = model.inv_freq.device
        self.pool = PagePool(
            c.layers,
            pool_pages or _default_pages(self.plan, page_size, chunk),
            c.kv_heads,
            c.head_dim,
            page_size,
            dtype,
            self.device,
        )
        self._inv_freq = model.inv_freq.double()
        self._linear: Callable[..., Tensor] = ops.linear if exact else F.linear
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.closed = False

    @property
    def resident_bytes(self) -> int:
        """Bytes of keys and values that streams and marks hold."""
        return self.pool.resident_bytes

    def open(self, *, position: int = 0, history: bool = False) -> Stream:
        """A new stream, whose first token has the logical position `position`.

        history: it remembers its tokens, four bytes each, which `Stream.update` needs.
        """
        self._check_open("open")
        if isinstance(position, bool) or not isinstance(position, int):
            raise bad_type("open", "position", "a whole number", repr(position))
        if not 0 <= position < 2**61:
            raise bad_value("open", "position", "0 or more, below 2**61", position)
        lease = Lease(self.pool, Table(position, position))
        return self._adopt(Stream(self, lease, history=History() if history else None))

    def close(self) -> None:
        """Closes every stream and gives the pool's memory back. Closing twice is fine."""
        for stream in list(self._streams):
            stream.close()
        self.pool.close()
        self.closed = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def step(self, batch: Mapping[Stream, Tokens], *, logits: bool = False) -> dict[Stream, Report]:
        """Feeds tokens to many streams, one model call for all of them; long inputs go in chunks.

        All or nothing: after any error, Ctrl-C included, every stream and the pool are as they
        were.
        """
        self._check_open("step")
        began = time.perf_counter()
        fed = {stream: self._tokens(stream, tokens) for stream, tokens in batch.items()}
        runs = {s: _Run(s._lease.table, s._last, x, self.vocab, logits) for s, x in fed.items()}
        edit = Edit(self.pool, self.plan)
        try:
            with torch.inference_mode():
                for at in range(0, max((len(t) for t in fed.values()), default=0), self.chunk):
                    self._advance(edit, [r for r in runs.values() if at < len(r.tokens)], at)
            ms = (time.perf_counter() - began) * 1e3
            reports = {stream: run.report(self.plan, ms) for stream, run in runs.items()}
            with interrupts.deferred():
                for stream, run in runs.items():
                    stream._lease.table, stream._last = run.table, run.last
                    if stream._history is not None:
                        stream._history = stream._history.extend(run.tokens.tolist())
                edit.commit()
        except BaseException:
            with interrupts.deferred():
                edit.undo()  # nothing, once committed
            raise
        return reports

    def _advance(self, edit: Edit, runs: list[_Run], at: int) -> None:
        """One model call: the tokens at..at+chunk of each run."""
        chunks = [run.tokens[at : at + self.chunk] for run in runs]
        starts = [run.table.end for run in runs]
        with interrupts.deferred():
            grown = edit.extend([run.table for run in runs], [len(c) for c in chunks])
        tables = [table for table, _ in grown]
        step = view.View.of(
            [where for _, where in grown],
            [view.entries(t, self.plan, oldest=p) for t, p in zip(tables, starts, strict=True)],
            starts,
            self.device,
        )
        out = self.model(torch.cat(chunks), self._attend(step), linear=self._linear)
        logits = out.float().split([len(c) for c in chunks])
        for run, table, read, rows in zip(runs, tables, chunks, logits, strict=True):
            with interrupts.deferred():
                run.table = edit.trim(table)
            run.score(read, rows)

    def _attend(self, step: view.View) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pages, scales = self.pool.layer(layer)
            sink_logits = self.model.sink_logits(layer)
            ops.append(k, v, *pages, step.where, inv_freq=self._inv_freq, **scales)
            o, _ = ops.paged_attention(
                q,
                *pages,
                step.entries,
                step.entry_indptr,
                step.q_indptr,
                step.q_pos,
                inv_freq=self._inv_freq,
                sink_logits=None if sink_logits is None else sink_logits.float().contiguous(),
                **scales,
            )
            return o

        return attend

    def _tokens(self, stream: object, tokens: Tokens) -> Tensor:
        if not isinstance(stream, Stream) or stream.engine is not self:
            raise bad_value("step", "batch", "streams of this engine", repr(stream))
        stream._check_open("feed")
        return ids(tokens, self.vocab, self.device)

    def _adopt(self, stream: Stream) -> Stream:
        self._streams.add(stream)
        return stream

    def _check_open(self, op: str) -> None:
        if self.closed:
            raise bad_value(op, "engine", "an open engine", "a closed one")


class _Run:
    """A stream on its way through a step: what it will be if the step succeeds."""

    def __init__(
        self, table: Table, last: Tensor | None, tokens: Tensor, vocab: int, keep: bool
    ) -> None:
        self.table, self.last, self.tokens = table, last, tokens
        self._keep = keep
        self._nll = [torch.empty(0, device=tokens.device)]
        self._logits = [torch.empty(0, vocab, device=tokens.device)]

    def score(self, tokens: Tensor, logits: Tensor) -> None:
        """Scores tokens [n] against what predicted them; logits [n, V] are those after each."""
        last = torch.full_like(logits[0], torch.nan) if self.last is None else self.last
        before = torch.cat([last[None], logits[:-1]])
        said = before.gather(1, tokens[:, None])[:, 0]
        self._nll.append(torch.logsumexp(before, -1) - said)
        self.last = logits[-1].clone()
        if self._keep:
            self._logits.append(logits)

    def report(self, plan: Plan, ms: float) -> Report:
        alive = plan.alive(self.table.tokens)
        return Report(
            tokens=len(self.tokens),
            nll=torch.cat(self._nll),
            alive=alive,
            evicted=self.table.tokens - alive,
            ms=ms,
            logits=torch.cat(self._logits) if self._keep else None,
        )


def _default_pages(plan: Plan, page_size: int, chunk: int) -> int:
    if plan.reach >= UNLIMITED:
        return plan.pinned_pages(page_size) + -(-DENSE_TOKENS // page_size)
    # A step of several chunks keeps what the window was until it succeeds, beside what it becomes.
    window = 2 * plan.window_pages(page_size) + -(-chunk // page_size) + 1
    return STREAMS * (plan.pinned_pages(page_size) + window)


def describe(engine: Engine) -> dict[str, Any]:
    """What must be the same for a run to repeat itself, beside the weights, as plain data."""
    return {
        "memory": repr(engine.memory),
        "positions": repr(engine.positions),
        "vocab": engine.vocab,
        "pages": engine.pool.pages,
        "page_size": engine.pool.page_size,
        "dtype": str(engine.pool.k.dtype).removeprefix("torch."),
        "exact": engine.exact,
        "chunk": engine.chunk,
    }
