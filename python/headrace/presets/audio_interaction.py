# SPDX-License-Identifier: Apache-2.0
"""Audio-Interaction (SoundFlow): perceive a chunk, decide with one token, respond or listen on.

Audio Interaction Model (2026), its released loop: a chunk is 0.4 s of sound in 10 tokens between
two marks; what the model says next is one token, to keep silence or to begin a text; a text goes on
greedily to its end, and then the next chunk is heard. The token of the decision becomes part of the
stream with the next chunk, so that deciding costs one token of work per chunk. Chunks that come
while it responds wait. Where the released loop refuses any third token, the likelier of the two is
taken here.

Oracle: the rule, and greedy choice, over the logits of one dense forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Sink, Window
from ..streams import Engine, InCache, Stream, oracle, wrap
from ..streams.engine import Model
from .proof import Check, Preset, random_tokens

__all__ = ["Heard", "audio_interaction", "interact"]

CHUNK = 10


@dataclass
class Heard:
    """read: all tokens in order. decided: per chunk, how many had been read. responds: what was
    decided. replies: by chunk. left: decided or said, but not read yet."""

    read: list[int] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    responds: list[bool] = field(default_factory=list)
    replies: dict[int, list[int]] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)


def audio_interaction(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams keep everything, unless `memory` says less; see `interact`.

    Options as in `headrace.wrap`, whose errors it raises.
    """
    return wrap(
        model, memory=Window(None) if memory is None else memory, positions=InCache(), **options
    )


def interact(
    stream: Stream,
    chunks: Sequence[Tensor],
    *,
    silence: int,
    respond: int,
    end: int,
    marks: tuple[int, int],
    longest: int = 100,
) -> Heard:
    """Hears chunk after chunk, int64 [n] each, and responds where the model decides to.

    silence, respond: the two tokens of the decision. end: the last of a response, which is cut, and
    ended, at `longest` tokens. marks: put before and after every chunk.
    """
    made = Heard()

    def read(tokens: list[int]) -> Tensor:
        logits = stream.feed([*made.left, *tokens], logits=True).logits
        assert logits is not None
        made.read.extend([*made.left, *tokens])
        return logits[-1]

    for i, chunk in enumerate(chunks):
        logits = read([marks[0], *chunk.tolist(), marks[1]])
        made.decided.append(len(made.read))
        made.responds.append(bool(logits[respond] > logits[silence]))
        made.left = [respond if made.responds[-1] else silence]
        if not made.responds[-1]:
            continue
        said: list[int] = []
        while len(said) < longest and end not in said:
            logits = read([])
            said.append(int(logits.argmax()))
            made.left = said[-1:]
        made.replies[i] = said
        if said[-1] != end:
            made.left = [*said[-1:], end]
    return made


def check(model: Model, *, chunks: int = 20) -> list[Check]:
    """Decisions and replies against the dense forward, bounded and not; and the work, counted."""
    sounds = list(random_tokens(model, chunks * CHUNK).split(CHUNK))
    checks = []
    for name, memory in (("everything kept", Window(None)), ("bounded", Sink(4) + Window(80))):
        with audio_interaction(model, memory=memory, page_size=16, pool_pages=64) as engine:
            marks, end = (7, 8), 9
            silence, respond = _pair(engine, sounds, marks)
            before = engine.pool.written_bytes
            made = interact(
                engine.open(), sounds, silence=silence, respond=respond, end=end, marks=marks,
                longest=6,
            )  # fmt: skip
            row = engine.pool.row_bytes * engine.pool.k.shape[0]
            worked = (engine.pool.written_bytes - before) / row
        rows = oracle(model, torch.tensor(made.read), memory, InCache())
        rule = [bool(rows[at - 1, respond] > rows[at - 1, silence]) for at in made.decided]
        wrong = 0
        for i, said in made.replies.items():  # the decision is read first, then the reply follows
            first = made.decided[i]
            chosen = rows[first : first + len(said)].argmax(-1).tolist()
            wrong += sum(a != b for a, b in zip(said, chosen, strict=True))
        replied = sum(len(said) + (said[-1] != end) for said in made.replies.values())
        perceived = chunks * (CHUNK + 2)
        deciding = (worked + len(made.left) - perceived - replied) / chunks
        differ = sum(a != b for a, b in zip(rule, made.responds, strict=True))
        one_sided = not 0 < sum(made.responds) < chunks
        checks += [
            Check(f"{name}: decisions that differ from the rule's", differ, 0),
            Check(f"{name}: tokens said that the oracle does not choose", wrong, 0),
            Check(f"{name}: responded to no chunk or to all of them", one_sided, 0),
            Check(f"{name}: tokens of work to decide, per chunk", deciding, 1),
            Check(f"{name}: decisions that cost nothing", deciding < 1, 0),
        ]
    return checks


def _pair(engine: Engine, sounds: Sequence[Tensor], marks: tuple[int, int]) -> tuple[int, int]:
    """Two tokens that a model, trained for this or not, prefers in turns."""
    with engine.open() as stream:
        rows = []
        for sound in sounds:
            tokens = [marks[0], *sound.tolist(), marks[1]]
            logits = stream.feed(tokens, logits=True).logits
            assert logits is not None
            rows.append(logits[-1])
    share = (torch.stack(rows)[:, None, :] > torch.stack(rows)[:, :32, None]).float().mean(0)
    silence, respond = divmod(int((share - 0.4).abs().argmin()), share.shape[1])
    return silence, respond


PRESET = Preset(
    "audio_interaction",
    "Audio Interaction Model (2026), its released loop",
    audio_interaction,
    check,
    kind="gate",
)
