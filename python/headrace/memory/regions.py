# SPDX-License-Identifier: Apache-2.0
"""Regions: which tokens a stream keeps. `Sink(4) + Window(252)` keeps what either keeps.

A region says the same thing twice. `keeps` is its definition, a mask over pairs (query, key), which
the oracle reads; `plan` is what the page table runs on. Tests hold one against the other. Where age
alone does not say who stays (`chooses`), `stays` takes the place of the plan, and the oracle has a
definition of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported

if TYPE_CHECKING:
    from .choice import Held
    from .fold import Fold

UNLIMITED = 2**62
"""A reach or a cap that never binds."""
ALONE = "Sink and Window in tokens >> Fold(...), and nothing more"


@dataclass(frozen=True)
class Coming:
    """Tokens that are to be read: how many, their tag, and the time and the frame it then is.

    settled: whether a region to the left of >> holds them, so that none further right need to.
    """

    count: int
    tag: str | None = None
    at: float = 0.0
    frame: float = 0.0
    settled: bool = False

    def among(self, tag: str | None) -> Coming:
        """How many of them have a tag."""
        return self if tag == self.tag else replace(self, count=0)


@dataclass(frozen=True)
class Plan:
    """How a stream holds its tokens.

    pinned: how many first tokens are never evicted. reach: a token is seen while query - token <
    reach. cap: the largest distance at which a query sees the first token, and so the others pinned
    with it. block: where not 0, every run of so many tokens, counted from the first of all, has its
    first seen at `cap` at most. choice: the regions that choose who stays, when some do. fold: what
    becomes of a token that no query sees any more, beside being let go.
    """

    pinned: int = 0
    reach: int = 0
    cap: int = UNLIMITED
    block: int = 0
    choice: Region | None = None
    fold: Fold | None = None

    def __or__(self, other: Plan) -> Plan:
        if self.fold or other.fold:
            raise unsupported("wrap", "memory", ALONE, "other regions beside it")
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

    chooses = False
    """Whether it must see the tokens alive to say which stay."""
    fold: Fold | None = None
    """What becomes of the tokens that it does not keep, when something does."""

    @property
    def capacity(self) -> int | None:
        """Tokens that it keeps at most; None when there is no such number."""
        return None

    def needs(self, tag: str | None) -> frozenset[str]:
        """Of "scores", "surprisal", "at" and "frame", what it must know of tokens with a tag."""
        return frozenset()

    def newest(self, tag: str | None) -> bool:
        """Whether it holds what was read last, for tokens with a tag."""
        return False

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        """Which of the tokens alive stay when others are to be read: bool [N].

        taken: tokens that regions to the left of >> keep.
        """
        raise unsupported("wrap", "memory", "Sink, Window, Keep, Rest and Tagged together", self)

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
        expected = "an Archive, Fold, Keep, Rest or Window behind >>"
        raise bad_type("wrap", "memory", expected, repr(self))


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

    @property
    def capacity(self) -> int | None:
        return self.tokens

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        stay: np.ndarray = held.nth < self.tokens
        return stay


@dataclass(frozen=True, repr=False)
class Window(Region):
    """The newest `tokens` tokens, the query itself among them; None keeps every token.

    Or, with the times or frame ids that come with every feed (`Stream.feed`), those read in the
    last `seconds`, or of the newest `frames` ids: at - its own < seconds, frame - its own < frames.
    """

    tokens: int | None = None
    seconds: float | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.tokens, self.seconds, self.frames) if x is not None]
        if len(given) > 1:
            raise bad_value("Window", "tokens", "one of tokens, seconds and frames", repr(self))
        if self.tokens is not None:
            _check_count("Window", self.tokens, least=1, hint="the window counts the query itself")
        if self.frames is not None:
            _check_count("Window", self.frames, least=1, what="frames")
        if self.seconds is not None and not self.seconds > 0:
            raise bad_value("Window", "seconds", "more than 0", self.seconds)

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        return self.seconds is not None or self.frames is not None

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        if self.chooses:
            raise bad_value("keeps", "memory", "a Window in tokens", repr(self))
        age = query - key
        return (age >= 0) & (age < (UNLIMITED if self.tokens is None else self.tokens))

    def plan(self) -> Plan:
        if self.chooses:
            raise unsupported("wrap", "memory", "Sink and Window in tokens", repr(self))
        return Plan(reach=UNLIMITED if self.tokens is None else self.tokens)

    @property
    def capacity(self) -> int | None:
        return self.tokens

    def needs(self, tag: str | None) -> frozenset[str]:
        return frozenset({"at"} if self.seconds else {"frame"} if self.frames else ())

    def newest(self, tag: str | None) -> bool:
        return True

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        if self.seconds is not None:
            return np.asarray(coming.at - held.at < self.seconds)
        if self.frames is not None:
            return np.asarray(coming.frame - held.frame < self.frames)
        if self.tokens is None:
            return np.ones(len(held), bool)
        newest = max(0, self.tokens - (0 if coming.settled else coming.count))
        return np.arange(len(held)) >= len(held) - newest

    def behind(self, near: Region) -> Region:
        return _then(near, self)

    def __repr__(self) -> str:
        fields = {"seconds": self.seconds, "frames": self.frames}
        name, value = next(((n, v) for n, v in fields.items() if v is not None), ("tokens", None))
        return f"Window({name}={self.tokens if name == 'tokens' else value})"


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

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        return any(region.chooses for region in self.regions)

    @property
    def capacity(self) -> int | None:
        sizes = [region.capacity for region in self.regions]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def needs(self, tag: str | None) -> frozenset[str]:
        return frozenset().union(*(region.needs(tag) for region in self.regions))

    def newest(self, tag: str | None) -> bool:
        return any(region.newest(tag) for region in self.regions)

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        return np.logical_or.reduce([region.stays(held, coming, taken) for region in self.regions])

    def behind(self, near: Region) -> Region:
        return _then(near, self)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.regions))


@dataclass(frozen=True)
class Behind(Region):
    """`near >> far`: a query sees what near keeps; what else it sees is up to what takes that
    which near evicts."""

    near: Region
    far: Region

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        return self.near.keeps(query, key)

    def plan(self) -> Plan:
        return self.near.plan()

    def __repr__(self) -> str:
        return f"{self.near!r} >> {self.far!r}"


def compile_plan(memory: Region, choosing: bool = False, folding: bool = False) -> Plan:
    """The plan of a whole memory. Raises TypeError, ValueError or NotImplementedError when it is
    not one; choosing: whether its regions may choose who stays; folding: whether it may fold.
    """
    if not isinstance(memory, Region):
        raise bad_type("wrap", "memory", "regions such as Sink(4) + Window(252)", repr(memory))
    if memory.chooses:
        if not choosing:
            raise unsupported("wrap", "memory", "Sink and Window in tokens here", repr(memory))
        memory.stays(no_tokens(), Coming(0))
        return Plan(reach=UNLIMITED, choice=memory)
    plan = memory.plan()
    if plan.fold is not None and not folding:
        hint = "streams of one lane, and rings of FoldedSparse, fold"
        raise unsupported("wrap", "memory", "regions without a Fold here", repr(memory), hint)
    if plan.reach < 1:
        raise bad_value(
            "wrap", "memory", "a Window among the regions", memory, "a token must see itself"
        )
    return plan


def _then(near: Region, far: Region) -> Region:
    from .choice import Then

    return Then(near, far)


def no_tokens() -> Held:
    """What an empty stream holds."""
    from .choice import TOKEN, Held

    return Held(np.empty(0, TOKEN), (), lambda _: torch.empty(0))


def _parts(region: Region) -> tuple[Region, ...]:
    return region.regions if isinstance(region, Union) else (region,)


def _check_count(
    name: str, count: object, least: int, hint: str = "", what: str = "tokens"
) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise bad_type(name, what, "a whole number", repr(count))
    if count < least:
        raise bad_value(name, what, f"{least} or more", count, hint)
