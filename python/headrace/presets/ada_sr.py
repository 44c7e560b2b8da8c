# SPDX-License-Identifier: Apache-2.0
"""AdaSR: StreamingThinker's loop, in which the model says when to stop, and a budget is the cap.

Tong et al., AdaSR (2026), its abstract; its code is not released. A policy that was trained with
rewards for format, accuracy and latency thinks while the input streams and once more when it is
complete, and learns when to think, when to skip, and how much. Here, chosen: after every unit it
begins a thought, and stops as soon as the end token is likely enough, at once where it skips; no
thought is longer than `budget`, all while streaming together than `total`, the last than `final`.
The training is not part of this.

Source and thoughts are lanes with positions of their own, as in StreamingThinker. Oracle: one
masked forward, and the rule over its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..memory import Region
from ..streams import Engine, Lanes
from ..streams.engine import Model
from .lane_loops import Step, lanes_equality, masked
from .proof import Check, Preset, random_tokens
from .streaming_thinker import streaming_thinker

__all__ = ["Reasoned", "ada_sr", "reason"]

STOP = 0.5


@dataclass
class Reasoned:
    """thoughts: tokens of each, the last of them after the end of the input. stopped: whether by
    the model, not by a budget."""

    steps: list[Step] = field(default_factory=list)
    thoughts: list[list[int]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)


def ada_sr(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams have the lanes source and thoughts; see `reason`.

    memory: what each of them keeps; everything unless it says less. Options as in `headrace.wrap`,
    whose errors it raises.
    """
    return streaming_thinker(model, memory=memory, **options)


def reason(
    stream: Lanes,
    units: Sequence[Tensor],
    *,
    begin: int,
    end: int,
    budget: int,
    total: int,
    final: int,
    stop: float = STOP,
) -> Reasoned:
    """Reads unit after unit, and thinks about each until the model stops, or a budget does.

    begin: the token that opens a thought, which is read but not counted. stop: least probability of
    the token `end` by which it stops.
    """
    made = Reasoned()
    spent = 0
    for i, unit in enumerate(units):
        made.steps.append({"source": unit})
        stream.feed(made.steps[-1])
        most = [min(budget, total - spent)]
        if i + 1 == len(units):
            most.append(final)
        for cap in most:
            thought, stopped = _think(stream, made.steps, begin, end, cap, stop)
            made.thoughts.append(thought)
            made.stopped.append(stopped)
            spent += len(thought)
    return made


def _think(
    stream: Lanes, steps: list[Step], begin: int, end: int, cap: int, stop: float
) -> tuple[list[int], bool]:
    thought: list[int] = []
    while True:
        steps.append({"thoughts": torch.tensor([thought[-1] if thought else begin])})
        logits = stream.feed(steps[-1], logits=True)["thoughts"].logits
        assert logits is not None
        if float(logits[-1].double().softmax(-1)[end]) >= stop:
            return thought, True
        if len(thought) >= cap:
            return thought, False
        thought.append(int(logits[-1].argmax()))


def check(model: Model, *, units: int = 12, size: int = 7) -> list[Check]:
    """Thoughts against the masked forward, stops against the rule, lengths against the budgets."""
    parts = random_tokens(model, units * size).split(size)
    budget, total, final = 5, 36, 9
    with ada_sr(model, page_size=16, pool_pages=64, exact=True) as engine:
        end, stop = _learned(engine, parts, budget)
        marks: dict[str, Any] = {"begin": 1, "end": end, "stop": stop}
        with engine.open_lanes() as stream:
            made = reason(stream, parts, budget=budget, total=total, final=final, **marks)
        with engine.open_lanes() as stream:
            tight = reason(stream, parts, budget=budget, total=7, final=2, **marks)
        checks = lanes_equality(engine, made.steps)
        rows = masked(engine, made.steps)["thoughts"]
    chances, wrong, at = rows.softmax(-1)[:, end], 0, 0
    for thought, stopped in zip(made.thoughts, made.stopped, strict=True):
        own = slice(at, at + len(thought))
        wrong += int((chances[own] >= stop).sum())  # it went on
        wrong += int((rows[own].argmax(-1) != torch.tensor(thought, dtype=torch.int64)).sum())
        at = own.stop + 1
        wrong += bool(chances[at - 1] >= stop) != stopped
    over = max(_over(made.thoughts, budget, total, final), _over(tight.thoughts, budget, 7, 2))
    kinds = {(stopped, not thought) for thought, stopped in zip(made.thoughts, made.stopped,
                                                               strict=True)}  # fmt: skip
    return [
        *checks,
        Check("stops and tokens that differ from the rule's", wrong, 0),
        Check("tokens beyond a budget", over, 0),
        Check("it never stopped by itself", not any(made.stopped), 0),
        Check("no thought was cut by its budget", (False, False) not in kinds, 0),
    ]


def _over(thoughts: Sequence[list[int]], budget: int, total: int, final: int) -> int:
    """The most tokens by which a budget was exceeded; 0 where none was."""
    *while_streaming, last = [len(thought) for thought in thoughts]
    over = [length - budget for length in while_streaming]
    return max(0, *over, sum(while_streaming) - total, last - final)


def _learned(engine: Engine, parts: Sequence[Tensor], budget: int) -> tuple[int, float]:
    """An end token and a threshold by which any model stops now and then."""
    with engine.open_lanes() as stream:
        whole = reason(
            stream, parts, begin=1, end=0, stop=2.0, budget=budget, total=999, final=budget
        )
    chances = masked(engine, whole.steps)["thoughts"].softmax(-1)
    end = int((chances.max(0).values - chances.median(0).values).argmax())
    return end, float(chances[:, end].quantile(0.85))


PRESET = Preset("ada_sr", "Tong et al., AdaSR (2026), its abstract", ada_sr, check, kind="lanes")
