# SPDX-License-Identifier: Apache-2.0
"""BatchLLM: prompts of a batch that begin alike are read once, up to where they part.

BatchLLM, global prefix sharing and throughput-oriented token batching, 2024 (known here from its
abstract). Chosen here: the prefix tree covers what waits for an empty stream; groups with much to
say for what they read go first, an answer being taken to have the median length of its group,
`prior` tokens before any was seen; a stretch begins when there are pages for it and for all that is
going on.

Oracle: each request on its own, nothing shared.
"""

from __future__ import annotations

from typing import Any

from ..streams import Server
from ..streams.engine import Model
from ..streams.policies import Arrival, PrefixGroups
from ..streams.traces import prefix_heavy
from .given import counts
from .proof import Check, Preset
from .scheduling import differing, ran, server

__all__ = ["batch_llm"]


def batch_llm(model: Model, *, prior: int = 64, **options: Any) -> Server:
    """A server that reads what prompts have in common once.

    prior: tokens that an answer is taken to have before any of its group was seen. Options as in
    `headrace.streams.Server` and `headrace.wrap`, whose errors it raises; memory: what a stream
    keeps, everything unless it says less. ValueError where prior is below 1.
    """
    counts("batch_llm", prior=prior)
    return server(model, PrefixGroups(prior), **options)


def check(model: Model, *, requests: int = 10) -> list[Check]:
    """What is read, counted, and what is said, beside runs that share nothing."""
    trace = prefix_heavy(requests=requests, vocab=model.config.vocab)
    alone, shared = (ran(model, trace, p, budget=64) for p in (Arrival(), PrefixGroups()))
    prompts = [event.tokens for event in trace if event.kind == "say"]
    distinct = {prompt[:i] for prompt in prompts for i in range(1, len(prompt) + 1)}
    said = sum(map(len, shared.outputs.values()))
    return [
        Check(
            "prompt tokens read beyond the distinct prefixes",
            shared.tokens - said - len(distinct),
            0,
        ),
        Check(
            "distinct prefixes, as a share of all prompt tokens",
            len(distinct) / sum(map(len, prompts)),
            0.6,
        ),
        Check("answers that differ from those of unshared runs", differing(shared, alone), 0),
    ]


PRESET = Preset("batch_llm", "BatchLLM (2024), its abstract", batch_llm, check, kind="scheduler")
