# SPDX-License-Identifier: Apache-2.0
"""Speak While Watching: an answer is written while the frames of a video are still coming.

Its evaluator writes 3 answer tokens per frame while watching and up to 300 after, and re-encodes
the whole prefix for each frame; here frames and answer are two lanes that advance in one step.
Three schemes for the answer's positions: group (from 0), gap (from 10,000), overlapped (it goes on
where the frames stand at its first token, and later frames use the same numbers again).

Positions count along one axis here, where the source has three for frames; that is chosen, since
the tokens of the proofs are bytes. Oracle: one masked forward over both lanes.
"""

from __future__ import annotations

from typing import Any

from ..errors import bad_value
from ..memory import Region, Window
from ..streams import Engine, Lane, PerLane, wrap
from ..streams.engine import Model
from .lane_loops import lanes_equality, together
from .proof import Check, Preset, random_tokens

__all__ = ["speak_while_watching"]

LANES = (Lane("frames"), Lane("answer", reads=("frames",), kind="out"))
SCHEMES: dict[str, int | str] = {"group": 0, "gap": 10_000, "overlapped": "frames"}


def speak_while_watching(
    model: Model, *, scheme: str = "group", memory: Region | None = None, **options: Any
) -> Engine:
    """An engine whose streams have the lanes frames and answer.

    scheme: positions of the answer, "group" (from 0), "gap" (from 10,000) or "overlapped" (from
    where the frames stand). memory: what each of them keeps; everything unless it says less.
    Options as in `headrace.wrap`, whose errors it raises. ValueError for another scheme.
    """
    if scheme not in SCHEMES:
        expected = ", ".join(SCHEMES)
        raise bad_value("speak_while_watching", "scheme", f"one of {expected}", repr(scheme))
    positions = PerLane({"answer": SCHEMES[scheme]})
    memory = Window(None) if memory is None else memory
    return wrap(model, memory=memory, positions=positions, lanes=LANES, **options)


def check(model: Model, *, frames: int = 8, size: int = 10, each: int = 3) -> list[Check]:
    """Both lanes in every step, under each scheme, against the masked forward."""
    parts = random_tokens(model, frames * size).split(size)
    checks = []
    for scheme in SCHEMES:
        with speak_while_watching(model, scheme=scheme, page_size=16, pool_pages=64) as engine:
            stream = engine.open_lanes()
            steps = together(
                stream, parts, reads="frames", writes="answer", begin=0, each=each, after=10
            )
            stream.close()
            found = lanes_equality(engine, steps, greedy="answer")
        checks += [Check(f"{scheme}: {c.name}", c.figure, c.bound) for c in found]
    return checks


PRESET = Preset(
    "speak_while_watching",
    "Speak While Watching, its released evaluator",
    speak_while_watching,
    check,
    kind="lanes",
)
