# SPDX-License-Identifier: Apache-2.0
"""MMDuet: heads score every frame, and the scores decide when to speak.

Wang et al., MMDuet (2024), its released loop: two heads, informative and relevance; it speaks when
their sum is above a threshold, or when the sum over frames is, which then begins again, or when it
stands out of the recent ones by some standard deviations. A reply may be forgotten once said: the
cache is put back to what it was before.

The heads come with the caller's model, as a function of what a frame ends in. Oracle: each rule
over the scores that the logits of one dense forward give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Sink, Window
from ..streams import Engine, HeadSum, InCache, Stream, oracle, wrap
from ..streams.engine import Model
from .proof import Check, Preset, random_tokens
from .watching import Watched, watch

__all__ = ["Watched", "mmduet", "watch"]

FRAME = 10


def mmduet(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams keep everything, unless `memory` says less; see `watch`.

    Options as in `headrace.wrap`, whose errors it raises.
    """
    return wrap(
        model, memory=Window(None) if memory is None else memory, positions=InCache(), **options
    )


def check(model: Model, *, frames: int = 24) -> list[Check]:
    """Firing times of the head-sum and running-sum rules, and that a forgotten reply leaves no bit.

    The heads are two of the model's own outputs, squashed to 0..1.
    """
    memory, silence = Sink(4) + Window(60), 0
    parts = list(random_tokens(model, frames * FRAME).split(FRAME))
    with mmduet(model, memory=memory, page_size=16, pool_pages=96) as engine:
        quiet = engine.open()
        for part in parts:
            quiet.feed(part)
        logits = oracle(model, torch.cat(parts), memory, InCache())[FRAME - 1 :: FRAME]
        sums = [math.fsum(_heads(row)) for row in logits]
        now = sorted(sums)[frames // 2]
        rules = {"now": (now, [s > now for s in sums]), "running": (2.5, _running(sums, 2.5))}
        checks = []
        for rule, (threshold, want) in rules.items():
            stream, gate = engine.open(), HeadSum(threshold, rule)
            seen = watch(
                stream, parts, gate, silence=silence, longest=9, scores=_heads, forget=True
            )
            # A sum within rounding of the threshold may fall either way.
            wrong = sum(
                a != b
                for a, b, s in zip(seen.fired, want, sums, strict=True)
                if rule != "now" or abs(s - threshold) > 1e-4
            )
            fires = sum(want)
            checks += [
                Check(f"{rule}: decisions that differ from the rule's", wrong, 0),
                Check(f"{rule}: spoke at no frame or at all of them", not 0 < fires < frames, 0),
                Check(f"{rule}: forgotten replies: bits that stay", _differ(stream, quiet), 0),
            ]
            stream.close()
    return checks


def _heads(logits: Tensor) -> Sequence[float]:
    return logits[1:3].double().sigmoid().tolist()


def _running(sums: Sequence[float], threshold: float) -> list[bool]:
    fired, total = [], 0.0
    for s in sums:
        total += s
        fired.append(total > threshold)
        total = 0.0 if fired[-1] else total
    return fired


def _differ(a: Stream, b: Stream) -> int:
    """Numbers of two streams' keys and values that differ, and whether they hold as many."""
    if a.table.end != b.table.end or len(a.pages) != len(b.pages):
        return 1
    pool, differ = a.engine.pool, 0
    mine = [*a.table.pinned_spans(), *a.table.window_spans()]
    others = [*b.table.pinned_spans(), *b.table.window_spans()]
    for (page, stop), (other, _) in zip(mine, others, strict=True):
        slots = slice(0, stop - page.start)
        differ += int((pool.k[:, page.id, ..., slots] != pool.k[:, other.id, ..., slots]).sum())
        differ += int((pool.v[:, page.id, :, slots] != pool.v[:, other.id, :, slots]).sum())
    return differ


PRESET = Preset("mmduet", "Wang et al., MMDuet (2024)", mmduet, check, kind="gate")
