# SPDX-License-Identifier: Apache-2.0
"""ReKV: a video is read through a window, and a question looks up the frames that it needs.

Di et al., Streaming Video Question-Answering with In-context Video KV-Cache Retrieval (ICLR 2025),
arXiv 2503.00540; its attention and cache manager at github.com/Becomebright/ReKV were read. Frames
of 196 tokens are blocks, the window is 15,000 tokens, everything read goes to host memory; a
question takes, layer by layer, the 64 blocks whose mean keys (before rotation) its mean query likes
best, all heads in one product, and then sees the first tokens, those blocks and itself, placed one
after the other. The 128 blocks that were used last stay near, so that they are not brought again.

Chosen here: what the window still holds is looked up like the rest, and the question is read once,
where the source reads it a second time before it answers. `ask` gives a stream beside the video's:
answers leave nothing in the video.

Oracle: one dense forward whose question rows see the first tokens, the blocks found by brute force
over all keys, and themselves, at the ranks of what they see.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..memory import Archive, Asked, InMemory, OnDisk, Shelf, Sink, Window, by_score
from ..streams import Engine, InCache, Stream, wrap
from ..streams.asking import aside, read, sinks
from ..streams.engine import Model
from .assembled import anew, dense, pages_of, reported, watch
from .given import counts
from .proof import BOUND, Check, Preset, random_tokens

__all__ = ["ask", "rekv", "watch"]

FRAME, WINDOW, TOP, NEAR = 196, 15_000, 64, 128


def rekv(
    model: Model,
    *,
    init: int = 0,
    window: int = WINDOW,
    frame: int = FRAME,
    top: int = TOP,
    near: int = NEAR,
    tier: InMemory | OnDisk | None = None,
    **options: Any,
) -> Engine:
    """An engine that archives all that its window lets go of; feed it with `watch`.

    init: first tokens (the system prompt), seen for ever. window: tokens that frames see. frame:
    most tokens of a frame. top: the most that a question will look up. near: pages of the archive
    that stay in the pool once looked up, for all streams, the longest unused giving way; `top` if
    that is more. tier: where the archive is, by default host memory. Options as in `headrace.wrap`,
    whose errors it raises. ValueError or TypeError where one of the numbers is none from 1 on (init
    from 0).
    """
    counts("rekv", frame=frame, top=top, near=near)
    archive = Archive("mean", tier or InMemory(), pages=max(near, top))
    memory = Sink(init) + Window(window) >> archive
    options = {"page_size": pages_of(frame)} | options
    return wrap(model, memory=memory, positions=InCache(), **options)


def ask(stream: Stream, question: Tensor, *, top: int = TOP) -> tuple[Stream, Tensor]:
    """A stream beside the video's that has read the question, and its logits [T, V]; `say` on it
    answers. Close it when the answer is there."""

    def choose(shelf: Shelf, layer: int, asked: Asked) -> np.ndarray:
        return by_score(shelf, layer, asked, top)

    side = aside(stream)
    try:
        report = read(side, question, choose, tail=sinks(stream), in_a_row=True, logits=True)
    except BaseException:
        side.close()
        raise
    return side, reported(report)


def oracle(
    model: Any,
    init: Tensor,
    frames: list[Tensor],
    question: Tensor,
    *,
    window: int = 15_000,
    top: int = 64,
    picks: list[set[int]] | None = None,
    sights: list[Tensor] | None = None,
) -> Tensor:
    """Logits fp64 [T, V] of the question; picks: each layer's frames are added to it; sights: as in
    `headrace.presets.assembled.dense`."""
    video = torch.cat([init, *frames])
    both = torch.cat([video, question])
    n, first, number = len(video), len(init), torch.arange(len(both))
    owner = torch.full((len(both),), -1)
    owner[first:n] = torch.cat([torch.full((len(f),), i) for i, f in enumerate(frames)])
    encoded = (Sink(first) + Window(window)).keeps(number[:, None], number[None])

    def see(layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1).flatten(1)
        wanted = q[n:].mean(0).flatten()
        likes = [float(wanted @ keys[owner == i].mean(0)) for i in range(len(frames))]
        best = set(sorted(range(len(frames)), key=lambda i: (-likes[i], i))[:top])
        if picks is not None:
            picks.append(best)
        shown = (number < first) | torch.tensor([int(i) in best for i in owner])
        seen = encoded.clone()
        seen[n:] = shown | ((number >= n) & (number <= number[n:, None]))
        rank = seen.cumsum(-1)
        return seen, rank[:, -1:] - rank

    return dense(model, both, see, sights)[n:]


def recompute(
    model: Any, init: Tensor, frames: list[Tensor], question: Tensor, **options: Any
) -> Tensor:
    """The same with the frames that any layer found encoded anew, one after the other."""
    sights: list[Tensor] = []
    oracle(model, init, frames, question, sights=sights, **options)
    text = torch.cat([init, *frames, question])
    return anew(model, text, sights, len(question), in_a_row=True)


def check(model: Model, *, frames: int = 14, size: int = 19, top: int = 4) -> list[Check]:
    """Two questions along a video against the oracle, and nothing of them in the video after."""
    init, window = random_tokens(model, 5), 45
    parts = [random_tokens(model, size, seed=i) for i in range(1, frames + 1)]
    asked = {frames // 2: random_tokens(model, 9, seed=90), frames: random_tokens(model, 4, 91)}
    checks, sets = [], set()
    with rekv(model, init=len(init), window=window, frame=size, top=top) as engine:
        stream, quiet = engine.open(), engine.open()
        assert engine.archive is not None
        for s in (stream, quiet):
            s.feed(init)
        for i, part in enumerate(parts, 1):
            for s in (stream, quiet):
                watch(s, [part])
            if i not in asked:
                continue
            before = engine.archive.near().moved_bytes
            side, got = ask(stream, asked[i], top=top)
            picks: list[set[int]] = []
            want = oracle(model, init, parts[:i], asked[i], window=window, top=top, picks=picks)
            starts = [len(init) + size * j for j in range(i)]
            index = side._shelf.index  # type: ignore[union-attr]
            row = dict(zip(index.blocks.tolist(), index.starts.tolist(), strict=True))
            found = [{starts.index(row[b]) for b in blocks} for blocks in side._recalled.blocks]  # type: ignore[union-attr]
            moved = engine.archive.tiers.moved_bytes - before
            sets |= {frozenset(p) for p in picks}
            most = top * engine.archive.tiers.layout.block_bytes
            checks += [
                Check(
                    f"question after {i} frames: max |logit - oracle|",
                    float((got - want).abs().max()),
                    BOUND,
                ),
                Check(
                    f"question after {i} frames: layers with other blocks than by brute force",
                    sum(a != b for a, b in zip(found, picks, strict=True)),
                    0,
                ),
                Check(f"question after {i} frames: bytes brought near", moved, most),
            ]
            side.close()
        more = random_tokens(model, 7, seed=92)
        differ = reported(stream.feed(more, logits=True)) != reported(quiet.feed(more, logits=True))
        checks.append(Check("logits of the video that a question changed", int(differ.sum()), 0))
    name = "sets of blocks, of which there must be several: 1 over"
    return [*checks, Check(name, 1 / len(sets), 0.5)]


PRESET = Preset(
    "rekv",
    "Di et al., ICLR 2025; github.com/Becomebright/ReKV",
    rekv,
    check,
    oracle=oracle,
    recompute=recompute,
    kind="archive",
)
