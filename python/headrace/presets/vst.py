# SPDX-License-Identifier: Apache-2.0
"""VST: it thinks between clips, and what it remembers of a video is the text of its thoughts.

Guan et al., Video Streaming Thinking, arXiv 2603.12262; the paper's abstract and the configuration
of its released agent were read. A short visual buffer holds the clip, a long memory the thoughts so
far, both bounded; after every clip the model writes a thought about it, seeing both; a question is
answered from both, so its cost does not grow with the video.

Chosen here: clips, thoughts and answers are lanes, so that neither clip nor memory is encoded again
when a thought or an answer comes; memory lets go of its oldest tokens, not of whole thoughts; the
next clip sees the thoughts. A clip is 1,024 tokens, the memory 1,024, a thought 128, greedy,
questions and answers hold 256.

Oracle: one masked forward over all lanes, whose windows let go of what the lanes let go of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Window
from ..streams import Engine, Lane, Lanes, PerLane, wrap
from ..streams.engine import Model
from .lane_loops import Step, lanes_equality
from .proof import Check, Preset, random_tokens

__all__ = ["answer", "think", "vst"]

CLIP, TEXT, THOUGHT = 1024, 1024, 128


def vst(
    model: Model, *, clip: int = CLIP, text: int = TEXT, answer: int = 256, **options: Any
) -> Engine:
    """An engine whose streams have the lanes clip, thoughts and answer; see `think` and `answer`.

    clip, text, answer: most tokens that the visual buffer, the memory of thoughts, and questions
    with their answers hold. Options as in `headrace.wrap`, whose errors it raises. ValueError or
    TypeError where one is no number of tokens.
    """
    lanes = (
        Lane("clip", reads=("thoughts",), memory=Window(clip)),
        Lane("thoughts", reads=("clip",), kind="latent", memory=Window(text)),
        Lane("answer", reads=("clip", "thoughts"), kind="out", memory=Window(answer)),
    )
    return wrap(model, memory=Window(text), positions=PerLane(), lanes=lanes, **options)


def think(
    stream: Lanes,
    clips: Sequence[Tensor],
    *,
    begin: int,
    longest: int = THOUGHT,
    end: int | None = None,
) -> tuple[list[Step], int]:
    """Reads clips, int64 [n] each, and after each writes a thought, to the token `end` or `longest`
    tokens. The first begins with `begin`, another with what was likeliest after the last one; gives
    the steps, and with what the next one begins.
    """
    steps: list[Step] = []
    token = begin
    for clip in clips:
        steps.append({"clip": clip})
        stream.feed(steps[-1])
        for _ in range(longest):
            steps.append({"thoughts": torch.tensor([token])})
            logits = stream.feed(steps[-1], logits=True)["thoughts"].logits
            assert logits is not None
            token = int(logits[-1].argmax())
            if token == end:
                break
    return steps, token


def answer(stream: Lanes, question: Tensor, *, longest: int) -> list[Step]:
    """Reads a question into the answer lane and answers it, greedily; gives the steps."""
    steps: list[Step] = [{"answer": question}]
    for _ in range(longest):
        logits = stream.feed(steps[-1], logits=True)["answer"].logits
        assert logits is not None
        steps.append({"answer": logits[-1].argmax()[None]})
    stream.feed(steps[-1])
    return steps


def check(model: Model, *, clips: int = 12, size: int = 24, thought: int = 5) -> list[Check]:
    """Lanes against the masked forward; and what an answer sees after a few clips and after all."""
    parts = random_tokens(model, clips * size).split(size)
    question = random_tokens(model, 6, seed=9)
    options: dict[str, Any] = {"page_size": 16, "pool_pages": 128}
    with vst(model, clip=size, text=21, answer=32, **options) as engine:
        stream, begin, sees, pages = engine.open_lanes(), 0, [], []
        steps: list[Step] = []
        for some in (parts[: clips // 2], parts[clips // 2 :]):
            more, begin = think(stream, some, begin=begin, longest=thought)
            steps += more
            steps += answer(stream, question, longest=4)
            sees.append(stream["clip"].alive + stream["thoughts"].alive)
            pages.append(sum(len(stream[name].pages) for name in ("clip", "thoughts")))
        written, kept = stream["thoughts"].tokens, stream["thoughts"].alive
        stream.close()
        checks = lanes_equality(engine, steps, greedy="thoughts")
        most = sum(Window(n).plan().window_pages(16) for n in (size, 21))
    return [
        *checks,
        Check("tokens of clip and thoughts that an answer sees", max(sees), size - 1 + 21 - 1),
        Check("tokens more that it sees after twice the video", sees[1] - sees[0], 0),
        Check("pages that clip and thoughts hold", max(pages), most),
        Check("thoughts remembered, over all that were written", kept / written, 0.5),
    ]


PRESET = Preset("vst", "Guan et al., VST, arXiv 2603.12262", vst, check, kind="archive")
