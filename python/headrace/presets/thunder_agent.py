# SPDX-License-Identifier: Apache-2.0
"""ThunderAgent: agent programs pause and resume whole, so that those that run keep their pages.

ThunderAgent (2025), its released code: programs reason or act and are active or paused; every 5 s
they resume, largest that fits first, reasoning before new before acting; then, over capacity, the
smallest that acts pauses, else the smallest that reasons is marked for the end of its turn. Chosen
here: `reserve` tokens beside each program, for its growth until the next look.

Checked: no program that runs loses its pages, and what is said is what arrival order says.
"""

from __future__ import annotations

from typing import Any

from ..streams import Run, Server
from ..streams.engine import Model
from ..streams.policies import Arrival, ProgramPause
from ..streams.traces import agents
from .given import counts, numbers
from .proof import Check, Preset
from .scheduling import differing, parkings, ran, server

__all__ = ["thunder_agent"]


def thunder_agent(
    model: Model, *, capacity: int, period: float = 5.0, reserve: int = 64, **options: Any
) -> Server:
    """A server that pauses whole programs.

    capacity: tokens that active programs may hold. period: seconds between two looks at them.
    reserve: tokens beside each, for its growth until the next. Options as in
    `headrace.streams.Server` and `headrace.wrap`, whose errors it raises; memory: what a stream
    keeps, everything unless it says less. ValueError where capacity or period is not above 0.
    """
    counts("thunder_agent", capacity=capacity)
    counts("thunder_agent", least=0, reserve=reserve)
    numbers("thunder_agent", period=period)
    return server(model, ProgramPause(capacity, period, reserve), **options)


def check(model: Model, *, programs: int = 8, pages: int = 24) -> list[Check]:
    """Programs of which a third fits at once."""
    trace = agents(programs=programs, turns=4, vocab=model.config.vocab)
    policy = ProgramPause(capacity=16 * pages - 64, period=0.5, reserve=24)
    run, fcfs = (ran(model, trace, p, pages=pages) for p in (policy, Arrival()))
    least = len(parkings(fcfs))
    share = len(parkings(run)) / max(1, least)
    return [
        Check("programs that ran and lost their pages", lost(run), 0),
        Check("1 if arrival order lost no pages either", float(least == 0), 0),
        Check("pages lost, as a share of those of arrival order", share, 0.5),
        Check("tokens read, as a share of those of arrival order", run.tokens / fcfs.tokens, 1),
        Check("answers that differ from those of arrival order", differing(run, fcfs), 0),
    ]


def lost(run: Run) -> int:
    """Programs whose pages were taken though they were not paused."""
    assert isinstance(run.policy, ProgramPause)
    changes = [(at, name, False) for at, name in run.policy.pauses]
    changes += [(at, name, True) for at, name in run.policy.resumes]
    count = 0
    for at, name, _ in parkings(run):
        before = [change for change in sorted(changes) if change[1] == name and change[0] <= at]
        count += not before or before[-1][2]
    return count


PRESET = Preset(
    "thunder_agent",
    "ThunderAgent (2025), its released code",
    thunder_agent,
    check,
    kind="scheduler",
)
