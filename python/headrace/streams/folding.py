# SPDX-License-Identifier: Apache-2.0
"""How streams read what their memory has folded, and fold what leaves it, as they go on.

The query t of a window of `reach` folds the token t - reach, the newest that it does not see, and
then reads: one after the other within a call, which is what `headrace.ops.linear_attention` does
with these keys beside the queries. So a stream is the same however it came in chunks. The token
that the next query will fold may leave the pages before that; a table therefore takes it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from ..memory import UNLIMITED, Fold, Folded, Table
from .ring_fold import turned

if TYPE_CHECKING:
    from .engine import Engine

WIDE = 16
"""Columns of the least state that the op takes; the norm goes as so many that are alike."""


def check_model(model: object, fold: Fold | None) -> None:
    """ValueError for one that lacks the matrix that the fold wants."""
    if fold is not None and fold.merge == "add" and not callable(getattr(model, "fold", None)):
        expected = "a model whose fold(layer) gives a matrix [D, D]"
        got = f"a {type(model).__name__} without one"
        raise bad_value("wrap", "model", expected, got, 'or Fold(merge="mass")')


@dataclass(frozen=True)
class _One:
    """A stream in a call: its place among the streams, its row of queries that read what is folded
    (rows lo..hi-1 of all queries, from position `first` on), and where its tokens to fold are.

    had: it took one along. slots: page, slot, and turn of the others, oldest first; the last of all
    is to be taken along.
    """

    stream: int
    lo: int
    hi: int
    first: int
    had: bool
    slots: list[tuple[int, int, int]]

    @property
    def reads(self) -> int:
        return self.hi - self.lo


def _one(i: int, table: Table, count: int, end: int) -> _One:
    """Of the stream i, whose `count` queries are the last of the rows up to `end`."""
    reach, border = table.plan.reach, table.start + table.plan.pinned
    before = table.end - count
    first = max(before, border + reach)
    had = before - reach >= border
    lo = max(border, before + 1 - reach)
    slots = [
        (page.id, at - page.start, at - page.origin)
        for page, stop in table.window_spans()
        for at in range(max(lo, page.start), min(stop, table.end - reach + 1))
    ]
    reads = max(0, table.end - first)
    return _One(i, end - reads, end, first, had, slots)


class _Alike:
    """The streams of a call that fold in the same way."""

    def __init__(
        self, engine: Engine, fold: Fold, absolute: bool, ones: list[_One], tables: Sequence[Table]
    ) -> None:
        self._engine, self._fold, self.ones = engine, fold, ones
        self._device = engine.device
        c, pool = engine.model.config, engine.pool
        layers, heads, dim = c.layers, pool.k.shape[2], pool.k.shape[3]
        blank = Folded(*(self._zeros(layers, heads, *x, dim) for x in ((dim,), (), (), ())))
        blank = replace(blank, state=blank.state.double(), norm=blank.norm.double())
        held = [tables[x.stream].folded or blank for x in ones]
        # What there was is read and left alone; what comes is summed beside it, from 0.
        self._had = torch.stack([x.state for x in held], 1).float()
        self._state = torch.zeros_like(self._had)
        norm = torch.stack([x.norm for x in held], 1).float()
        self._had_norm = norm[..., None].repeat_interleave(WIDE, -1)
        self._norm = torch.zeros_like(self._had_norm)
        self._held = held
        self._carried = [torch.stack([getattr(x, n) for x in held], 1) for n in "kv"]
        slots = [slot for x in ones for slot in x.slots]
        self._page, self._slot, self._turn = self._ints(slots or [(0, 0, 0)]).T[:, : len(slots)]
        use, keep, at = [], [], len(ones)
        for i, x in enumerate(ones):
            mine = [*([i] if x.had else []), *range(at, at + len(x.slots))]
            at += len(x.slots)
            use += mine[: x.reads]
            keep.append(mine[-1] if mine else i)
        self._use, self._keep = self._ints(use), self._ints(keep)
        self._rows = self._ints([row for x in ones for row in range(x.lo, x.hi)])
        reach = [tables[x.stream].plan.reach for x in ones for _ in range(x.reads)]
        self._back = -self._ints(reach)
        begins = [tables[x.stream].start + tables[x.stream].plan.pinned for x in ones]
        seen = [
            x.first + i - tables[x.stream].plan.reach - begin + 1
            for x, begin in zip(ones, begins, strict=True)
            for i in range(x.reads)
        ]
        self._eps = self._ints(seen).float()[:, None, None] * fold.eps
        self._offset = None
        if absolute:
            self._offset = self._ints([x.first + i for x in ones for i in range(x.reads)])
        self._ends = self._ints([0, *accumulate(x.reads for x in ones)]).int()
        self._which = torch.arange(len(ones), dtype=torch.int32, device=self._device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device)

    def _ints(self, numbers: object) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def attend(self, layer: int, q: Tensor, o: Tensor, lse: Tensor) -> None:
        """Changes o [T, Hq, D] where something is folded; lse [T, Hq] of what else is seen."""
        fold, freq = self._fold, self._engine._inv_freq
        model: Any = self._engine.model
        k, v = (
            torch.cat([carried[layer], rows])
            for carried, rows in zip(self._carried, self._left(layer), strict=True)
        )
        for carried, rows in zip(self._carried, (k, v), strict=True):
            carried[layer] = rows[self._keep]
        if not len(self._rows):
            return
        q, k, v = q[self._rows].float(), k[self._use], v[self._use]
        phi_q, phi_k = fold.phi(q), fold.phi(k)
        hat_q, hat_k = (q, k) if fold.raw else (phi_q, phi_k)
        hat_k = turned(hat_k, self._back, freq)  # both turn by the query's position, or neither
        turns = (None if self._offset is None else freq), self._offset
        top = self._read(hat_q, hat_k, v, self._had[layer], self._state[layer], *turns)
        ones = torch.ones(len(k), k.shape[1], WIDE, device=k.device)
        norms = self._had_norm[layer], self._norm[layer]
        mass = self._read(phi_q, phi_k, ones, *norms)[..., :1]
        read = top / (mass + self._eps)
        if fold.merge == "add":
            weight = model.fold(layer).float()
            through = self._engine._linear(read.reshape(-1, read.shape[2]), weight)
            o[self._rows] += through.view(read.shape).to(o.dtype)
            return
        lse, sinks = lse[self._rows], model.sink_logits(layer)
        if sinks is not None:  # it has a share in what `o` was divided by
            lse = torch.logaddexp(lse, sinks.float().expand_as(lse))
        beside = (mass[..., 0] * fold.scale).log().contiguous()
        joined, _ = ops.merge_states(o[self._rows].float(), lse, read, beside)
        o[self._rows] = joined.to(o.dtype)

    def _read(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        had: Tensor,
        state: Tensor,
        inv_freq: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """q times the sums of k v^T: those there were, and those that come, into `state`."""

        def read(k: Tensor | None, v: Tensor | None, state: Tensor) -> Tensor:
            return ops.linear_attention(
                q,
                k,
                v,
                state,
                None,
                self._ends,
                self._which,
                inv_freq=inv_freq,
                offset=offset,
                feature="none",
            )

        return read(None, None, had) + read(k, v, state)

    def _left(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys, not rotated, and values of the tokens to fold that are in pages: [n, Hkv, D]."""
        pool = self._engine.pool
        k = pool.k[layer, self._page, :, :, self._slot].float()
        v = pool.v[layer, self._page, :, self._slot].float()
        if pool.k_scale is not None and pool.v_scale is not None:
            k *= pool.k_scale[layer, self._page, :, self._slot][..., None]
            v *= pool.v_scale[layer, self._page, :, self._slot][..., None]
        return turned(k, -self._turn, self._engine._inv_freq), v

    def folded(self, i: int) -> Folded:
        """What the stream ones[i] has folded now."""
        k, v = (carried[:, i].clone() for carried in self._carried)
        had, state, norm = self._held[i], self._state[:, i], self._norm[:, i, :, :, 0]
        return Folded(had.state + state, had.norm + norm, k, v)


class Folds:
    """What the streams of one model call fold and read."""

    def __init__(self, engine: Engine, tables: Sequence[Table], counts: Sequence[int]) -> None:
        kinds: dict[tuple[Fold, bool], list[_One]] = {}
        for i, (table, n, end) in enumerate(zip(tables, counts, accumulate(counts), strict=True)):
            if table.plan.fold is None:
                continue
            one = _one(i, table, n, end)
            if one.had or one.slots:
                key = table.plan.fold, table.plan.cap >= UNLIMITED
                kinds.setdefault(key, []).append(one)
        self._alike = [_Alike(engine, *key, ones, tables) for key, ones in kinds.items()]

    def attend(self, layer: int, q: Tensor, o: Tensor, lse: Tensor) -> None:
        for alike in self._alike:
            alike.attend(layer, q, o, lse)

    def kept(self, tables: Sequence[Table]) -> list[Table]:
        """The tables, with what they have folded."""
        made = list(tables)
        for alike in self._alike:
            for i, one in enumerate(alike.ones):
                table = made[one.stream]
                made[one.stream] = replace(table, folded=alike.folded(i), cell=table.cell)
        return made
