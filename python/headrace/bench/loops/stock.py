# SPDX-License-Identifier: Apache-2.0
"""A stock Llama of transformers late in a text: our cache beside the DynamicCache that it grows."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...memory import Sink, Window
from ..case import rms_error
from .turns import Loop, Round, Side, Size

SINKS, WINDOW, CHUNK = 4, 508, 512
SHAPE = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1 << 20,
}  # fmt: skip


class Reader:
    """One model that reads a text into one cache."""

    def __init__(self, model: Any, cache: Any) -> None:
        self.model, self.cache = model, cache

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [vocab] after tokens [T], which go in by chunks."""
        for part in tokens.split(CHUNK):
            told = self.model(input_ids=part[None], past_key_values=self.cache, use_cache=True)
        return torch.as_tensor(told.logits[0, -1])


def sizes(quick: bool) -> Iterator[Size]:
    """Tokens of the text so far."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model = LlamaForCausalLM(config).eval()
    for tokens in (1024,) if quick else (1024, 4096, 16384):
        yield _size(model, config, tokens, 4 if quick else 16)


def _size(model: Any, config: Any, tokens: int, steps: int) -> Size:
    from transformers import DynamicCache

    from ...integrations.transformers import StreamingCache, attached

    draw = torch.Generator().manual_seed(1)
    serving = attached(copy.deepcopy(model))
    ours = serving.__enter__()

    def bounded() -> Reader:
        return Reader(ours, StreamingCache(config, memory=Sink(SINKS) + Window(WINDOW)))

    def grown() -> Reader:
        return Reader(model, DynamicCache(config=config))

    def text(count: int) -> torch.Tensor:
        return torch.randint(1, SHAPE["vocab_size"], (count,), generator=draw)

    def error() -> float:
        """As long as nothing was evicted both see the same tokens."""
        short = text(WINDOW // 2)
        gaps, pair = [], (bounded(), grown())
        for part in (short[:-1], short[-1:]):
            a, b = (reader.read(part) for reader in pair)
            gaps.append(rms_error(a, b))
        return max(gaps)

    readers = {"our cache": bounded(), "DynamicCache": grown()}
    for reader in readers.values():
        draw.manual_seed(2)
        reader.read(text(tokens))

    def run(name: str) -> Callable[[], Round]:
        def one() -> Round:
            lags = []
            for token in text(steps):
                began = time.perf_counter()
                readers[name].read(token[None])
                lags.append(time.perf_counter() - began)
            return Round(sum(lags), steps, lags)

        return one

    def kept() -> int:
        return sum(x.keys.nbytes + x.values.nbytes for x in readers["DynamicCache"].cache.layers)

    sides = [
        Side("our cache", run("our cache"), lambda: readers["our cache"].cache.resident_bytes),
        Side("DynamicCache", run("DynamicCache"), kept),
    ]
    return Size(tokens, sides, error, 1e-4, close=lambda: serving.__exit__(None, None, None))


LOOP = Loop(
    "stock",
    "a token of a stock random Llama of transformers, 4 sinks and a window of 508",
    "tokens of the text",
    "tokens/s",
    "logits with the DynamicCache, while nothing was evicted",
    sizes,
    needs="transformers",
)
