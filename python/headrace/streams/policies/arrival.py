# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass

from .policy import Policy


@dataclass
class Arrival(Policy):
    """First come, first served: the order of any policy that says nothing else."""
