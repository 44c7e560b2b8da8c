# SPDX-License-Identifier: Apache-2.0
"""AViLA: a query waits until the stream shows what it needs, which may be past or still to come.

Zhang et al., Asynchronous Video-Language Agent, arXiv 2506.18472; only its abstract was read. It
has three parts: a memory that keeps everything, a search for evidence, and a trigger that says
whether the evidence is enough to answer.

Chosen here: memory and search are ReKV's (`rekv`), asked anew at every frame for every query that
waits; the trigger is a gate, by default the chance that the model does not say the token for
waiting, above 0.5. A query whose evidence is past is answered when it is asked; an answer is
greedy, and neither queries nor answers leave anything in the video.

Oracle: the gate over the last logits of ReKV's dense forward, at every frame.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..streams import Engine, Gate, HeadSum, Signal, Stream
from ..streams.engine import Model
from .assembled import watch
from .proof import Check, Preset, random_tokens
from .rekv import FRAME, TOP, WINDOW, ask, oracle, rekv

__all__ = ["Agent", "Query", "avila"]

LONGEST = 100


def avila(
    model: Model, *, window: int = WINDOW, frame: int = FRAME, top: int = TOP, **options: Any
) -> Engine:
    """An engine for `Agent`.

    window, frame, top: as in `rekv`. Options as in `rekv`, whose errors it raises.
    """
    return rekv(model, window=window, frame=frame, top=top, **options)


@dataclass(eq=False)
class Query:
    """A question, int64 [n], asked after so many frames; answered after that many, or None yet."""

    tokens: Tensor
    asked: int
    gate: Gate
    answered: int | None = None
    said: list[int] = field(default_factory=list)


class Agent:
    """A stream of frames and the queries that wait for their evidence.

    wait: the token for not yet. gate: says of Signal(query, logits, scores=(chance that the next
    token is not `wait`,)) whether to answer; every query has a copy of its own.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        wait: int,
        gate: Gate | None = None,
        top: int = TOP,
        longest: int = LONGEST,
    ) -> None:
        self.stream, self.wait, self.top, self.longest = stream, wait, top, longest
        self.gate = HeadSum(0.5) if gate is None else gate
        self.frames = 0
        self.waiting: list[Query] = []

    def watch(self, frame: Tensor) -> list[Query]:
        """Reads a frame, int64 [n]; the queries that it lets answer, in the order of asking."""
        watch(self.stream, [frame])
        self.frames += 1
        return [query for query in list(self.waiting) if self._answer(query)]

    def ask(self, question: Tensor) -> Query:
        """A query, answered at once if the evidence is there; otherwise it waits."""
        query = Query(question, self.frames, copy.deepcopy(self.gate))
        self.waiting.append(query)
        try:
            self._answer(query)
        except BaseException:
            self.waiting.remove(query)
            raise
        return query

    def _answer(self, query: Query) -> bool:
        side, logits = ask(self.stream, query.tokens, top=self.top)
        with side:
            last = logits[-1]
            sure = 1 - float(last.double().softmax(-1)[self.wait])
            if not query.gate(Signal(query=True, logits=last, scores=(sure,))):
                return False
            last = last.clone()
            last[self.wait] = -torch.inf
            token = int(last.argmax())
            while len(query.said) < self.longest and token != self.wait:
                query.said.append(token)
                after = side.feed([token], logits=True).logits
                assert after is not None
                token = int(after[-1].argmax())
        query.answered = self.frames
        self.waiting.remove(query)
        return True


def _trigger(chances: Sequence[Tensor]) -> tuple[int, float, int]:
    """A token for waiting and a threshold by which the first of two queries waits for late
    evidence and the second one is answered at once, in any model; and after how many looks.

    chances fp64 [looks, V] of either query.
    """
    early, late = (1 - c for c in chances)
    best = (0.0, 0, 0.5, 0)
    for token in range(early.shape[1]):
        for look in range(2, len(early)):
            before = float(early[:look, token].max())
            least = min(float(early[look, token]), float(late[0, token]))
            best = max(best, (least - before, token, (least + before) / 2, look))
    return best[1], best[2], best[3]


def check(model: Model, *, frames: int = 9, size: int = 16) -> list[Check]:
    """When two queries are answered, one before its evidence and one after, against the rule."""
    options: dict[str, Any] = {"window": 40, "top": 3}
    none = random_tokens(model, 0)
    parts = [random_tokens(model, size, seed=i) for i in range(1, frames + 1)]
    asked = {2: random_tokens(model, 6, seed=90), 6: random_tokens(model, 5, seed=91)}
    looks = {
        at: torch.stack(
            [oracle(model, none, parts[:i], q, **options)[-1] for i in range(at, frames + 1)]
        )
        for at, q in asked.items()
    }
    wait, threshold, look = _trigger([looks[at].softmax(-1) for at in asked])
    agents = []
    with avila(model, frame=size, **options) as engine:
        quiet = Agent(engine.open(), wait=wait)
        agent = Agent(engine.open(), wait=wait, gate=HeadSum(threshold), top=3, longest=4)
        queries = []
        for i, part in enumerate(parts, 1):
            for each in (quiet, agent):
                each.watch(part)
            if i in asked:
                queries.append(agent.ask(asked[i]))
        agents = [a.stream.feed([0], logits=True).logits for a in (quiet, agent)]
    assert agents[0] is not None
    assert agents[1] is not None
    wrong = words = 0
    for query, (at, rows) in zip(queries, looks.items(), strict=True):
        sure = 1 - rows.softmax(-1)[:, wait]
        fires = (sure > threshold).nonzero()[:, 0].tolist()
        wrong += query.answered != (at + fires[0] if fires else None)
        if fires:
            first = rows[fires[0]].clone()
            first[wait] = -torch.inf
            words += query.said[:1] != [int(first.argmax())]
    late, soon = queries
    return [
        Check("queries that are answered at another frame than by the rule", wrong, 0),
        Check("answers that begin otherwise than the oracle's", words, 0),
        Check("late evidence: looks too few or too many", abs((late.answered or 99) - 2 - look), 0),
        Check("past evidence: frames until the answer", (soon.answered or 99) - soon.asked, 0),
        Check("queries still waiting", len(agent.waiting), 0),
        Check("logits of the video that they changed", int((agents[0] != agents[1]).sum()), 0),
    ]


PRESET = Preset("avila", "Zhang et al., AViLA, arXiv 2506.18472", avila, check, kind="archive")
