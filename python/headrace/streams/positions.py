# SPDX-License-Identifier: Apache-2.0
"""Position schemes: at what distance a query sees a token that is still alive.

Like a region, a scheme says it twice: `distance` is the definition, which the oracle reads; `place`
turns it into integers of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import bad_type, bad_value
from ..memory import UNLIMITED, Plan

KNOWN = "InCache(), Absolute(), Relative(...), Keep3D(...) or PerLane()"


class Positions:
    """Gives every alive pair (query, key) a rotary distance."""

    def distance(self, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        """int64 [Tq, Tk] for query numbers [Tq, 1] and key numbers 0..Tk-1 as [1, Tk]; seen bool
        [Tq, Tk].

        Says nothing of pairs that are not seen.
        """
        raise NotImplementedError

    def behind(self, query: Tensor, key: Tensor, reach: int) -> Tensor:
        """Distance at which a query sees what its memory has folded: int64 [Tq, Tk]."""
        return query - key

    def place(self, plan: Plan) -> Plan:
        """The plan with its cap."""
        raise NotImplementedError


@dataclass(frozen=True)
class Absolute(Positions):
    """Every token keeps its number in the stream; distances to sinks grow without end."""

    def distance(self, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        return query - key

    def place(self, plan: Plan) -> Plan:
        return replace(plan, cap=UNLIMITED)


@dataclass(frozen=True)
class InCache(Positions):
    """Every token has its rank among those alive (StreamingLLM; Xiao et al., 2023).

    What is evicted leaves no gap, so no distance exceeds the number of tokens alive.
    """

    def distance(self, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        rank = seen.cumsum(-1)
        return rank[..., -1:] - rank

    def behind(self, query: Tensor, key: Tensor, reach: int) -> Tensor:
        return torch.full_like(query - key, reach)

    def place(self, plan: Plan) -> Plan:
        bounded = plan.reach < UNLIMITED
        return replace(plan, cap=plan.pinned + plan.reach - 1 if bounded else UNLIMITED)


@dataclass(frozen=True)
class Relative(Positions):
    """Every token keeps its number, but distances stop growing: a block of `block` tokens, counted
    from the stream's first, stands still once its first is `clamp` away.

    A query t sees the key j of the block that begins at b at min(t - b, clamp) - (j - b): at its
    own distance while the block is near, and among the last `block` distances up to `clamp` for
    ever after. With block 1 that is min(t - j, clamp), as of rectified positions (ReRoPE; Su,
    2023), at the price of an entry for every token; pages are turned as a whole, so a block costs
    one for each page that it lies in.
    """

    clamp: int
    block: int = 64

    def __post_init__(self) -> None:
        for name, value, least in (("block", self.block, 1), ("clamp", self.clamp, self.block - 1)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise bad_type("Relative", name, "a whole number", repr(value))
            if value < least:
                hint = "" if name == "block" else "a block stands within it"
                raise bad_value("Relative", name, f"{least} or more", value, hint)

    def distance(self, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        first = key - key % self.block
        return (query - first).clamp_max(self.clamp) - (key - first)

    def behind(self, query: Tensor, key: Tensor, reach: int) -> Tensor:
        return torch.full_like(query - key, reach)

    def place(self, plan: Plan) -> Plan:
        return replace(plan, cap=self.clamp, block=self.block)


@dataclass(frozen=True)
class Keep3D(Positions):
    """Every token keeps its time, row and column, whoever else stays (M-RoPE; Qwen2-VL, 2024).

    They come with the tokens, `feed(tokens, places=int64 [T, 3])`; tokens without are text: they go
    on from behind all that came, alike along the three axes. So what a filter dropped of a frame
    leaves its gap (TimeChat-Online). cap: how far back in time the first token of a Sink seems at
    most, and with it the others of the Sink: time is indexed anew past what was evicted between
    (StreamingVLM's contiguous positions); None is not. For models with `freq_axis`, int32 [head_dim
    / 2] in 0..2: the axis that turns each frequency.
    """

    cap: int | None = None

    def __post_init__(self) -> None:
        if self.cap is not None:
            if isinstance(self.cap, bool) or not isinstance(self.cap, int):
                raise bad_type("Keep3D", "cap", "a whole number", repr(self.cap))
            if self.cap < 0:
                raise bad_value("Keep3D", "cap", "0 or more", self.cap)

    def apart(self, places: Tensor, pinned: int) -> Tensor:
        """int64 [T, T, 3]: how far query t sees key j, of tokens at places int64 [T, 3], the first
        `pinned` of which a Sink holds.
        """
        made = places[:, None] - places[None, :]
        if self.cap is not None and len(places):
            time, first = places[:, 0], places[0, 0]
            made[:, :pinned, 0] = (time - first).clamp_max(self.cap)[:, None] - (
                time[:pinned] - first
            )
        return made

    def place(self, plan: Plan) -> Plan:
        return replace(plan, cap=UNLIMITED if self.cap is None else self.cap)


@dataclass(frozen=True)
class PerLane(Absolute):
    """Every lane counts its tokens on its own, from its start; evicted tokens leave their gap.

    starts: where lanes begin, by name; a lane that is not named begins at 0. A name in place of a
    number begins the lane where that other lane stands when the first token comes. Two lanes at 0
    are the group positions of GPE (source ids and target ids both from 0), a name gives ordinary
    continuation, a large number keeps a gap (Speak While Watching names all three).
    """

    starts: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for lane, start in self.starts.items():
            if isinstance(start, bool) or not isinstance(start, int | str):
                got = f"{lane}={start!r}"
                raise bad_type("PerLane", "starts", "positions, or names of lanes", got)
            if isinstance(start, int) and not 0 <= start < 2**61:
                raise bad_value("PerLane", "starts", "0 or more, below 2**61", f"{lane}={start}")
