# SPDX-License-Identifier: Apache-2.0
"""The engine: a model, a page pool, and one ragged step for many streams."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..adapters import Adapter, AdapterBank
from ..errors import bad_type, bad_value, unsupported
from ..memory import ArchiveStore, Lease, PagePool, Plan, Region, Spill, Table, view
from ..memory.regions import compile_plan
from . import opening, spatial, stepping
from .adapting import Sites
from .folding import check_model
from .history import History
from .lane import Lane, Lanes, check_lanes
from .piece import Piece
from .positions import KNOWN, InCache, Keep3D, PerLane, Positions
from .recalling import open_shelf
from .report import Report
from .stream import Stream
from .tokens import Tokens


class Model(Protocol):
    """What the engine asks of a model; `headrace.models.Decoder` is one.

    config has vocab, layers, kv_heads and head_dim. Calling it with tokens int64 [T], attend(layer,
    q, k, v) and linear gives logits [T, vocab]; q and k come un-rotated. inv_freq fp64 [head_dim /
    2]. One for `Keep3D` has freq_axis int32 [head_dim / 2], one for Fold(merge="add") fold(layer).
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
    lanes: Sequence[Lane] = (),
    adapters: AdapterBank | None = None,
) -> Engine:
    """An engine that streams through a model.

    memory: what a stream keeps, e.g. `Sink(4) + Window(252)`. positions: InCache() (the default),
    Absolute(), Relative(clamp), Keep3D() for models with M-RoPE, or PerLane(), the default where
    there are lanes. pool_pages: pages of `page_size` tokens for all streams together; None makes
    room for 16 streams, or for 65,536 tokens when the window is unlimited. dtype: of keys and
    values in the pool (float32, bfloat16, float16, or int8 and float8_e4m3fn with a scale for every
    row, with about 4 and 15 times the error of bfloat16). exact: every matrix product through
    `ops.linear`, so that a stream has the same bits whatever else is in the step; False leaves them
    to torch. chunk: longest run of tokens of a stream in one model call. lanes: the sequences of a
    stream of several; `open_lanes` then opens one. adapters: a bank for the model; each stream may
    have its own of them, in one step with all others. Raises TypeError, ValueError or
    NotImplementedError naming the argument.
    """
    return Engine(
        model,
        memory,
        positions if positions is not None else PerLane() if lanes else InCache(),
        pool_pages,
        page_size,
        dtype,
        exact,
        chunk,
        lanes,
        adapters,
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
        lanes: Sequence[Lane] = (),
        adapters: AdapterBank | None = None,
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
            raise bad_type("wrap", "positions", KNOWN, repr(positions))
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
        self.lanes = check_lanes(lanes, positions)
        self.plan: Plan = positions.place(compile_plan(memory, not lanes, folding=not lanes))
        if isinstance(memory, Spill) and (lanes or self.plan.block):
            what = "lanes" if lanes else repr(positions)
            raise unsupported("wrap", "memory", f"regions without an Archive for {what}", memory)
        self._lane_plans = {
            lane.name: positions.place(compile_plan(lane.memory)) if lane.memory else self.plan
            for lane in self.lanes
        }
        check_model(model, self.plan.fold)
        spatial.check("wrap", model, positions, self.plan, isinstance(memory, Spill))
        self.spatial = isinstance(positions, Keep3D)
        self.freq_axis: Tensor | None = getattr(model, "freq_axis", None)
        c = model.config
        self.vocab: int = c.vocab
        self.device = model.inv_freq.device
        self.pool = PagePool(
            c.layers,
            pool_pages
            or sum(
                opening.default_pages(plan, page_size, chunk)
                for plan in self._lane_plans.values() or [self.plan]
            )
            + (memory.archive.pages if isinstance(memory, Spill) else 0),
            c.kv_heads,
            c.head_dim,
            page_size,
            dtype,
            self.device,
        )
        self._inv_freq = model.inv_freq.double()
        self.archive: ArchiveStore | None = None
        if isinstance(memory, Spill):
            self.archive = ArchiveStore(memory.archive, self.pool, self._inv_freq)
        self._listen: Callable[[int, Tensor, Tensor], None] | None = None
        self._seen: Callable[[int, Tensor, view.View], tuple[Tensor, Tensor]] | None = None
        self._sheet = view.Sheet(self.device)
        self._inference = torch.inference_mode()
        self._linear: Callable[..., Tensor] = ops.linear if exact else F.linear
        self.adapters = adapters
        self._sites = None if adapters is None else Sites(model, adapters)
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.closed = False

    @property
    def packs(self) -> bool:
        """Whether what is evicted leaves no gap in the positions."""
        return isinstance(self.positions, InCache)

    @property
    def resident_bytes(self) -> int:
        """Bytes of keys and values that streams and marks hold."""
        return self.pool.resident_bytes

    def open(
        self,
        *,
        position: int | None = None,
        adapter: str | Adapter | None = None,
        history: bool = False,
        archive: str | None = None,
        memory: Region | None = None,
        positions: Positions | None = None,
    ) -> Stream:
        """A new stream, whose first token has the logical position `position`.

        adapter: a name or digest that the bank knows. The stream keeps the revision that the name
        means now, until it closes or `Stream.use` changes it. history: it remembers its tokens,
        four bytes each, which `Stream.update` needs. archive: a name under which an archive on a
        disk keeps its pages; a stream opened again by that name can recall them, and its position
        is after them if none is given. memory, positions: its own, in place of the engine's; such
        streams share steps with all others.
        """
        self._check_place("open", 0 if position is None else position)
        own = memory is not None or positions is not None
        if self.lanes and memory is None:
            names = ", ".join(lane.name for lane in self.lanes)
            raise bad_value("open", "engine", "one without lanes", names, "call open_lanes()")
        plan = opening.plan(self, "open", memory, positions) if own else self.plan
        chosen = self._adapter("open", adapter)
        shelf = open_shelf(None if own else self.archive, archive, position)
        if position is None:
            position = 0 if shelf is None else shelf.end
        table = Table(position, position, plan)
        kept = History() if history else None
        lease = Lease(self.pool, table)
        return self._adopt(Stream(self, lease, adapter=chosen, history=kept, shelf=shelf))

    def open_lanes(
        self,
        *,
        position: int = 0,
        adapter: str | Adapter | None = None,
        lanes: Sequence[Lane] | None = None,
        positions: PerLane | None = None,
    ) -> Lanes:
        """A new stream of several lanes; each begins at its own start, counted from `position`.

        adapter: of every lane; `Stream.use` gives one lane another. lanes, positions: its own, in
        place of the engine's.
        """
        self._check_place("open_lanes", position)
        return opening.open_lanes(self, position, adapter, lanes, positions)

    def _check_place(self, op: str, position: int) -> None:
        self._check_open(op)
        if isinstance(position, bool) or not isinstance(position, int):
            raise bad_type(op, "position", "a whole number", repr(position))
        if not 0 <= position < 2**61:
            raise bad_value(op, "position", "0 or more, below 2**61", position)

    def close(self) -> None:
        """Closes every stream and gives the pool's memory back. Closing twice is fine."""
        for stream in list(self._streams):
            stream.close()
        if self.archive is not None and not self.closed:
            self.archive.close()
        self.pool.close()
        self.closed = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def step(
        self, batch: Mapping[Stream, Tokens | Piece], *, logits: bool = False
    ) -> dict[Stream, Report]:
        """Feeds tokens to many streams, one model call for all of them; long inputs go in chunks.

        All or nothing: after any error, Ctrl-C included, every stream and the pool are as they
        were.
        """
        self._check_open("step")
        return stepping.step(self, batch, logits)

    def _adapter(self, op: str, source: str | Adapter | None) -> Adapter | None:
        if source is None:
            return None
        if self.adapters is None or self._sites is None:
            raise bad_value(op, "adapter", "None", repr(source), "wrap the model with adapters=")
        return self._sites.check(op, self.adapters.find(source, op))

    def _adopt(self, stream: Stream) -> Stream:
        self._streams.add(stream)
        return stream

    def _check_open(self, op: str) -> None:
        if self.closed:
            raise bad_value(op, "engine", "an open engine", "a closed one")


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
        **({"lanes": repr(engine.lanes)} if engine.lanes else {}),
    }
