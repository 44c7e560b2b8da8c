# SPDX-License-Identifier: Apache-2.0
"""What a stream holds, as plain tensors and a line of JSON that says what they mean, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..memory import Folded, Kept, Lease, Page, PagePool, Placed, Table
from ..memory.choice import TOKEN
from .history import History
from .stream import Stream


def pack(tensors: dict[str, Tensor], name: str, stream: Stream) -> dict[str, Any]:
    """Adds what a stream holds to the tensors; says what it means."""
    table, pool = stream._lease.table, stream.engine.pool
    used = _used(table)
    ids, counts = list(used), list(used.values())
    k, v, *scales = _tensors(pool)
    for kind, pages in (("k", k), ("v", v), *zip(("k_scale", "v_scale"), scales, strict=False)):
        copy = pages[:, ids].cpu()
        for i, count in enumerate(counts):  # what lies behind belongs to nobody, or to another
            rest = copy[:, i, ..., count:] if kind != "v" else copy[:, i, :, count:]
            rest.view(torch.uint8).zero_()
        tensors[f"{name}.{kind}"] = copy
    if stream._last is not None:
        tensors[f"{name}.last"] = stream._last.cpu().clone()
    if stream._history is not None:
        tensors[f"{name}.history"] = torch.tensor(stream._history.tokens(), dtype=torch.int32)
    return {
        "start": table.start,
        "end": table.end,
        "slots": counts,
        "pinned": [(ids.index(page.id), *page[1:]) for page in table.pinned],
        "window": [(ids.index(page.id), *page[1:]) for page in table.window],
        "adapter": stream.adapter,
        "kept": _put_kept(tensors, name, table, ids),
        "folded": _put_folded(tensors, name, table.folded),
        "placed": None if table.placed is None else _placed_line(table.placed),
    }


def unpack(
    pool: PagePool, tensors: Mapping[str, Tensor], name: str, line: Mapping[str, Any], plan: Any
) -> tuple[Lease, Tensor | None, History | None]:
    """A lease on pages of the pool that hold the same, the logits that predict the next token, and
    the tokens; plan: of the table."""
    ids = pool.take(len(line["slots"]))
    pinned, window = (tuple(Page(ids[i], *at) for i, *at in line[x]) for x in ("pinned", "window"))
    kept = None
    if line["kept"] is not None:
        kept = _take_kept(ids, tensors[f"{name}.kept"], line["kept"])
    folded = None
    if line["folded"]:
        prefix = f"{name}.folded."
        mine = {x: tensors[prefix + x].to(pool.k.device) for x in Folded.__dataclass_fields__}
        folded = Folded(**mine)
    placed = None
    if line["placed"] is not None:
        times, *rest = line["placed"]
        placed = Placed(dict(times), *rest)
    runs = pinned, window
    table = Table(line["start"], line["end"], plan, *runs, kept=kept, folded=folded, placed=placed)
    for kind, pages in zip(("k", "v", "k_scale", "v_scale"), _tensors(pool), strict=False):
        pages[:, ids] = tensors[f"{name}.{kind}"].to(pages.device)
    for page, slots in zip(ids, line["slots"], strict=True):
        pool.filled[page] = slots
    lease = Lease(pool, table)
    pool.drop(ids)
    last, history = tensors.get(f"{name}.last"), tensors.get(f"{name}.history")
    last = None if last is None else last.to(pool.k.device)
    return lease, last, None if history is None else History(history.tolist())


def _used(table: Table) -> dict[int, int]:
    """Slots of each page up to the last that counts, in the order of `page_ids`."""
    used = {page.id: after - page.start for page, after in table.pinned_spans()}
    if table.kept is not None:
        for page, first, count, *_ in table.kept.rows:
            used[page] = max(used.get(page, 0), first + count)
    return used | {page.id: after - page.start for page, after in table.window_spans()}


def _put_kept(
    tensors: dict[str, Tensor], name: str, table: Table, ids: list[int]
) -> dict[str, Any] | None:
    """Survivors, one by one, their pages as places among `ids`."""
    if table.kept is None:
        return None
    kept = table.kept.renumbered({page: i for i, page in enumerate(ids)})
    tensors[f"{name}.kept"] = torch.from_numpy(kept.tokens.view(np.uint8).copy())
    when = (kept.at.hex(), kept.frame.hex())  # nan has no place in JSON
    return {
        "since": kept.since,
        "upto": kept.upto,
        "tags": kept.tags,
        "counts": kept.counts,
        "rows": kept.rows,
        "when": when,
    }


def _put_folded(tensors: dict[str, Tensor], name: str, folded: Folded | None) -> bool:
    for field, x in {} if folded is None else vars(folded).items():
        tensors[f"{name}.folded.{field}"] = x.cpu().contiguous()
    return folded is not None


def _placed_line(placed: Placed) -> list[Any]:
    return [list(placed.times.items()), placed.first, placed.top, placed.given]


def _take_kept(ids: list[int], tokens: Tensor, line: Mapping[str, Any]) -> Kept:
    at, frame = map(float.fromhex, line["when"])
    kept = Kept(
        tokens.numpy().view(TOKEN),
        line["since"],
        line["upto"],
        tuple(line["tags"]),
        tuple(line["counts"]),
        tuple(map(tuple, line["rows"])),
        at,
        frame,
    )
    return kept.renumbered(dict(enumerate(ids)))


def _tensors(pool: PagePool) -> list[Tensor]:
    return [x for x in (pool.k, pool.v, pool.k_scale, pool.v_scale) if x is not None]
