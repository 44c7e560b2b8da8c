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
from ...streams import InCache

if TYPE_CHECKING:
    from .cache import StreamingCache


class Far:
    """An archive for as long as any cache uses it; copies of a cache share it."""

    def __init__(self, spec: Archive, pool: PagePool, inv_freq: Tensor) -> None:
        self.store = ArchiveStore(spec, pool, inv_freq)

    def close(self) -> None:
        """Closes its files. Closing twice is fine."""
        self.store.close()

    def __del__(self) -> None:
        if "store" in self.__dict__:
            self.close()


class Heard:
    """What the layers asked in a forward: queries as before their rotation, and what they saw."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self.capped = False

    def add(self, layer: int, rows: Tensor, q: Tensor, lse: Tensor, scale: float) -> None:
        """Tokens of `rows` [T], q [T, Hq, D], lse [T, Hq]; scale of the logits."""
        q, lse, rows = q.float().cpu() * (scale * q.shape[-1] ** 0.5), lse.float().cpu(), rows.cpu()
        for row in rows.unique().tolist():
            mine = rows == row
            self._parts.setdefault((layer, row), []).append((q[mine], lse[mine]))

    def asked(self, layer: int, row: int, at: int) -> Asked | None:
        parts = self._parts.get((layer, row))
        if parts is None:
            return None
        return Asked(torch.cat([q for q, _ in parts]), torch.cat([x for _, x in parts]), at)


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
            asked = heard.asked(n, row, lease.table.end)
            if asked is None:  # a row of padding alone asks nothing
                continue
            if mass is None:
                assert top is not None
                picked[n] = by_score(shelf, n, asked, top)
            else:
                inv_freq = cache.attention.inv_freq
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
