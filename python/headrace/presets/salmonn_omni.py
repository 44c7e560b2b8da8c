# SPDX-License-Identifier: Apache-2.0
"""SALMONN-omni: one model that listens, thinks and speaks at once, on one clock.

Yu et al., SALMONN-omni (2024; 2025), its abstracts: a full-duplex model without audio codecs, which
hears the environment and its own speech, and whose thinking says when to change between listening
and speaking. Chosen, where the abstracts say nothing: per tick a block of audio comes in with the
token that was said last (its own speech), the think lane gets the state token that was decided
last, and the speak lane one token while it speaks. The decision of a tick is the likelier of two
tokens, `stay` and `shift`, after the block, so that what is heard in a tick stops speech at the
next. Whoever runs it can interrupt, too.

The three lanes read one another and advance in one step. Oracle: one masked forward over all lanes,
and the rule over its logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Window
from ..streams import Engine, Lane, Lanes, PerLane, wrap
from ..streams.engine import Model
from .lane_loops import Step, ends, lanes_equality, masked
from .proof import Check, Preset, random_tokens

__all__ = ["Talk", "salmonn_omni", "talk"]

NAMES = ("audio", "think", "speak")
KINDS = ("in", "latent", "out")


@dataclass
class Talk:
    """What was fed, and per tick: whether it shifted after it, and whether it spoke in it."""

    steps: list[Step] = field(default_factory=list)
    shifted: list[bool] = field(default_factory=list)
    spoke: list[bool] = field(default_factory=list)
    heard: list[Tensor] = field(default_factory=list)  # logits [V] after each block


def salmonn_omni(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams have the lanes audio, think and speak; see `talk`.

    memory: what each of them keeps; everything unless it says less. Options as in `headrace.wrap`,
    whose errors it raises.
    """
    lanes = [
        Lane(name, [other for other in NAMES if other != name], kind)
        for name, kind in zip(NAMES, KINDS, strict=True)
    ]
    memory = Window(None) if memory is None else memory
    return wrap(model, memory=memory, positions=PerLane(), lanes=lanes, **options)


def talk(
    stream: Lanes,
    blocks: Sequence[Tensor],
    *,
    stay: int,
    shift: int,
    begin: int,
    blank: int,
    interrupts: Collection[int] = (),
) -> Talk:
    """A tick for every block of audio, int64 [n] each.

    stay, shift: tokens of the think lane. begin: first token of what it says, which is greedy.
    blank: what it hears of itself while silent. interrupts: ticks at which speech is told to stop.
    """
    made = Talk()
    token, echo, state, speaking = begin, blank, stay, False
    for tick, block in enumerate(blocks):
        step: dict[str, Tensor] = {
            "audio": torch.cat([block, block.new_tensor([echo])]),
            "think": torch.tensor([state]),
        }
        if speaking:
            step["speak"] = torch.tensor([token])
        reports = stream.feed(step, logits=True)
        echo = token if speaking else blank
        if speaking:
            said = reports["speak"].logits
            assert said is not None
            token = int(said[-1].argmax())
        heard = reports["audio"].logits
        assert heard is not None
        shifts = bool(heard[-1][shift] > heard[-1][stay]) or (speaking and tick in interrupts)
        made.steps.append(step)
        made.spoke.append(speaking)
        made.shifted.append(shifts)
        made.heard.append(heard[-1])
        state = shift if shifts else stay
        if shifts:
            speaking, token = not speaking, begin
    return made


def check(model: Model, *, ticks: int = 48, size: int = 4) -> list[Check]:
    """All lanes against the masked forward; states against the rule; interrupts of both kinds."""
    blocks = list(random_tokens(model, ticks * size).split(size))
    tokens = {"begin": 5, "blank": 6}
    with salmonn_omni(model, page_size=16, pool_pages=128, exact=True) as engine:
        stay, shift = _pair(engine, blocks, tokens)
        tokens |= {"stay": stay, "shift": shift}
        plain = _run(engine, blocks, tokens)
        checks = lanes_equality(engine, plain.steps, greedy=None)
        checks.append(Check("states that differ from the rule's", _wrong(engine, plain, tokens), 0))
        never = not any(plain.spoke) or all(plain.spoke[1:])
        checks.append(Check("it spoke never or always", never, 0))
        told = _told(plain)
        cut = _run(engine, blocks, tokens, interrupts={told})
        checks.append(Check("told to stop: ticks until silence", _until_silent(cut, told), 1))
        checks.append(
            Check("told to stop: earlier logits that differ", _before(plain, cut, told), 0)
        )
        heard = _barge_in(engine, blocks, tokens, plain)
        checks.append(Check("stops for what it hears: no block found", heard is None, 0))
        if heard is not None:
            at, run = heard
            checks.append(Check("heard to stop: ticks until silence", _until_silent(run, at), 1))
            checks.append(Check("heard to stop: states that differ from the rule's",
                                _wrong(engine, run, tokens), 0))  # fmt: skip
    return checks


def _run(engine: Engine, blocks: Sequence[Tensor], tokens: dict[str, int], **of: Any) -> Talk:
    named: dict[str, Any] = {**tokens, **of}
    with engine.open_lanes() as stream:
        return talk(stream, blocks, **named)


def _pair(engine: Engine, blocks: Sequence[Tensor], tokens: dict[str, int]) -> tuple[int, int]:
    """Two tokens between which a model, trained for this or not, changes its mind now and then."""
    rows = torch.stack(_run(engine, blocks, tokens | {"stay": 0, "shift": 0}).heard)
    share = (rows[:, None, :] > rows[:, :32, None]).float().mean(0)
    stay, shift = divmod(int((share - 0.3).abs().argmin()), rows.shape[1])
    return stay, shift


def _wrong(engine: Engine, run: Talk, tokens: dict[str, int]) -> int:
    rows = masked(engine, run.steps)["audio"][ends(run.steps, "audio")]
    rule = (rows[:, tokens["shift"]] > rows[:, tokens["stay"]]).tolist()
    speaking, wrong = False, 0
    for tick, shifts in enumerate(rule):
        wrong += shifts != run.shifted[tick] or speaking != run.spoke[tick]
        speaking ^= shifts
    return wrong


def _told(run: Talk) -> int:
    """A tick in which it speaks and would have gone on."""
    return next(t for t, on in enumerate(run.spoke) if on and not run.shifted[t])


def _until_silent(run: Talk, tick: int) -> int:
    return run.spoke[tick:].index(False)


def _before(one: Talk, two: Talk, tick: int) -> int:
    return sum(int((a != b).sum()) for a, b in zip(one.heard[: tick + 1], two.heard, strict=False))


def _barge_in(
    engine: Engine, blocks: Sequence[Tensor], tokens: dict[str, int], plain: Talk
) -> tuple[int, Talk] | None:
    """A block that makes it stop where it would have gone on, found by trying."""
    ticks = [t for t, on in enumerate(plain.spoke) if on and not plain.shifted[t]]
    for at, seed in itertools.product(ticks, range(1, 9)):
        other = [*blocks[:at], random_tokens(engine.model, len(blocks[at]), seed)]
        run = _run(engine, [*other, *blocks[at + 1 : at + 3]], tokens)
        if run.shifted[at]:
            return at, run
    return None


PRESET = Preset(
    "salmonn_omni",
    "Yu et al., SALMONN-omni (2024; 2025), its abstracts",
    salmonn_omni,
    check,
    kind="lanes",
)
