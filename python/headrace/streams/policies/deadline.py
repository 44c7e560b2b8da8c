# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..seat import Job
from .policy import Policy

if TYPE_CHECKING:
    from ..desk import Desk


@dataclass
class Deadline(Policy):
    """Earliest deadline first; what has none comes last (Liu and Layland, 1973).

    With a pace, that of the next token counts.
    """

    def order(self, job: Job, desk: Desk) -> Any:
        return job.due, job.key
