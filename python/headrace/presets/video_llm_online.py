# SPDX-License-Identifier: Apache-2.0
"""VideoLLM-online: after every frame, silence or a reply, by the chance of the frame separator.

Chen et al., VideoLLM-online (CVPR 2024), its released loop: 2 frames a second of 10 tokens; after
each the chance of the separator, where it is below 0.725, counts as 0; anything else that is then
likeliest begins a greedy reply of at most 100 tokens. Queries are served in order of arrival. The
cache grows without bound there, as by default here; `memory` bounds it.

Oracle: the same rule over the logits of one dense forward over all that was read and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Sink, Window
from ..streams import Engine, InCache, TokenProb, oracle, wrap
from ..streams.engine import Model
from .proof import Check, Preset, random_tokens
from .watching import Watched, watch

__all__ = ["Watched", "video_llm_online", "watch"]

THRESHOLD, FRAME, LONGEST = 0.725, 10, 100


def video_llm_online(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams keep everything, unless `memory` says less; see `watch`.

    Options as in `headrace.wrap`, whose errors it raises.
    """
    return wrap(
        model, memory=Window(None) if memory is None else memory, positions=InCache(), **options
    )


def check(model: Model, *, frames: int = 24) -> list[Check]:
    """Decisions and replies against the rule over the oracle's logits, bounded and not.

    A model that was not trained has no token for silence; the one that it finds likeliest after the
    first frame is taken.
    """
    checks = []
    for name, memory in (("everything kept", Window(None)), ("bounded", Sink(4) + Window(60))):
        parts = list(random_tokens(model, frames * FRAME).split(FRAME))
        first, *two = (random_tokens(model, 5 - i, seed=1 + i) for i in range(3))
        queries: dict[int, Tensor | Sequence[Tensor]] = {3: first, 11: two}
        silence, threshold = _first_silent(model, memory, parts[0])
        with video_llm_online(model, memory=memory, page_size=16, pool_pages=64) as engine:
            gate = TokenProb(silence, threshold)
            seen = watch(engine.open(), parts, gate, silence=silence, longest=6, queries=queries)
        wrong, spoken = _against_rule(model, memory, seen, queries, silence, threshold)
        turns = [seen.read[x.tick - 5 + i : x.tick] for i, x in enumerate(seen.answers)]
        late = [q.tolist() for q in (first, *two)] != turns or [x.frame for x in seen.answers] != [
            3,
            11,
            11,
        ]
        asked = len(queries)
        fired = sum(seen.fired) - asked
        checks += [
            Check(f"{name}: decisions that differ from the rule's", wrong, 0),
            Check(f"{name}: tokens said that the oracle does not choose", spoken, 0),
            Check(f"{name}: 1 if queries were answered out of their order", float(late), 0),
            Check(
                f"{name}: spoke at no frame or at all of them", not 0 < fired < frames - asked, 0
            ),
        ]
    return checks


def _first_silent(model: Model, memory: Region, frame: Tensor) -> tuple[int, float]:
    """A token and a threshold by which the first frame is met with silence, in any model."""
    chances = oracle(model, frame, memory, InCache())[-1].softmax(-1)
    token = int(chances.argmax())
    return token, float(chances[token]) / 2


def _against_rule(
    model: Model,
    memory: Region,
    seen: Watched,
    queries: Mapping[int, Tensor | Sequence[Tensor]],
    silence: int,
    threshold: float,
) -> tuple[int, int]:
    """Decisions, and tokens said, that the rule over the oracle's logits takes otherwise."""
    chances = oracle(model, torch.tensor(seen.read), memory, InCache()).softmax(-1)
    wrong = spoken = 0
    for i, read in enumerate(seen.ticks):
        row = chances[read - 1].clone()
        if row[silence] < threshold:
            row[silence] = 0
        wrong += seen.fired[i] != (i in queries or int(row.argmax()) != silence)
    said = [(x.tick, x.said) for x in seen.answers]
    said += [(seen.ticks[i], reply) for i, reply in seen.replies.items() if i not in queries]
    for read, reply in said:
        for j, token in enumerate(reply):
            row = chances[read - 1 + j].clone()
            if j == 0:
                row[silence] = 0
            spoken += int(row.argmax()) != token
    return wrong, spoken


PRESET = Preset(
    "video_llm_online",
    "Chen et al., VideoLLM-online (CVPR 2024)",
    video_llm_online,
    check,
    kind="gate",
)
