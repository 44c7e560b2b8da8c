# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..seat import Job
from .lengths import Lengths
from .policy import Policy, Share, fill

if TYPE_CHECKING:
    from ..desk import Desk


@dataclass
class PrefixGroups(Policy):
    """Prompts that begin alike are read once, up to where they part (BatchLLM).

    What waits for an empty stream is put into one tree of prefixes. Each inner stretch of it is
    read by a stream of its own, from which those of the requests behind it fork, over shared pages.
    The tree is walked depth first, groups with much to say for what they read before others, and
    the next stretch begins when there are pages for it and for all that is going on. An answer is
    taken to have the median length of its group, `prior` tokens before any was seen.
    """

    prior: int = 64
    lengths: Lengths = field(init=False, repr=False)
    _waiting: list[tuple[_Node, Job | None]] = field(init=False, repr=False, default_factory=list)
    _groups: int = field(init=False, repr=False, default=0)
    _turn: dict[int, int] = field(init=False, repr=False, default_factory=dict)  # of begun jobs
    _held: set[int] = field(init=False, repr=False, default_factory=set)  # not begun
    _placed: set[int] = field(init=False, repr=False, default_factory=set)
    _stems: dict[int, _Node] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = Lengths(0.5, self.prior)

    def pick(self, desk: Desk) -> list[Share]:
        new = [job for job in desk.ready if _fresh(job) and job.outcome.index not in self._placed]
        if new:
            self._held.update(job.outcome.index for job in new)
            self._placed |= self._held
            groups = [_Node.of(jobs, 0) for jobs in _parted(new, 0)]
            # Of those that came together; what waited before them keeps its turn.
            groups.sort(key=self._ratio, reverse=True)
            for group in groups:
                self._groups += 1
                group.number(self._groups)
            self._waiting += [(group, None) for group in groups]
        ready = [job for job in desk.ready if job.outcome.index not in self._held]
        while self._waiting and (not ready or self._fits(self._waiting[0][0], ready, desk)):
            ready += self._begin(*self._waiting.pop(0), desk)
        return fill(sorted(ready, key=lambda job: self.order(job, desk)), desk.budget)

    def order(self, job: Job, desk: Desk) -> Any:
        return self._turn.get(job.outcome.index, 0), job.key

    def finished(self, job: Job, desk: Desk) -> None:
        self.lengths.learn(job)
        self._turn.pop(job.outcome.index, None)
        self._placed.discard(job.outcome.index)
        self._held.discard(job.outcome.index)
        node = self._stems.pop(job.outcome.index, None)
        if node is not None:
            at = len(node.tokens)
            ends = [_Node(node.tokens, at, [end], [], node.group) for end in node.ends]
            self._waiting[:0] = [(child, job) for child in ends + node.children]

    def _begin(self, node: _Node, stem: Job | None, desk: Desk) -> list[Job]:
        """Reads a stretch, from where its stem got to; returns what is to be read then."""
        job = node.ends[0] if node.ends else None
        if job is None or node.children or len(node.ends) > 1:
            job = desk.stem(node.tokens, stem.seat if stem is not None else None)
            self._stems[job.outcome.index] = node
        else:
            self._held.discard(job.outcome.index)
            if stem is not None and _waits(job, desk):
                desk.graft(job, stem.seat)
        self._turn[job.outcome.index] = node.group
        if stem is not None and all(other is not stem for _, other in self._waiting):
            desk.discard(stem.seat.name)
        return [job] if _waits(job, desk) else []

    def _ratio(self, group: _Node) -> float:
        said = sum(self.lengths.remaining(job) for job in group.jobs())
        return said / max(1, group.distinct())

    def _fits(self, node: _Node, ready: list[Job], desk: Desk) -> bool:
        """Whether there are pages for all that is going on, and for this stretch too."""
        pool = desk.engine.pool
        sizes = [job.left + self.lengths.remaining(job) for job in ready]
        alone = not node.children and len(node.ends) == 1
        more = self.lengths.remaining(node.ends[0]) if alone else 0
        sizes.append(len(node.tokens) - node.depth + more)
        return sum(1 + size // pool.page_size for size in sizes) <= pool.free_pages


@dataclass
class _Node:
    """A stretch of the tree: what all prompts below it begin with, and where they go on."""

    tokens: tuple[int, ...]
    depth: int
    ends: list[Job]
    children: list[_Node]
    group: int = 0

    @staticmethod
    def of(jobs: list[Job], depth: int) -> _Node:
        prompts = sorted(job.event.tokens for job in jobs)
        low, high = prompts[0], prompts[-1]
        stop = depth
        while stop < len(low) and low[stop] == high[stop]:
            stop += 1
        ends = [job for job in jobs if len(job.event.tokens) == stop]
        on = [job for job in jobs if len(job.event.tokens) > stop]
        children = [_Node.of(part, stop) for part in _parted(on, stop)]
        return _Node(low[:stop], depth, ends, children)

    def jobs(self) -> Iterator[Job]:
        yield from self.ends
        for child in self.children:
            yield from child.jobs()

    def number(self, group: int) -> None:
        """Says of what group it is, and all that is below it."""
        self.group = group
        for child in self.children:
            child.number(group)

    def distinct(self) -> int:
        """Tokens that are read when each stretch is read once."""
        return len(self.tokens) - self.depth + sum(child.distinct() for child in self.children)


def _parted(jobs: list[Job], at: int) -> list[list[Job]]:
    """By the token there, in order of arrival."""
    parts: dict[int, list[Job]] = {}
    for job in jobs:
        parts.setdefault(job.event.tokens[at], []).append(job)
    return list(parts.values())


def _fresh(job: Job) -> bool:
    return job.event.kind == "say" and not job.started and job.seat.text.length == 0


def _waits(job: Job, desk: Desk) -> bool:
    """Whether nothing has become of it meanwhile."""
    return job in job.seat.queue and desk.seats.get(job.seat.name) is job.seat
