# SPDX-License-Identifier: Apache-2.0
"""A stream goes on by itself: each token that its model picks is read too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import bad_value
from .tokens import Tokens, ids

if TYPE_CHECKING:
    from .stream import Stream


def generate(
    stream: Stream,
    prompt: Tokens,
    max_new: int,
    temperature: float,
    seed: int | None,
    stop: int | Tokens | None,
) -> Iterator[int]:
    """What `Stream.generate` does; what is given is checked now."""
    stream._check_open("say")
    engine = stream.engine
    if isinstance(max_new, bool) or not isinstance(max_new, int) or max_new < 0:
        raise bad_value("say", "max_new", "0 tokens or more", max_new)
    if not temperature >= 0:
        raise bad_value("say", "temperature", "0 (greedy) or more", temperature)
    ending: list[int] = []
    if stop is not None:
        one = [stop] if isinstance(stop, int) else stop
        ending = ids(one, engine.vocab, engine.device, "say").tolist()
    read = ids(prompt, engine.vocab, engine.device, "say")
    if stream._last is None and not len(read):
        raise bad_value("say", "prompt", "at least one token in an empty stream", "none")
    return _said(stream, read, max_new, temperature, generator(seed), ending)


def _said(
    stream: Stream,
    prompt: Tensor,
    max_new: int,
    temperature: float,
    generator: torch.Generator,
    ending: list[int],
) -> Iterator[int]:
    if len(prompt):
        stream.feed(prompt)
    said: list[int] = []
    while len(said) < max_new:
        assert stream._last is not None
        token = pick(stream._last, temperature, generator)
        stream.feed([token])
        said.append(token)
        yield token
        if ending and said[-len(ending) :] == ending:
            return


def generator(seed: int | None) -> torch.Generator:
    """One of its own; None: a fresh one."""
    made = torch.Generator()
    if seed is None:
        made.seed()
    else:
        made.manual_seed(seed)
    return made


def pick(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The token that follows logits [V]: the likeliest at temperature 0, else drawn."""
    if temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.double().cpu() / temperature, -1)
    return int(torch.multinomial(chances, 1, generator=generator))
