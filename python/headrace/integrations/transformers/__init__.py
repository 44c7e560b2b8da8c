# SPDX-License-Identifier: Apache-2.0
"""Endless streams on stock models of the transformers library.

    model.set_attn_implementation("headrace")
    cache = StreamingCache(model.config, memory=Sink(4) + Window(2044))
    model.generate(**inputs, past_key_values=cache, max_new_tokens=100_000)

What leaves the window can be kept and brought back for a question (ReKV):

    cache = StreamingCache(model.config, memory=Sink(4) + Window(2044) >> Archive("mean"))
    model(**video, past_key_values=cache)
    cache.recall(model, question_ids, top=64)

Importing this registers the attention implementation "headrace" and its mask with the interfaces
that transformers has for them; nothing of transformers or of a model is replaced. `attached(model)`
selects it for a block and puts the former one back. Tested with transformers 5.23.
"""

from __future__ import annotations

TESTED = ("5.23.0", "5.23.0")
"""First and last version of transformers that the tests ran with."""

try:
    from .attention import NAME, attached, register
    from .cache import StreamingCache
    from .families import FAMILIES
    from .oracle import oracle
except ImportError as error:
    raise ImportError(
        f"headrace.integrations.transformers: expected transformers {TESTED[0]} to {TESTED[1]}, "
        f"got {type(error).__name__}: {error}; pip install 'headrace[transformers]'"
    ) from error

register()

__all__ = ["FAMILIES", "NAME", "TESTED", "StreamingCache", "attached", "oracle", "register"]
