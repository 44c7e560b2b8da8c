# SPDX-License-Identifier: Apache-2.0
"""Streams whose text changes: what both texts begin with stays, and only the rest is read.

The pages of a kept token hold what they would hold had the stream read the new text from the start.
A bounded window may have let go of tokens that the end of the kept prefix must see again; deep keys
remember what was evicted, so those tokens cannot be read again on their own, and the stream reads
from the latest moment that it, or a mark of it, still holds whole: at worst from its sinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import interrupts
from ..errors import bad_value, unsupported
from ..memory import Lease, Table, cut
from ..memory.parking import Backup
from . import recalling
from .history import History
from .report import Updated
from .tokens import Tokens, ids

if TYPE_CHECKING:
    from .stream import Stream


def rewind(stream: Stream, tokens: int) -> int:
    """Makes it a stream that has read its first `tokens` tokens; returns how many it still has.

    That is fewer, only sinks at worst, when the window has let go of what the next query would see.
    Nothing predicts the next token then.
    """
    if tokens == stream.tokens:
        return tokens
    placed = stream._lease.table.placed
    if tokens or (placed is not None and placed.given):
        _check_age(stream)
    table = _earlier(stream._lease.table, tokens)
    with interrupts.deferred():
        to = Lease(stream.engine.pool, table)
        stream._lease.rewind(to)
        to.release()
        stream._last = None
        if stream._history is not None:
            stream._history = stream._history.cut(table.tokens)
        recalling.cut(stream)
    return table.tokens


def update(stream: Stream, tokens: Tokens, *, logits: bool, recompute: bool) -> Updated:
    """What `Stream.update` does."""
    engine = stream.engine
    stream._check_open("update")
    if stream._history is None:
        expected, hint = "one that remembers its text", "open it with history=True"
        raise bad_value("update", "stream", expected, "one that does not", hint)
    if stream._shelf is not None:
        hint = "open a stream for the new text"
        raise unsupported("update", "memory", "those without an Archive", engine.memory, hint)
    _check_age(stream)
    new = ids(tokens, engine.vocab, engine.device, "update")
    text = new.tolist()
    kept = stream._history.common(text)
    if kept == stream.tokens:  # nothing has changed; something may follow
        return Updated.of(engine.step({stream: new[kept:]}, logits=logits)[stream], kept, 0)
    table, last, history = _latest(stream, text, kept)
    again = kept - table.tokens
    if again > 1 and not recompute:
        raise bad_value(
            "update",
            "tokens",
            "a change of what the window still holds",
            f"one after {kept} of {stream.tokens} tokens",
            f"recompute=True would read {again} again",
        )
    before = stream._lease, stream._last, stream._history
    with interrupts.deferred():
        stream._lease, backup = _take(stream, table)
        stream._last, stream._history = last, history
    try:
        report = engine.step({stream: new[table.tokens :]}, logits=logits)[stream]
    except BaseException:
        with interrupts.deferred():
            stream._lease.release()
            stream._lease, stream._last, stream._history = before
            if backup is not None:
                backup.restore()
        raise
    before[0].release()
    return Updated.of(report, kept, again)


def _check_age(stream: Stream) -> None:
    """That who was alive at an earlier moment follows from how many tokens came since, and where
    they were from the tokens themselves.
    """
    if stream.engine.spatial:
        hint = "go back to a mark, or open a stream for the new text"
        raise unsupported("update", "positions", "those of one axis", stream.engine.positions, hint)
    if stream._lease.table.plan.choice is not None:
        hint = "go back to a mark, or open a stream for the new text"
        supported = "those of Sink and Window in tokens"
        raise unsupported("update", "memory", supported, stream.engine.memory, hint)


def _earlier(table: Table, tokens: int) -> Table:
    """The table cut to `tokens`, or else to its sinks, which are never let go."""
    whole = cut(table, tokens)
    if whole is None:
        whole = cut(table, min(tokens, table.plan.pinned))
        assert whole is not None
    return whole


def _latest(stream: Stream, text: list[int], kept: int) -> tuple[Table, Tensor | None, History]:
    """The latest moment within the kept prefix that the stream or one of its marks still holds.

    One token of it is read again unless the moment is that of a mark: its logits are gone.
    """
    history = stream._history
    assert history is not None
    best: tuple[Table, Tensor | None, History] = (
        _earlier(stream._lease.table, max(0, kept - 1)),
        None,
        history,
    )
    for mark in stream._marks:
        if mark._lease.released or mark._history is None:
            continue
        whole, shared = mark._lease.table, mark._history.common(text)
        if shared == whole.tokens:
            found = whole, mark._last, mark._history
        else:
            found = _earlier(whole, max(0, shared - 1)), None, mark._history
        best = max(best, found, key=lambda m: (m[0].tokens, m[1] is not None))
    table, last, history = best
    return table, last, history.cut(table.tokens)


def _take(stream: Stream, table: Table) -> tuple[Lease, Backup | None]:
    """A lease on the table; the slots after its end are free to write if only this stream has them.

    They come with a copy of what they held, for the case that the step fails.
    """
    pool = stream.engine.pool
    lease = Lease(pool, table)
    tail = table.tail
    if tail is None or tail.id not in stream.pages or pool.holders(tail.id) != 2:
        return lease, None
    return lease, Backup(pool, tail.id, table.end - tail.start)
