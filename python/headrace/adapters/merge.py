# SPDX-License-Identifier: Apache-2.0
"""One adapter out of many, reading no more of them than allowed.

After MergePipe (2026; arXiv 2602.13273, 2605.29489): what a merge costs is what it reads of the
experts, so it is planned: a block is one module of one adapter, its worth how much it moves the
result, its price its bytes. Norms come from the catalog, where every block that was ever read
leaves its own; the plan is the same for the same catalog, all of the blocks where the budget
allows, and what is left out is bounded by its norm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported
from .blob import Adapter
from .catalog import dumps
from .config import MAX_RANK, AdapterConfig, Module
from .records import norms_key

if TYPE_CHECKING:
    from .store import AdapterStore


@dataclass(frozen=True)
class Merged:
    """A merge that was done. read and total: bytes of weights read, and of all there are; blocks
    and of: the same in modules of adapters. omitted: largest Frobenius norm that what was left out
    may have, None where that is not known; truncated: norm of what a lower rank cost.
    """

    digest: str
    read: int
    total: int
    blocks: int
    of: int
    omitted: float | None
    truncated: float


@dataclass(frozen=True)
class _Block:
    """A module of an adapter. norm: of its update, None where nobody has read it."""

    adapter: int
    module: Module
    weight: float
    nbytes: int
    norm: float | None


def merge(
    store: AdapterStore,
    names: Sequence[str],
    weights: Sequence[float],
    io_budget: int | None,
    rank: int | None,
    about: Mapping[str, Any],
) -> Merged:
    """What `AdapterStore.merge` does."""
    op = "AdapterStore.merge"
    adapters = _given(op, store, names, weights, io_budget, rank)
    blocks = [block for block in _blocks(store, adapters, weights) if block.weight]
    if not blocks:
        raise bad_value(op, "weights", "one that is not 0", "none")
    chosen = _plan(blocks, sum(b.nbytes for b in blocks) if io_budget is None else io_budget)
    if not chosen:
        least = min(block.nbytes for block in blocks)
        raise bad_value(op, "io_budget", f"{least} bytes or more, for one block", io_budget)
    tensors, found, lost = _carried_out(op, adapters, chosen, rank)
    learnt: dict[str, dict[str, float]] = {}
    for block in chosen:
        if block.norm is None:
            adapter, name = adapters[block.adapter], block.module.name
            learnt.setdefault(adapter.revision, {})[name] = _norm(adapter, name)
    left = [block for block in blocks if block not in chosen]
    manifest = {
        "merge": [[a.revision, float(w)] for a, w in zip(adapters, weights, strict=True)],
        "io_budget": io_budget,
        "rank": rank,
        "left_out": [[block.adapter, block.module.name] for block in left],
    }
    parents = tuple(dict.fromkeys(a.revision for a in adapters))
    config = AdapterConfig(adapters[0].config.base, tuple(found))
    digest = store.add(config, tensors, data=manifest, parents=parents, **about)
    _note(store, learnt)
    return Merged(
        digest,
        sum(block.nbytes for block in chosen),
        sum(block.nbytes for block in blocks),
        len(chosen),
        len(blocks),
        _bound(left),
        lost,
    )


def measure(store: AdapterStore, names: Iterable[str]) -> int:
    """What `AdapterStore.measure` does."""
    read = 0
    for name in names:
        adapter = store.open(name)
        known = _norms(store, adapter.revision)
        blocks = [m for m in adapter.config.modules if m.name not in known]
        _note(store, {adapter.revision: {m.name: _norm(adapter, m.name) for m in blocks}})
        read += sum(_bytes(adapter, m.name) for m in blocks)
    return read


def _given(
    op: str,
    store: AdapterStore,
    names: Sequence[str],
    weights: Sequence[float],
    io_budget: int | None,
    rank: int | None,
) -> list[Adapter]:
    """The adapters, if they can be merged so."""
    if isinstance(names, str) or not names:
        raise bad_value(op, "names", "one name or more", repr(names))
    if len(weights) != len(names):
        raise bad_value(op, "weights", f"{len(names)}, one for each name", len(weights))
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise bad_type(op, "weights", "numbers", repr(weight))
        if not math.isfinite(weight):
            raise bad_value(op, "weights", "finite numbers", weight)
    for arg, value, low in (("io_budget", io_budget, 0), ("rank", rank, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise bad_type(op, arg, "a whole number or None", repr(value))
        if value is not None and value < low:
            raise bad_value(op, arg, f"{low} or more", value)
    adapters = [store.open(name) for name in names]
    for name, adapter in zip(names, adapters, strict=True):
        config, first = adapter.config, adapters[0].config
        if config.base != first.base:
            raise bad_value(op, "names", f"adapters of {first.base}", f"{name} of {config.base}")
        for what in ("dora", "bias", "fan_in_fan_out", "invocation"):
            if getattr(config, what):
                told = f"adapters with A and B alone, {name} has {what}"
                raise unsupported(op, "names", "adapters with A and B alone, everywhere", told)
    return adapters


def _blocks(
    store: AdapterStore, adapters: Sequence[Adapter], weights: Sequence[float]
) -> Iterable[_Block]:
    for i, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        norms = _norms(store, adapter.revision)
        for module in adapter.config.modules:
            size = _bytes(adapter, module.name)
            yield _Block(i, module, float(weight), size, norms.get(module.name))


def _plan(blocks: Sequence[_Block], budget: int) -> list[_Block]:
    """Those that are worth most by the byte, as many as the budget has room for, in their order."""
    known = [b.norm / math.sqrt(b.nbytes) for b in blocks if b.norm is not None]
    usual = sum(known) / len(known) if known else 1.0

    def worth(block: _Block) -> float:
        norm = usual * math.sqrt(block.nbytes) if block.norm is None else block.norm
        return abs(block.weight) * norm / block.nbytes

    taken = set()
    for i in sorted(range(len(blocks)), key=lambda i: -worth(blocks[i])):  # stable: first of equals
        if blocks[i].nbytes <= budget:
            budget -= blocks[i].nbytes
            taken.add(i)
    return [blocks[i] for i in sorted(taken)]


def _carried_out(
    op: str, adapters: Sequence[Adapter], chosen: Sequence[_Block], rank: int | None
) -> tuple[dict[str, Tensor], list[Module], float]:
    """Tensors of the merged adapter, its modules, and the norm of what a lower rank cost."""
    by_module: dict[str, list[_Block]] = {}
    for block in chosen:
        by_module.setdefault(block.module.name, []).append(block)
    for name, parts in by_module.items():
        total = sum(block.module.rank for block in parts)
        if rank is None and total > MAX_RANK:
            hint = "give rank= to merge into a lower one"
            raise bad_value(op, "rank", f"{MAX_RANK} at most in {name}", total, hint)
    tensors: dict[str, Tensor] = {}
    found, lost = [], 0.0
    for name, parts in by_module.items():
        rows = torch.cat([adapters[b.adapter].a(name).float() for b in parts])
        columns = torch.cat([_weighted(adapters[b.adapter], b) for b in parts], 1)
        if rank is not None and rank < len(rows):
            rows, columns, cost = _lowered(rows, columns, rank)
            lost += cost**2
        tensors[f"{name}.a"], tensors[f"{name}.b"] = rows, columns
        r, inputs = rows.shape
        found.append(Module(name, r, inputs, len(columns), float(r)))
    return tensors, found, math.sqrt(lost)


def _weighted(adapter: Adapter, block: _Block) -> Tensor:
    """B [outputs, rank] with scale and weight in it."""
    name = block.module.name
    made: Tensor = adapter.b(name).float() * (block.weight * adapter.scale(name))
    return made


def _lowered(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of that rank to b a: its two factors, and how far it is."""
    left, of_b = torch.linalg.qr(b.double())
    right, of_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(of_b @ of_a.T)
    root = s[:rank].sqrt()
    lower_a = (right @ v[:rank].T * root).T.float().contiguous()
    lower_b = (left @ u[:, :rank] * root).float().contiguous()
    return lower_a, lower_b, float(s[rank:].square().sum().sqrt())


def _bound(left: Sequence[_Block]) -> float | None:
    """Of the sum of these, by the triangle inequality within a module."""
    sums: dict[str, float] = {}
    for block in left:
        if block.norm is None:
            return None
        moved = abs(block.weight) * block.norm
        sums[block.module.name] = sums.get(block.module.name, 0.0) + moved
    return math.sqrt(sum(s * s for s in sums.values()))


def _norm(adapter: Adapter, name: str) -> float:
    """Frobenius norm of scale B A, by the products of rank by rank."""
    a, b = adapter.a(name).double(), adapter.b(name).double()
    squared = float(((a @ a.T) * (b.T @ b)).sum())
    return abs(adapter.scale(name)) * math.sqrt(max(squared, 0.0))


def _bytes(adapter: Adapter, name: str) -> int:
    spans = (adapter.span(name, part) for part in "ab")
    return sum(span.stop - span.start for span in spans)


def _norms(store: AdapterStore, revision: str) -> dict[str, float]:
    """Norms of a revision's modules, as far as they are known."""
    with store._catalog.read() as tx:
        value = tx.get("meta", norms_key(bytes.fromhex(revision)))
    return {} if value is None else dict(json.loads(value))


def _note(store: AdapterStore, found: Mapping[str, Mapping[str, float]]) -> None:
    """Adds norms by revision to the catalog, of those that are still in it."""
    with store._catalog.write() as tx:
        for revision, norms in found.items():
            digest = bytes.fromhex(revision)
            if norms and tx.row_of(digest) is not None:
                key = norms_key(digest)
                tx.put("meta", key, dumps({**json.loads(tx.get("meta", key) or b"{}"), **norms}))
