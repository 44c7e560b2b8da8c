# SPDX-License-Identifier: Apache-2.0
"""Regions that choose among the tokens alive, where age alone does not say who stays.

A memory with one of these makes room when it is told to read: before a run of tokens (of at most
the engine's `chunk`) is read, `stays` says which of the tokens alive survive, the others are
evicted, and every query of the run sees the survivors and what has come of the run. So a stream
holds at most what its regions allow and the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported
from .regions import Coming, Plan, Region, Union, _check_count

TOKEN = np.dtype(
    [(name, np.int64) for name in ("number", "nth", "tag", "page", "slot", "turn", "place")]
    + [(name, np.float64) for name in ("score", "surprisal", "at", "frame")]
)
"""A token alive: its number in the stream and within its tag; the place of its key."""

Score = str | Callable[["Held"], Any]


class Held:
    """Tokens alive, in the order in which they were read: what regions choose from.

    Arrays of one number per token: number (0 is the stream's first), score (as fed), surprisal
    (nats; inf where nothing predicted it), at (seconds) and frame (nan where none was given).
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tags: tuple[str | None, ...],
        keys: Callable[[np.ndarray], Tensor],
        tagged: bool = False,
    ) -> None:
        self._tokens, self._tags, self._keys, self._tagged = tokens, tags, keys, tagged
        self.number, self.score = tokens["number"], tokens["score"]
        self.surprisal, self.at, self.frame = tokens["surprisal"], tokens["at"], tokens["frame"]

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tag(self) -> list[str | None]:
        """Of each."""
        return [self._tags[code] for code in self._tokens["tag"]]

    @property
    def nth(self) -> np.ndarray:
        """Its number in the stream, or within `Tagged` among those of the tag."""
        nth: np.ndarray = self._tokens["nth" if self._tagged else "number"]
        return nth

    def keys(self) -> Tensor:
        """Their keys without rotation, fp32 [L, Hkv, N, D]."""
        return self._keys(self._tokens)

    def where(self, mask: np.ndarray) -> Held:
        """Those of a mask [N]."""
        return Held(self._tokens[mask], self._tags, self._keys, self._tagged)

    def of(self, tag: str | None) -> tuple[np.ndarray, Held]:
        """Mask of those with a tag, and they."""
        mask: np.ndarray = self._tokens["tag"] == -1
        if tag in self._tags:
            mask = self._tokens["tag"] == self._tags.index(tag)
        return mask, Held(self._tokens[mask], self._tags, self._keys, True)


class Choosing(Region):
    """A region that needs to see what is alive."""

    chooses = True

    def plan(self) -> Plan:
        raise unsupported("wrap", "memory", "Sink and Window in tokens", repr(self))

    def keeps(self, query: Tensor, key: Tensor) -> Tensor:
        raise unsupported("keeps", "memory", "regions that go by age", repr(self))

    def behind(self, near: Region) -> Region:
        return Then(near, self)


@dataclass(frozen=True)
class Keep(Choosing):
    """The `budget` tokens with the highest scores; of equal ones the earlier. None: all of them.

    score: "given" by the caller with every feed; "surprisal", -log p of the token given those
    before it, which the engine knows (SirLLM's token entropy); or a function of the `Held` that
    gives a number for each. What a stream says of itself is fed without a score or a tag: where
    they are given, `Tagged` says what they are given for. room: the tokens to come take of the
    budget.
    """

    score: Score = "given"
    budget: int | None = None
    room: bool = False

    def __post_init__(self) -> None:
        if not (self.score in ("given", "surprisal") or callable(self.score)):
            raise bad_type("Keep", "score", "'given', 'surprisal' or a function", repr(self.score))
        if self.budget is not None:
            _check_count("Keep", self.budget, least=0, what="budget")

    @property
    def capacity(self) -> int | None:
        return self.budget

    def needs(self, tag: str | None) -> frozenset[str]:
        wanted = {"given": "scores", "surprisal": "surprisal"}.get(str(self.score))
        return frozenset({wanted} if wanted and self.budget is not None else ())

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        if self.budget is None:
            return np.ones(len(held), bool)
        budget = max(0, self.budget - (coming.count if self.room else 0))
        stay = np.zeros(len(held), bool)
        if len(held) <= budget:
            return ~stay
        stay[np.argsort(-self._scores(held), kind="stable")[:budget]] = True
        return stay

    def _scores(self, held: Held) -> np.ndarray:
        if isinstance(self.score, str):
            return held.score if self.score == "given" else held.surprisal
        made = self.score(held)
        scores = np.asarray(made.cpu() if isinstance(made, Tensor) else made, np.float64)
        if scores.shape != (len(held),) or np.isnan(scores).any():
            got = f"{list(scores.shape)}, {int(np.isnan(scores).sum())} of them nan"
            raise bad_value("Keep", "score", f"a number for each of {len(held)} tokens", got)
        return scores


@dataclass(frozen=True)
class Rest(Choosing):
    """Behind >>: the newest of what is left, as many as make `total` with all the others.

    The tokens to come are among the total.
    """

    total: int

    def __post_init__(self) -> None:
        _check_count("Rest", self.total, least=1, what="total")

    @property
    def capacity(self) -> int | None:
        return self.total

    def newest(self, tag: str | None) -> bool:
        return True

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        return np.arange(len(held)) >= len(held) - max(0, self.total - coming.count - taken)


@dataclass(frozen=True)
class Tagged(Choosing):
    """What a region keeps of the tokens fed with a tag, counted among themselves.

    tag None: those fed without one, replies among them. Tokens of a tag that no region names are
    evicted before the next are read.
    """

    tag: str | None
    region: Region

    def __post_init__(self) -> None:
        if not isinstance(self.region, Region):
            raise bad_type("Tagged", "region", "a region such as Window(512)", repr(self.region))

    @property
    def capacity(self) -> int | None:
        return self.region.capacity

    def needs(self, tag: str | None) -> frozenset[str]:
        return self.region.needs(tag) if tag == self.tag else frozenset()

    def newest(self, tag: str | None) -> bool:
        return tag == self.tag and self.region.newest(tag)

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        mask, mine = held.of(self.tag)
        mask[mask] = self.region.stays(mine, coming.among(self.tag))
        return mask


@dataclass(frozen=True)
class Then(Choosing):
    """`near >> far`: far chooses among what near evicts."""

    near: Region
    far: Region

    @property
    def capacity(self) -> int | None:
        if isinstance(self.far, Rest):
            return self.far.total
        sizes = self.near.capacity, self.far.capacity
        return None if None in sizes else sum(size or 0 for size in sizes)

    def needs(self, tag: str | None) -> frozenset[str]:
        return self.near.needs(tag) | self.far.needs(tag)

    def newest(self, tag: str | None) -> bool:
        return self.near.newest(tag) or self.far.newest(tag)

    def stays(self, held: Held, coming: Coming, taken: int = 0) -> np.ndarray:
        stay = self.near.stays(held, coming, taken)
        left, settled = held.where(~stay), coming.settled or self.near.newest(coming.tag)
        coming = replace(coming, settled=settled)
        stay[~stay] = self.far.stays(left, coming, taken + int(stay.sum()))
        return stay

    def __repr__(self) -> str:
        far = f"({self.far!r})" if isinstance(self.far, Union | Then) else repr(self.far)
        return f"{self.near!r} >> {far}"
