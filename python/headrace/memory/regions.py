# SPDX-License-Identifier: Apache-2.0
"""Regions: which tokens a stream keeps. `Sink(4) + Window(252)` keeps what either keeps.

A region says the same thing twice. `keeps` is its definition, a mask over pairs (query, key), which
the oracle reads; `plan` is what the page table runs on. Tests hold one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import bad_type, bad_value

UNLIMITED = 2**62
"""A reach or a cap that never binds."""


@dataclass(frozen=True)
class Plan:
    """How a stream holds its tokens.

    pinned: how many first tokens are never evicted. reach: a token is seen while query - token <
    reach. cap: the largest distance at which a query sees the first token, and so the others pinned
    with it.
    """

    pinned: int = 0
    reach: int = 0
    cap: int = UNLIMITED

    def __or__(self, other: Plan) -> Plan:
        return Plan(max(self.pinned, other.pinned), max(self.reach, other.reach))

    def alive(self, tokens: int) -> int:
        """Of so many tokens read, how many the next query sees."""
        pinned = min(tokens, self.pinned)
        return pinned + min(tokens - pinned, self.reach - 1)

    def pinned_pages(self, page_size: int) -> int:
        """Pages that the pinned tokens fill."""
        return -(-self.pinned // page_size)

    def window_pages(self, page_size: int) -> int:
        """Pages that any reach - 1 consecutive tokens and the tail fit in, wherever they begin."""
        return 1 + -(-(self.reach - 1) // page_size)


class Region:
    """A set of tokens that stays alive; regions add up with `+`."""

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether query number t sees key number j: int64 tensors that broadcast, gives bool."""
        raise NotImplementedError

    def plan(self) -> Plan:
        """What the page table needs to know."""
        raise NotImplementedError

    def __add__(self, other: Region) -> Region:
        if not isinstance(other, Region):
            return NotImplemented
        return Union((*_parts(self), *_parts(other)))

    def __rshift__(self, other: Region) -> Region:
        return other.behind(self) if isinstance(other, Region) else NotImplemented

    def behind(self, near: Region) -> Region:
        """Of `near >> self`: takes what near evicts. TypeError for regions that cannot."""
        raise bad_type("wrap", "memory", "an Archive behind >>", repr(self))


@dataclass(frozen=True)
class Sink(Region):
    """The first `tokens` tokens of the stream, for ever (attention sinks; Xiao et al., 2023)."""

    tokens: int

    def __post_init__(self) -> None:
        _check_count("Sink", self.tokens, least=0)

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        return (key < self.tokens) & (key <= query)

    def plan(self) -> Plan:
        return Plan(pinned=self.tokens)


@dataclass(frozen=True)
class Window(Region):
    """The newest `tokens` tokens, the query itself among them; None keeps every token."""

    tokens: int | None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            _check_count("Window", self.tokens, least=1, hint="the window counts the query itself")

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        age = query - key
        return (age >= 0) & (age < (UNLIMITED if self.tokens is None else self.tokens))

    def plan(self) -> Plan:
        return Plan(reach=UNLIMITED if self.tokens is None else self.tokens)


@dataclass(frozen=True)
class Union(Region):
    """What any of its regions keeps."""

    regions: tuple[Region, ...]

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        kept = self.regions[0].keeps(query, key)
        for region in self.regions[1:]:
            kept = kept | region.keeps(query, key)
        return kept

    def plan(self) -> Plan:
        plan = Plan()
        for region in self.regions:
            plan = plan | region.plan()
        return plan

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.regions))


def compile_plan(memory: Region) -> Plan:
    """The plan of a whole memory. Raises TypeError or ValueError when it is not one."""
    if not isinstance(memory, Region):
        raise bad_type("wrap", "memory", "regions such as Sink(4) + Window(252)", repr(memory))
    plan = memory.plan()
    if plan.reach < 1:
        raise bad_value(
            "wrap", "memory", "a Window among the regions", memory, "a token must see itself"
        )
    return plan


def _parts(region: Region) -> tuple[Region, ...]:
    return region.regions if isinstance(region, Union) else (region,)


def _check_count(name: str, tokens: object, least: int, hint: str = "") -> None:
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise bad_type(name, "tokens", "a whole number", repr(tokens))
    if tokens < least:
        raise bad_value(name, "tokens", f"{least} or more", tokens, hint)
