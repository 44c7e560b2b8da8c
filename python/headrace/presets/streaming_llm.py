# SPDX-License-Identifier: Apache-2.0
"""StreamingLLM: attention sinks and a sliding window, at positions within the cache.

Xiao et al., Efficient Streaming Language Models with Attention Sinks (ICLR 2024),
github.com/mit-han-lab/streaming-llm; its chat demo keeps 4 + 2000 tokens, the default here. There
the cache is cut by copying it and every key is rotated again at every step; here both are edits of
integers.

Oracle: query t sees tokens 0..sinks-1 and the newest `window` ones, itself included, each at the
difference of their ranks among those.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..memory import Sink, Window
from ..streams import Engine, InCache, wrap
from ..streams.engine import Model
from .proof import Check, Preset, equality, random_tokens

__all__ = ["streaming_llm"]


def streaming_llm(model: Model, *, sinks: int = 4, window: int = 2000, **options: Any) -> Engine:
    """An engine with StreamingLLM's memory and positions.

    sinks: first tokens that stay. window: newest ones, the one that looks among them. Options as in
    `headrace.wrap`, whose errors it raises. ValueError or TypeError where one is no number of
    tokens.
    """
    return wrap(model, memory=Sink(sinks) + Window(window), positions=InCache(), **options)


def check(
    model: Model, *, sinks: int = 4, window: int = 60, tokens: Tensor | None = None
) -> list[Check]:
    """Equality with the oracle, at a small window: sizes change nothing but its cost."""
    if tokens is None:
        tokens = random_tokens(model, sinks + 5 * window)
    return equality(model, Sink(sinks) + Window(window), InCache(), tokens)


PRESET = Preset(
    "streaming_llm",
    "Xiao et al., ICLR 2024; github.com/mit-han-lab/streaming-llm",
    streaming_llm,
    check,
)
