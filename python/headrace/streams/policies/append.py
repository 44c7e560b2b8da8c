# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import bad_value
from ..clock import Polynomial
from ..seat import Job, Seat
from .policy import Policy

if TYPE_CHECKING:
    from ..desk import Desk

ORDERS = ("arrival", "last_chunk", "most_chunks")


@dataclass
class AppendUpdate(Policy):
    """Prompts that come in pieces, by append or update, ahead of what is to be said (Stream2LLM).

    Streams whose prompt is complete, that is, which are to say something, come before those that
    only read ahead. Among those, order: "arrival" (of the stream's first piece), "last_chunk" (of
    its newest piece, latest first) or "most_chunks" (pieces it has had). Pages are given up from
    the tail, by copying them out or by reading again, whichever the fitted polynomials make
    cheaper: seconds for a stream of n tokens, lowest power first; the copies go out and come back.
    """

    queue: str = "arrival"
    recompute: tuple[float, ...] = (0.0, 1e-4)
    swap: tuple[float, ...] = (0.0, 1e-5)

    def __post_init__(self) -> None:
        if self.queue not in ORDERS:
            raise bad_value("AppendUpdate", "queue", "one of " + ", ".join(ORDERS), self.queue)
        self._first: dict[str, tuple[float, int]] = {}
        self._newest: dict[str, tuple[float, int]] = {}
        self._chunks: dict[str, int] = {}

    def order(self, job: Job, desk: Desk) -> Any:
        name = job.seat.name
        partial = all(other.event.kind != "say" for other in job.seat.queue)
        if self.queue == "arrival":
            key: Any = self._first[name]
        elif self.queue == "last_chunk":
            at, index = self._newest[name]
            key = -at, -index
        else:
            key = -self._chunks[name], self._first[name]
        return partial, key

    def arrived(self, job: Job, desk: Desk) -> None:
        name = job.seat.name
        self._first.setdefault(name, job.key)
        self._newest[name] = job.key
        self._chunks[name] = self._chunks.get(name, 0) + 1

    def closed(self, name: str, desk: Desk) -> None:
        for known in (self._first, self._newest, self._chunks):
            known.pop(name, None)

    def swaps(self, seat: Seat, desk: Desk) -> bool:
        n = seat.stream.tokens
        return not Polynomial(self.recompute)(n) < Polynomial(self.swap)(n)
