# SPDX-License-Identifier: Apache-2.0
"""One endless stream: attention sinks and a window beside a window that is read anew for a token.

The second is what StreamingLLM (Xiao et al., 2023) compares with, sliding window with
recomputation; its 22.2x is at the largest window, for the recomputation grows with its square.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ... import models
from ...memory import Sink, Window
from ...streams import wrap
from ..case import rms_error
from .turns import Loop, Round, Side, Size

SINKS, PAGE = 4, 64


def sizes(quick: bool) -> Iterator[Size]:
    """Windows: tokens kept, the sinks among them."""
    model = models.load("bytes-stream")
    for window in (128, 256) if quick else (256, 512, 1024, 2048, 4096):
        yield _size(model, window, 8 if quick else 64)


def _size(model: models.Decoder, window: int, steps: int) -> Size:
    draw = torch.Generator().manual_seed(0)
    pages = 2 * (-(-window // PAGE)) + 256 // PAGE + 8
    bounded = wrap(model, memory=Sink(SINKS) + Window(window - SINKS), pool_pages=pages)
    whole = wrap(model, memory=Window(None), pool_pages=-(-window // PAGE) + 1, chunk=window)
    stream, kept = bounded.open(), 0
    text = torch.randint(256, (window,), generator=draw)
    stream.feed(text)

    def again(tokens: Tensor) -> Tensor:
        nonlocal kept
        with whole.open() as fresh:
            logits = fresh.feed(tokens, logits=True).logits
            kept = whole.resident_bytes
        assert logits is not None
        return logits[-1]

    def error() -> float:
        """As long as nothing was evicted both see the same tokens."""
        with bounded.open() as fresh:
            fresh.feed(text[:-8])
            for token in text[-8:-1]:
                fresh.feed(token[None])
            logits = fresh.feed(text[-1:], logits=True).logits
        assert logits is not None
        return rms_error(logits[-1], again(text))

    def ours() -> Round:
        tokens = torch.randint(256, (steps, 1), generator=draw)
        lags = []
        for token in tokens:
            began = time.perf_counter()
            stream.feed(token)
            lags.append(time.perf_counter() - began)
        return Round(sum(lags), steps, lags)

    def recomputed() -> Round:
        lags = []
        for _ in range(max(1, 512 // window)):
            tokens = torch.randint(256, (window,), generator=draw)
            began = time.perf_counter()
            again(tokens)
            lags.append(time.perf_counter() - began)
        return Round(sum(lags), len(lags), lags)

    def close() -> None:
        bounded.close()
        whole.close()

    sides = [
        Side("sinks and a window", ours, lambda: bounded.resident_bytes),
        Side("recomputation", recomputed, lambda: kept),
    ]
    return Size(window, sides, error, 1e-4, close=close)


LOOP = Loop(
    "streaming",
    "a token of one stream of the packaged model, beside reading its window anew",
    "window, tokens",
    "tokens/s",
    "logits of the recomputation, while nothing was evicted",
    sizes,
    published=(22.2, "StreamingLLM, up to"),
)
