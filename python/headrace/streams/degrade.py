# SPDX-License-Identifier: Apache-2.0
"""What to do with what cannot be done in time: the user names it, and the record says when.

Each is asked when a turn begins and when its step is done, and answers which jobs end now, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .seat import Job

if TYPE_CHECKING:
    from .desk import Desk

Degrade = Callable[["Desk"], Iterator[tuple[Job, str]]]


def late(desk: Desk) -> Iterator[tuple[Job, str]]:
    """Nothing: it is done late."""
    yield from ()


def drop(desk: Desk) -> Iterator[tuple[Job, str]]:
    """What is past its deadline before anything of it was read is not read at all."""
    for job in _waiting(desk):
        if job.due < desk.now:
            yield job, "dropped"


def skip(desk: Desk) -> Iterator[tuple[Job, str]]:
    """Input past its deadline is left out when newer input of its stream waits behind it."""
    for seat in desk.seats.values():
        newer = False
        for job in reversed(seat.queue):
            feed = job.event.kind == "feed"
            if feed and newer and not job.started and job.due < desk.now:
                yield job, "skipped"
            newer = newer or feed


def shorten(desk: Desk) -> Iterator[tuple[Job, str]]:
    """An answer ends at its deadline, with what was said by then, one token at least."""
    for job in desk.ready:
        if job.outcome.said and not job.ended and job.until < desk.now:
            yield job, "shortened"


def refuse(desk: Desk) -> Iterator[tuple[Job, str]]:
    """What is not going to be in time is refused as it arrives, before it costs anything.

    The guess: all that waits, and then it, at the pace at which steps of late read tokens.
    """
    if desk.rate is None:
        return
    backlog = sum(_size(job) for seat in desk.seats.values() for job in seat.queue)
    for job in reversed(desk.arrivals):
        if desk.now + desk.rate * backlog > job.until:
            yield job, "refused"
            backlog -= _size(job)


def _waiting(desk: Desk) -> Iterator[Job]:
    for seat in desk.seats.values():
        yield from (job for job in seat.queue if not job.started)


def _size(job: Job) -> int:
    return max(job.left, 0) + job.limit - len(job.outcome.said)


NAMES: dict[str, Degrade] = {
    "late": late, "drop": drop, "skip": skip, "shorten": shorten, "refuse": refuse,
}  # fmt: skip
