# SPDX-License-Identifier: Apache-2.0
"""A stream: tokens go in without end, its pages stay as many as its memory says."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import bad_type, bad_value
from ..memory import Held, Lease, Recalled, Shelf, Table, held
from . import piece, recalling, saying, update
from .history import History
from .piece import Piece
from .report import Report, Updated
from .tokens import BYTES, Tokens

if TYPE_CHECKING:
    from ..adapters import Adapter
    from .engine import Engine


Ahead = tuple[list[Tensor], int]
"""Logits [B, V] of all streams of a step, in a list of one, and the row that is of one stream: most
are never looked at alone, and the list is filled when the model has said them.
"""


class Mark:
    """A moment of a stream to come back to; holds its pages until released or forgotten."""

    def __init__(self, stream: Stream, lease: Lease) -> None:
        self.stream, self._lease = stream, lease
        self._last, self._adapter = stream._last, stream._adapter
        self._history = stream._history
        stream._marks.add(self)

    def release(self) -> None:
        """Lets the pages go; the mark cannot be used any more."""
        self._lease.release()


class Stream:
    """One sequence of tokens through the model of an engine; made by `Engine.open`."""

    __slots__ = (
        "__weakref__", "_adapter", "_ahead", "_history", "_lease", "_marks", "_recalled", "_shelf",
        "engine", "follows", "reads",
    )  # fmt: skip

    _ahead: Ahead | None

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        last: Tensor | None = None,
        reads: tuple[Stream, ...] = (),
        adapter: Adapter | None = None,
        history: History | None = None,
        shelf: Shelf | None = None,
        recalled: Recalled | None = None,
    ) -> None:
        self.engine = engine
        self.reads = reads  # other lanes whose tokens it sees
        self.follows: Stream | None = None  # the lane at whose position the first token comes
        self._adapter = adapter
        self._lease = lease
        self._last = last
        self._history = history  # its tokens, if it remembers them
        self._shelf = shelf  # what of it is archived
        self._recalled = recalled  # what of that it sees
        self._marks: weakref.WeakSet[Mark] = weakref.WeakSet()

    @property
    def closed(self) -> bool:
        return self._lease.released

    @property
    def _last(self) -> Tensor | None:
        """Logits [V] that predict the next token."""
        return None if self._ahead is None else self._ahead[0][0][self._ahead[1]]

    @_last.setter
    def _last(self, last: Tensor | None) -> None:
        self._ahead = None if last is None else ([last[None]], 0)

    @property
    def table(self) -> Table:
        """Its page table; that of an empty lane begins where the lane it follows stands."""
        table = self._lease.table
        if self.follows is None or table.tokens:
            return table
        start = self.follows.table.end
        return replace(table, start=start, end=start)

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self._lease.table.tokens

    @property
    def alive(self) -> int:
        """Tokens that the next query sees."""
        return self._lease.table.alive

    @property
    def pages(self) -> list[int]:
        """Ids of the pages it holds."""
        return self._lease.table.page_ids

    @property
    def position(self) -> int:
        """Logical position of the next token."""
        return self.table.end

    @property
    def adapter(self) -> str | None:
        """Digest of its adapter's revision, or None."""
        return None if self._adapter is None else self._adapter.revision

    def use(self, adapter: str | Adapter | None) -> None:
        """Changes the adapter for the tokens to come; those read so far stay as they were seen.

        The name of the one in use updates it to the revision that the name means now.
        """
        self._check_open("use")
        self._adapter = self.engine._adapter("use", adapter)

    def feed(self, tokens: Tokens, *, logits: bool = False, **known: Any) -> Report:
        """Reads tokens: int64 [T], a list, an array, or bytes for a byte model.

        known: scores, at, frame, tag, room or keep, as `Piece` says, where regions of the memory
        choose who stays; places, where positions are `Keep3D`. All or nothing, as `Engine.step`,
        which does it. Raises TypeError or ValueError, one line.
        """
        fed = Piece(tokens, **known) if known else tokens
        return self.engine.step({self: fed}, logits=logits)[self]

    def keep(self, numbers: Sequence[int]) -> int:
        """Of the tokens alive only these survive; returns how many are evicted.

        numbers: of tokens, the stream's first is 0; `held` says which are alive. For memories with
        regions that choose. All or nothing.
        """
        before = self.alive
        return before - self.feed((), keep=numbers).alive

    @property
    def held(self) -> Held:
        """The tokens alive and what is known of them, for memories with regions that choose."""
        self._check_open("held")
        piece.check_choice("held", self)
        return held(self._lease.table, self.engine.pool, self.engine._inv_freq)

    def rescore(self, scores: Any) -> None:
        """New scores for the tokens alive, a number for each in the order of `held`.

        They stand for what was fed, and for the surprisal, until the stream changes them again.
        """
        self._check_open("rescore")
        piece.check_choice("rescore", self)
        self._lease.table = piece.rescored(self._lease.table, scores)

    def recall(
        self,
        question: Tokens,
        *,
        top: int | None = None,
        mass: float | None = None,
        bound: str = "proven",
    ) -> Recalled:
        """Brings archived pages that a question needs into what the tokens to come see.

        The question is read on the side, which changes nothing but what is recalled: each layer
        takes the `top` pages that the mean of the question's queries likes best; or as few as
        capture the share `mass` of the softmax of every query and head; or without either all of
        them. bound: what says that they do. "proven" holds for every key, and may take nearly all
        pages; "sampled" looks at a few of those left out, and holds with the chance that the result
        names; "estimate" goes by centroids alone. The result tells by layer what is missed at most,
        and how sure that is (see `headrace.memory.Told`). They stay until the next recall or
        `forget`. Pages found damaged are left out and named in the result. All or nothing;
        ValueError when the archive has too few near pages.
        """
        return recalling.recall(self, question, top, mass, bound)

    def forget(self) -> None:
        """What was recalled is not seen any more."""
        recalled, self._recalled = self._recalled, None
        if recalled is not None:
            recalled.release()

    def update(self, tokens: Tokens, *, logits: bool = False, recompute: bool = True) -> Updated:
        """Makes `tokens` its whole text: keeps the longest common prefix and reads the rest.

        The stream is then what one that read `tokens` from the start would be. Needs
        `Engine.open(history=True)`. When the window has let go of what the kept prefix must see
        again, recompute says to read from the latest moment that the stream or a mark still holds,
        at worst from its sinks; without it that is a ValueError. All or nothing; until it succeeds
        the old pages are held too.
        """
        return update.update(self, tokens, logits=logits, recompute=recompute)

    def generate(
        self,
        prompt: Tokens = (),
        *,
        max_new: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: int | Tokens | None = None,
    ) -> Iterator[int]:
        """Reads the prompt, then yields tokens as the model continues; each is read by the stream
        too.

        temperature 0 takes the likeliest token, the lowest id among equals; more samples, with a
        generator of its own (`seed` None: a fresh one). Ends after max_new tokens, or after `stop`:
        a token, or tokens in a row, which are part of what comes out.
        """
        return saying.generate(self, prompt, max_new, temperature, seed, stop)

    def say(
        self,
        prompt: Tokens = (),
        *,
        max_new: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: int | Tokens | None = None,
    ) -> bytes | list[int]:
        """All that `generate` yields: bytes from a byte model, else a list of tokens."""
        said = list(
            self.generate(prompt, max_new=max_new, temperature=temperature, seed=seed, stop=stop)
        )
        return bytes(said) if self.engine.vocab == BYTES else said

    def fork(self) -> Stream:
        """A stream that goes on from here on its own, sharing all pages so far."""
        self._check_open("fork")
        return self.engine._adopt(
            Stream(
                self.engine,
                self._lease.share(),
                self._last,
                self.reads,
                self._adapter,
                self._history,
                None if self._shelf is None else self._shelf.fork(),
                None if self._recalled is None else self._recalled.share(),
            )
        )

    def mark(self) -> Mark:
        """Remembers this moment, for `rollback`."""
        self._check_open("mark")
        return Mark(self, self._lease.share())

    def rollback(self, mark: Mark) -> None:
        """Makes the stream what it was at the mark, which stays valid."""
        self._check_mark(mark)
        self._lease.rewind(mark._lease)
        recalling.cut(self)
        self._last, self._adapter = mark._last, mark._adapter
        self._history = mark._history

    def _check_mark(self, mark: Mark) -> None:
        self._check_open("rollback")
        if not isinstance(mark, Mark):
            raise bad_type("rollback", "mark", "a mark of this stream", type(mark).__name__)
        if mark.stream is not self:
            raise bad_value("rollback", "mark", "a mark of this stream", "one of another")
        if mark._lease.released:
            raise bad_value("rollback", "mark", "a mark that holds its pages", "a released one")

    def close(self) -> None:
        """Gives the pages back, and lets go of the adapter. Closing twice is fine."""
        self.forget()
        if self._shelf is not None:
            self._shelf.close()
            self._shelf = None
        self._lease.release()
        self._adapter = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self, op: str) -> None:
        if self.closed:
            raise bad_value(op, "stream", "an open stream", "a closed one")
