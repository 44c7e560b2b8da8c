# SPDX-License-Identifier: Apache-2.0
"""Reading with an archive in the loop: each layer chooses by the queries that it has.

`Stream.recall` reads a question on the side, without the archive, and then lets every layer choose.
Here a layer chooses while the tokens are read, so the layers before have already seen what they
chose; and a question can stand beside its stream, seeing of it only what it chooses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value, unsupported
from ..memory import UNLIMITED, Asked, Choose, Lease, Picked, Plan, Recalled, Table, View
from .positions import InCache
from .recalling import Shelf
from .report import Report
from .stream import Stream
from .tokens import Tokens, ids


def seal(stream: Stream) -> None:
    """The next token begins a page, so that pages end where frames end."""
    tail = stream.table.tail
    if tail is not None:
        pool = stream.engine.pool
        pool.filled[tail.id] = pool.page_size


def let_go(stream: Stream) -> None:
    """The window is empty: its pages go, and nothing of them is archived."""
    stream._check_open("let_go")
    lease = stream._lease
    gone, lease.table = [page.id for page in lease.table.window], replace(lease.table, window=())
    stream.engine.pool.drop(gone)


def aside(stream: Stream) -> Stream:
    """A stream that goes on from the same position and sees nothing yet: what this one's window
    holds is in its archive, too. Its pages are its own; closing it leaves this one as it was.
    """
    shelf = _shelf(stream, "aside").fork()
    table, engine = stream.table, stream.engine
    try:
        for page, stop in table.window_spans():
            shelf.stage(page, stop)
        shelf.commit()
    except BaseException:
        shelf.close()
        raise
    at = table.end
    lease = Lease(engine.pool, Table(at, at, Plan(0, engine.plan.reach, UNLIMITED)))
    return engine._adopt(Stream(engine, lease, adapter=stream._adapter, shelf=shelf))


def sinks(stream: Stream) -> list[list[int]]:
    """Entries of its pinned tokens, for `read` to show."""
    return [
        [page.id, 0, stop - page.start, page.origin, UNLIMITED, page.start, UNLIMITED]
        for page, stop in stream.table.pinned_spans()
    ]


def read(
    stream: Stream,
    tokens: Tokens,
    choose: Choose,
    *,
    tail: list[list[int]] | None = None,
    in_a_row: bool = False,
    logits: bool = False,
) -> Report:
    """Feeds tokens, in one model call, for which each layer chooses what of the archive it sees.

    choose(shelf, layer, asked): rows of the shelf's index; asked.q [T, Hq, D] are not rotated, and
    asked.lse counts nothing as seen, for the layer has not attended yet. What was chosen stays in
    sight until the next choice or `forget`. in_a_row: it stands right before the first of the
    tokens, in the order of its time (ReKV); otherwise each at its own position. tail: entries seen
    besides. All or nothing, as `Stream.feed`.
    """
    shelf, engine = _shelf(stream, "read"), stream.engine
    if isinstance(engine.positions, InCache) and stream.table.plan.pinned:
        raise unsupported("read", "stream", "Absolute positions, or a stream aside", "InCache")
    read = ids(tokens, engine.vocab, engine.device)
    at, before = stream.position, stream._recalled
    recalled = Recalled(shelf, stream.table, (), False, tail=tail, before=at if in_a_row else None)

    def seen(layer: int, q: Tensor, step: View) -> tuple[Tensor, Tensor]:
        nothing = torch.full(q.shape[:2], -torch.inf)
        picked = choose(shelf, layer, Asked(q.float().cpu(), nothing, at))
        rows = recalled.take(picked if isinstance(picked, Picked) else Picked(np.asarray(picked)))
        own, indptr = step.lists(layer)
        more = torch.tensor(rows, dtype=torch.int64, device=own.device).view(-1, own.shape[1])
        return torch.cat([more, own]), indptr + indptr.new_tensor([0, len(rows)])

    chunk, engine.chunk = engine.chunk, max(engine.chunk, len(read))
    stream._recalled, engine._seen = None, seen
    try:
        report = stream.feed(read, logits=logits)
    except BaseException:
        stream._recalled = before
        recalled.release()
        raise
    finally:
        engine.chunk, engine._seen = chunk, None
    recalled.settle()
    if before is not None:
        before.release()
    stream._recalled = recalled
    return report


def _shelf(stream: Stream, op: str) -> Shelf:
    stream._check_open(op)
    if stream._shelf is None:
        hint = "wrap the model with memory >> Archive()"
        raise bad_value(op, "stream", "one with an archive", "none", hint)
    return stream._shelf
