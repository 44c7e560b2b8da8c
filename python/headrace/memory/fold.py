# SPDX-License-Identifier: Apache-2.0
"""Fold: what the window lets go of lives on in the state of a linear attention.

`Sink(4) + Window(252) >> Fold()` streams at the memory of the left side and of one matrix for every
kv head, however much it has read. A state cannot be undone, so each table has its own, which never
changes: to fork or to mark a stream is to hold the same one, and to roll back is to have it again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported
from .regions import ALONE, UNLIMITED, Behind, Plan, Region

FEATURES = {"relu": torch.relu, "elu1": lambda x: torch.where(x > 0, x + 1, x.exp())}
MERGES = ("mass", "add")


@dataclass(frozen=True)
class Fold(Region):
    """Takes what the regions to its left evict: `near >> Fold(...)`.

    A token that leaves adds k^ v^T to a state and phi(k) to its norm; a query that sees n of these,
    each head for itself, reads r = (q^ state) / (m + n eps) with m = phi(q) . norm. phi is
    `feature`, "relu" or "elu1" (ELU plus one); q^ and k^ are phi of the rows, or the rows as they
    are with `raw`, turned as positions say: with Absolute and PerLane by where the token stood,
    otherwise as if all that is folded stood one window before the query.

    merge "mass": r joins attention as keys of mass `scale` m would, beside their sum of
    exp(logit). "add": r goes through a matrix of the model, `model.fold(layer)` [D, D], and is
    added. In rings of `FoldedSparse`, which fold frames, "add" with raw is what there is (Hybrid
    Forcing).

    Sources: Katharopoulos et al. (2020); LoLCATs (Zhang et al., 2024) for one softmax over a window
    and a state; leeruibin/hybrid-forcing.
    """

    feature: str = "relu"
    raw: bool = False
    merge: str = "mass"
    scale: float = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise bad_value("Fold", "feature", " or ".join(FEATURES), repr(self.feature))
        if self.merge not in MERGES:
            raise bad_value("Fold", "merge", " or ".join(MERGES), repr(self.merge))
        for name, value in (("scale", self.scale), ("eps", self.eps)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise bad_type("Fold", name, "a number", repr(value))
            if not 0 < value < float("inf"):
                raise bad_value("Fold", name, "more than 0", value)

    def phi(self, x: Tensor) -> Tensor:
        """The feature of rows; never below 0."""
        made: Tensor = FEATURES[self.feature](x)
        return made

    def behind(self, near: Region) -> Region:
        if near.chooses or near.plan().reach >= UNLIMITED or near.plan().reach < 1:
            supported = "a Window in tokens, perhaps with a Sink, before a Fold"
            raise unsupported("wrap", "memory", supported, repr(near))
        return Folding(near, self)

    def plan(self) -> Plan:
        raise bad_value(
            "wrap", "memory", "regions >> Fold(...)", self, "it folds what others evict"
        )


@dataclass(frozen=True, repr=False)
class Folding(Behind):
    """`near >> fold`. A query sees what near keeps, and of all before that the state."""

    far: Fold

    @property
    def fold(self) -> Fold:  # type: ignore[override]
        return self.far

    def plan(self) -> Plan:
        return replace(self.near.plan(), fold=self.far)

    def __rshift__(self, other: Region) -> Region:
        raise unsupported("wrap", "memory", ALONE, f"{self!r} >> {other!r}")


@dataclass(frozen=True)
class Folded:
    """What a table has folded: the sums of all tokens that its last query saw so; never changes.

    state fp64 [L, Hkv, D, D] and norm fp64 [L, Hkv, D], for they live as long as their stream; k
    and v fp32 [L, Hkv, D]: the token that the next query folds first, its key not rotated.
    """

    state: Tensor
    norm: Tensor
    k: Tensor
    v: Tensor

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.state, self.norm, self.k, self.v))
