# SPDX-License-Identifier: Apache-2.0
"""Policies: what goes into each step, one short file each."""

from typing import Any

from ...errors import bad_value
from .append import AppendUpdate
from .arrival import Arrival
from .bandwidth import JustInTime
from .deadline import Deadline
from .foresight import Foresight
from .lengths import Lengths
from .pause import ProgramPause
from .policy import Policy, Share, fill
from .prefix import PrefixGroups
from .retention import Retention
from .urgency import Urgency

__all__ = [
    "AppendUpdate",
    "Arrival",
    "Deadline",
    "Foresight",
    "JustInTime",
    "Lengths",
    "Policy",
    "PrefixGroups",
    "ProgramPause",
    "Retention",
    "Share",
    "Urgency",
    "fill",
    "make",
]

NAMES: dict[str, type[Policy]] = {
    policy.__name__: policy
    for policy in (
        Arrival, Deadline, PrefixGroups, AppendUpdate, JustInTime, ProgramPause, Retention,
        Foresight, Urgency,
    )
}  # fmt: skip


def make(name: str, fields: dict[str, Any]) -> Policy:
    """A policy by the name of its class, as a record has it."""
    if name not in NAMES:
        raise bad_value("policies.make", "name", "one of " + ", ".join(NAMES), repr(name))
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return NAMES[name](**plain)
