# SPDX-License-Identifier: Apache-2.0
"""The rule that a revision has to meet before a name may point at it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import bad_value
from .config import text


@dataclass(frozen=True)
class Gate:
    """Bounds on the latest recorded value of `metric`.

    better: it must also be better than that of the revision in place, which is greater, or less
    with `lower_is_better`. A revision without the metric never passes.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    better: bool = False
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        text("Gate", "metric", self.metric, 64)
        for arg in ("at_least", "at_most"):
            bound = getattr(self, arg)
            if bound is not None and not math.isfinite(bound):
                raise bad_value("Gate", arg, "a finite number, or None", bound)
        if self.at_least is None and self.at_most is None and not self.better:
            raise bad_value("Gate", "at_least", "a bound, or better=True", "no rule")

    def refusal(self, new: Mapping[str, float], current: Mapping[str, float]) -> str | None:
        """Why the scores `new` do not pass (`expected X, got Y`); None where they do."""
        score, held = new.get(self.metric), current.get(self.metric)
        if score is None:
            return f"expected {self.metric} on record, got none"
        if self.at_least is not None and not score >= self.at_least:
            return f"expected {self.metric} >= {self.at_least:g}, got {score:g}"
        if self.at_most is not None and not score <= self.at_most:
            return f"expected {self.metric} <= {self.at_most:g}, got {score:g}"
        if self.better:
            if held is None:
                return f"expected {self.metric} on record for the revision in place, got none"
            if not (score < held if self.lower_is_better else score > held):
                side = "<" if self.lower_is_better else ">"
                return f"expected {self.metric} {side} {held:g} of the one in place, got {score:g}"
        return None
