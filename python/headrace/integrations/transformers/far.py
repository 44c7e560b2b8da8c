# SPDX-License-Identifier: Apache-2.0
"""The archive behind the rows of a batch, and how a question is put to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ... import interrupts
from ...errors import bad_type, bad_value, unsupported
from ...memory import (
    Archive,
    ArchiveStore,
    Asked,
    PagePool,
    Recalled,
    Told,
    by_mass,
    by_score,
    check_bound,
)
from ...memory.summary import unturned
from ...streams import InCache

if TYPE_CHECKING:
    from .cache import StreamingCache


class Far:
    """An archive for as long as any cache uses it; copies of a cache share it.

    axis: as `Attention.freq_axis` where positions have three axes. Keys are then stored as their
    positions turn them, and what asks for them is turned by its own.
    """

    def __init__(
        self, spec: Archive, pool: PagePool, inv_freq: Tensor, axis: Tensor | None
    ) -> None:
        self.store = ArchiveStore(spec, pool, inv_freq if axis is None else None)
        self._inv_freq, self._axis = inv_freq.cpu(), axis
        self._places: np.ndarray | None = None  # int64 [pages, page_size, 3]: by slot of the pool

    def place(self, pool: PagePool, slots: np.ndarray, places: np.ndarray) -> None:
        """The tokens of slots int64 [n, 3] (page, slot, ...) are at places int64 [n, 3]."""
        known = 0 if self._places is None else len(self._places)
        if known < pool.pages:
            grown = np.zeros((pool.pages, pool.page_size, 3), np.int64)
            if self._places is not None:
                grown[:known] = self._places
            self._places = grown
        assert self._places is not None
        self._places[slots[:, 0], slots[:, 1]] = places

    def copy(self, source: int, target: int) -> None:
        """A page of the pool was copied to another."""
        if self._places is not None:
            self._places[target] = self._places[source]

    def turned(self, page: int, count: int) -> Tensor | None:
        """Angles fp64 [count, R] of the first tokens of a page; None where distances turn them."""
        if self._places is None or self._axis is None:
            return None
        places = torch.from_numpy(self._places[page, :count].copy())
        return places[:, self._axis.cpu().long()] * self._inv_freq

    def close(self) -> None:
        """Closes its files. Closing twice is fine."""
        self.store.close()

    def __del__(self) -> None:
        if "store" in self.__dict__:
            self.close()


class Heard:
    """What the layers asked in a forward: queries as before their rotation, and what they saw."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor | None]]] = {}
        self.capped = False

    def add(
        self,
        layer: int,
        rows: Tensor,
        q: Tensor,
        lse: Tensor,
        scale: float,
        angle: Tensor | None = None,
    ) -> None:
        """Tokens of `rows` [T], q [T, Hq, D], lse [T, Hq]; scale of the logits. angle fp64 [T, R]:
        that turns each, where positions have three axes.
        """
        q, lse, rows = q.float().cpu() * (scale * q.shape[-1] ** 0.5), lse.float().cpu(), rows.cpu()
        for row in rows.unique().tolist():
            mine = rows == row
            turned = None if angle is None else angle.cpu()[mine]
            self._parts.setdefault((layer, row), []).append((q[mine], lse[mine], turned))

    def asked(self, layer: int, row: int, at: int, turned: bool = False) -> Asked | None:
        """turned: the queries as their positions turn them, where those have three axes."""
        parts = self._parts.get((layer, row))
        if parts is None:
            return None
        q, lse = torch.cat([q for q, *_ in parts]), torch.cat([x for _, x, _ in parts])
        angles = [a for *_, a in parts if a is not None]
        if turned and angles:
            q = unturned(q.transpose(0, 1), -torch.cat(angles)).transpose(0, 1)
        return Asked(q, lse, at)


def recall(
    cache: StreamingCache,
    model: PreTrainedModel,
    question: Tensor,
    top: int | None,
    mass: float | None,
    bound: str,
    inputs: dict[str, Any],
) -> list[Recalled]:
    """What `StreamingCache.recall` does."""
    _check(cache, model, question, top, mass)
    check_bound(bound, mass)
    rows = cache.rows
    assert rows is not None
    assert rows.far is not None
    heard = None if top is None and mass is None else _listen(cache, model, question, inputs)
    if heard is not None and heard.capped and mass is not None:
        raise unsupported("recall", "mass", "top, where logits have a softcap", mass)
    layers, store = range(len(cache.layers)), rows.far.store
    reach = cache.plan.reach if isinstance(cache.positions, InCache) else None
    chosen: list[list[np.ndarray]] = []
    told: list[list[Told]] = []
    for row, (shelf, lease) in enumerate(zip(rows.shelves, rows.leases, strict=True)):
        picked, said = [np.empty(0, np.int64)] * len(layers), [Told()] * len(layers)
        for n in layers:
            if cache.attention.sliding[n] is not None:
                continue
            if heard is None:
                picked[n] = np.arange(len(shelf.index))
                continue
            asked = heard.asked(n, row, lease.table.end, turned=mass is not None)
            if asked is None:  # a row of padding alone asks nothing
                continue
            if mass is None:
                assert top is not None
                picked[n] = by_score(shelf, n, asked, top)
            else:
                inv_freq = store.inv_freq
                held = [b for r in rows.recalled if r is not None for b in r.blocks[n]]
                picked[n], said[n] = by_mass(shelf, n, asked, mass, bound, reach, inv_freq, held)
        chosen.append(picked)
        told.append(said if mass is not None else [])
    near = store.near()
    for n in layers:
        wanted = [
            b for s, c in zip(rows.shelves, chosen, strict=True) for b in s.index.blocks[c[n]]
        ]
        held = [b for r in rows.recalled if r is not None for b in r.blocks[n]]
        near.check_room([int(b) for b in wanted], n, held)
    with interrupts.deferred(), torch.inference_mode(False):
        rows.forget()
        rows.recalled = [
            Recalled(shelf, lease.table, picked, reach is not None, said)
            for shelf, lease, picked, said in zip(
                rows.shelves, rows.leases, chosen, told, strict=True
            )
        ]
    return [r for r in rows.recalled if r is not None]


def _check(
    cache: StreamingCache, model: Any, question: Any, top: int | None, mass: float | None
) -> None:
    if cache.archive is None:
        hint = "StreamingCache(config, memory=Sink(4) + Window(508) >> Archive())"
        raise bad_value("recall", "memory", "regions >> Archive()", repr(cache.memory), hint)
    if not isinstance(model, PreTrainedModel):
        raise bad_type("recall", "model", "a model of transformers", type(model).__name__)
    if not isinstance(question, Tensor) or question.dim() != 2 or not question.numel():
        got = tuple(question.shape) if isinstance(question, Tensor) else type(question).__name__
        raise bad_value("recall", "input_ids", "int64 [rows, tokens], not empty", got)
    if cache.rows is None:
        raise bad_value("recall", "cache", "one that has read something", "an empty one")
    if len(question) != len(cache.rows):
        raise bad_value("recall", "input_ids", f"{len(cache.rows)} rows", len(question))
    if top is not None and mass is not None:
        raise bad_value("recall", "top", "None beside mass", top)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 0):
        raise bad_value("recall", "top", "0 pages or more", repr(top))
    if mass is not None and not 0 <= mass <= 1:
        raise bad_value("recall", "mass", "a share from 0 to 1", mass)


def _listen(
    cache: StreamingCache, model: PreTrainedModel, question: Tensor, inputs: dict[str, Any]
) -> Heard:
    """Reads the question on the side, without the archive."""
    from .attention import attached

    side, heard = cache.fork(archive=False), Heard()
    side.heard = heard
    try:
        with torch.no_grad(), attached(model):
            model(question, past_key_values=side, **inputs)
    finally:
        side.reset()
    return heard
