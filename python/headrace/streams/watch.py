# SPDX-License-Identifier: Apache-2.0
"""A stream of frames through a vision model: what changed is looked at, and remembered.

A pixel gate decides before the tower which patches are computed; a cache keeps the tower's keys,
values and tokens of the others; a dropper takes away what the tower finds to be as it was; what
survives goes to the decoder at its (time, row, column), into pages held by a memory. One step per
frame, of constant memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_type, bad_value
from ..filters import Filter, LastKept
from ..memory import UNLIMITED, Edit, Lease, PagePool, Region, Sink, Table, Window, view
from ..memory.regions import compile_plan
from ..models import motion
from ..models.tower_cache import TowerCache
from ..models.vision import Vision, reduced, usual

EPOCH = 64
"""Pages that begin within so many frames share an origin in time."""


@dataclass(frozen=True)
class Glance:
    """Of one frame of N places. number: 0 for the first. changed bool [N]: what the gate kept, and
    the tower computed. kept bool [N]: of these, what the dropper left and the decoder saw.
    next_codes int64 [N]: of the patch that is foretold for every place of the next frame. cut: that
    the frame begins a new scene, a probability. surprise: the share of the places computed whose
    code was not the one foretold; None with nothing foretold. next_thumbs [N, small]: the means of
    squares of the foretold patches, from -1 to 1.
    """

    number: int
    changed: Tensor
    kept: Tensor
    next_codes: Tensor
    cut: float
    surprise: float | None
    next_thumbs: Tensor | None = None

    @property
    def dropped(self) -> float:
        """The share of places that the decoder did not see."""
        return 1.0 - float(self.kept.sum()) / len(self.kept)


class Watcher:
    """Frames uint8 [H, W, 3] of one size through one vision model.

    gate: a filter of pixels before the tower; where its patch is smaller than the model's, it sees
    frames reduced by as much, so that noise and texture do not count. dropper: a filter of tokens
    [N, width] behind it; None for neither. A place that the gate takes away is foretold to stay as
    the gate sees it; one that the dropper takes away, by what the decoder last said of it and what
    moves there now. memory: which of the decoder's tokens are kept, one for every survivor
    and one for the frame; cap: how many frames back pinned ones seem at most. Raises TypeError or
    ValueError naming the argument.
    """

    def __init__(
        self,
        model: Vision,
        height: int,
        width: int,
        *,
        gate: Filter | None = None,
        dropper: Filter | None = None,
        memory: Region | None = None,
        cap: int = 128,
        page_size: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        c = model.config
        for name, side in (("height", height), ("width", width)):
            if side < c.patch or side % c.patch:
                raise bad_value("Watcher", name, f"a multiple of the patch, {c.patch}", side)
        if gate is not None and (gate.patch is None or c.patch % gate.patch):
            wanted = f"a filter whose patch divides the model's, {c.patch}"
            raise bad_value("Watcher", "gate", wanted, gate.patch)
        if dropper is not None and dropper.patch is not None:
            raise bad_value("Watcher", "dropper", "a filter without patch", dropper.patch)
        if cap < 1:
            raise bad_value("Watcher", "cap", "1 or more", cap)
        self.model, self.shape, self.cap = model, (height, width, 3), cap
        self.grid = height // c.patch, width // c.patch
        self.places = self.grid[0] * self.grid[1]
        self.gate, self.dropper = gate, dropper
        self._by = 1 if gate is None or gate.patch is None else c.patch // gate.patch
        self.memory = memory if memory is not None else Sink(64) + Window(1024)
        plan = compile_plan(self.memory)
        if plan.reach >= UNLIMITED:
            raise bad_value("Watcher", "memory", "a bounded window", self.memory)
        pages = plan.pinned_pages(page_size) + 2 * plan.window_pages(page_size)
        self.pool = PagePool(
            c.layers, pages + -(-(self.places + 1) // page_size) + 2, c.kv_heads, c.head_dim,
            page_size, dtype, model.embed.device,
        )  # fmt: skip
        self.tower = TowerCache(model, *self.grid)
        self._lease = Lease(self.pool, Table(0, 0, plan))
        self._starts: dict[int, int] = {}  # of the pages held, the origin in time
        self._thumbs = model.book.new_zeros(self.places, model.book.shape[1])
        self._next = torch.zeros(self.places, dtype=torch.int64, device=model.embed.device)
        self._said = model.embed.new_zeros(self.places, c.width)
        self._before: Tensor | None = None  # the last frame, reduced, and what moved there
        self._costs: Tensor | None = None
        self._usual: Tensor | None = None
        self._all = torch.ones(self.places, dtype=torch.bool, device=model.embed.device)
        self.frames = self.tokens = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of keys and values that the decoder holds."""
        return self.pool.resident_bytes

    @property
    def alive(self) -> int:
        """Tokens of the decoder that the next query sees."""
        return self._lease.table.alive

    def feed(self, frame: Tensor) -> Glance:
        """One step with the next frame, uint8 [H, W, 3].

        After an error the memory is as it was, and the next frame is computed whole.
        """
        if not isinstance(frame, Tensor) or frame.dtype != torch.uint8:
            got = frame.dtype if isinstance(frame, Tensor) else type(frame).__name__
            raise bad_type("Watcher.feed", "frame", "a uint8 tensor", got)
        if tuple(frame.shape) != self.shape:
            raise bad_value("Watcher.feed", "frame", list(self.shape), list(frame.shape))
        edit = Edit(self.pool)
        try:
            with torch.inference_mode():
                return self._step(frame, edit)
        except BaseException:
            edit.undo()
            self.forget()
            raise

    def forget(self) -> None:
        """The next frame is computed whole, whatever it is like; the memory stays."""
        self.tower.reset()
        for filter_ in (self.gate, self.dropper):
            if filter_ is not None:
                filter_.reset()

    def close(self) -> None:
        """Gives the memory back."""
        self._lease.release()
        self.pool.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self, frame: Tensor, edit: Edit) -> Glance:
        model = self.model
        changed = self._all if self.gate is None else self.gate(reduced(frame, self._by)).mask
        if not self.tower.ready:
            changed = self._all  # also where the gate has room for fewer
        at = changed.nonzero()[:, 0]
        patches = model.patches(frame, at)
        kept, tokens = changed, self.tower.tokens
        if len(at):
            self.tower(patches, at)
        if self.dropper is not None:
            kept = self.dropper(tokens).mask & changed
        now = motion.reduce(frame[None], model.step)[0]
        shown = motion.thumbs(now[None], model.config.patch // model.step, model.config.thumb)[0]
        thumbs = shown[at]
        costs = model.costs(self._before, now)
        moving = model.moving(costs, self._costs, now, at) if len(at) else None
        change = torch.zeros_like(self._thumbs)
        if self.frames:
            change[at] = thumbs - self._thumbs[at]
        stir = model.stir(change[at], self.places)
        codes, surprise = model.coded(shown), None
        if self.frames and len(at):
            surprise = float((self._next[at] != codes[at]).float().mean())
        places = at if kept is changed else kept.nonzero()[:, 0]
        read = None if moving is None else moving.rows(kept[at])
        x = torch.cat([model.tokens(tokens[places], change[places], read), model.frame[None]])
        said = self._decode(x, places, edit)
        # Nothing below can fail half way: plain writes of what has been computed.
        self._thumbs[at], self._said[places] = thumbs, said[:-1]
        self._before, self._costs = now, costs
        if len(at):
            held = self._said[at]
            shown[at] = model.next_thumb(held, thumbs, moving)
            codes[at] = model.next_code(held, thumbs, shown[at]).argmax(-1)
        self._next = codes
        known = stir if self._usual is None else self._usual
        cut = float(model.new_scene(said[-1:], stir[None], known[None]).sigmoid())
        if self.frames:
            self._usual = usual(self._usual, stir)
        self.frames, self.tokens = self.frames + 1, self.tokens + len(x)
        return Glance(self.frames - 1, changed, kept, codes, cut, surprise, shown)

    def _decode(self, x: Tensor, places: Tensor, edit: Edit) -> Tensor:
        """What the decoder says of the survivors of this frame and of its own token."""
        old, now, device = self._lease.table, self.frames, x.device
        (table,), grown = edit.advance([old], [len(x)])
        where = grown.tolist()
        starts = {page: t for page, t in self._starts.items()}
        for page, slot, _ in where:
            if slot == 0:
                starts[page] = now - now % EPOCH
        place = torch.stack([places // self.grid[1], places % self.grid[1]], 1)
        place = torch.cat([place, place.new_zeros(1, 2)])
        turn = [[page, slot, now - starts[page]] for page, slot, _ in where]
        slots = torch.cat([torch.tensor(turn, device=device), place], 1)
        q_pos = torch.cat([place.new_full((len(x), 1), now), place], 1)
        rows = [self._placed(row, starts) for row in view.entries(table, oldest=old.end)]
        out = self.model.decode(x, self._attend(slots, q_pos, rows, old.end))
        (self._lease.table,) = edit.let_go([table])
        edit.commit()
        held = set(self._lease.table.page_ids)
        self._starts = {page: t for page, t in starts.items() if page in held}
        return out

    def _placed(self, row: view.Row, starts: dict[int, int]) -> list[int]:
        """A row of a view with its origin in time, rows and columns; pinned ones with their cap."""
        page, first, count, _, _, order, reach = row
        cap = self.cap if reach == UNLIMITED else UNLIMITED
        return [page, first, count, starts[page], cap, order, reach, 0, UNLIMITED, 0, UNLIMITED]

    def _attend(
        self, slots: Tensor, q_pos: Tensor, rows: Sequence[Sequence[int]], order: int
    ) -> Callable[..., Tensor]:
        device, count = slots.device, len(slots)
        entries = torch.tensor(rows, dtype=torch.int64, device=device)
        indptr = torch.tensor([0, len(rows)], dtype=torch.int32, device=device)
        q_indptr = torch.tensor([0, count], dtype=torch.int32, device=device)
        q_order = torch.arange(order, order + count, device=device)
        turns: dict[str, Any] = {"inv_freq": self.model.inv_freq, "freq_axis": self.model.freq_axis}

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            (keys, values), scales = self.pool.layer(layer)
            ops.append(k, v, keys, values, slots, **turns, **scales)
            self.pool.written_bytes += count * self.pool.row_bytes
            return ops.paged_attention(
                q,
                keys,
                values,
                entries,
                indptr,
                q_indptr,
                q_pos,
                q_order=q_order,
                **turns,
                **scales,
            )[0]

        return attend


def pixel_gate(model: Vision, threshold: float | None = None) -> LastKept:
    """The gate that the model was measured with: of the thumb of a patch, the mean absolute
    difference per byte from that last kept."""
    chosen = model.config.threshold if threshold is None else threshold
    return LastKept(chosen, "l1", patch=model.config.thumb)


def token_dropper(threshold: float = 0.98) -> LastKept:
    """A dropper by the cosine of a tower's tokens to those last kept."""
    return LastKept(threshold, "cos")
