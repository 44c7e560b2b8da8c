# SPDX-License-Identifier: Apache-2.0
"""LiveStar: the last caption is weighed against every new frame; the frames it fits best are kept.

Yang et al., LiveStar (NeurIPS 2025); read in github.com/yzy-bupt/LiveStar (its demo and its speed
benchmark). Frames since the last caption are a group, and the caption stands after them. A new
frame is read behind it and the caption once more: while its perplexity there is at most 1.03 times
what it was at its birth, the stream is silent and the frame joins the group, before the caption;
else it begins a group and a caption of its own. Once more than 24 frames are held, each group keeps
the half of its frames, rounded up, at which the perplexity was lowest, and every caption.

There the index of a frame to be deleted is looked for among 1..held only, which spares some after
the first cut; here all that the rule names go.

Oracle: both rules over the perplexities that dense forwards give, of everything alive at its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import Keep
from ..streams import Engine, InCache, Piece, PplRise, Signal, Stream, oracle, wrap
from ..streams.engine import Model
from .proof import Check, Preset, random_tokens

__all__ = ["Frame", "Narrated", "live_star", "narrate", "verify"]

RATIO, MOST, LONGEST = 1.03, 24, 1024


class Frame(NamedTuple):
    """A frame in the cache: its number and group, the perplexity at it, and its tokens there."""

    number: int
    group: int
    perplexity: float
    tokens: range


@dataclass
class Narrated:
    """What was decided, by frame: whether it spoke, the perplexity it went by (nan at the first),
    and the frames held when the next came. captions: what was said, by frame. pieces: as fed.
    """

    fired: list[bool] = field(default_factory=list)
    perplexity: list[float] = field(default_factory=list)
    held: list[list[int]] = field(default_factory=list)
    captions: dict[int, Tensor] = field(default_factory=dict)
    born: dict[int, float] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)


def live_star(model: Model, **options: Any) -> Engine:
    """An engine whose streams keep all that they are not told to let go; see `narrate`.

    Options as in `headrace.wrap`, whose errors it raises.
    """
    return wrap(model, memory=Keep(), positions=InCache(), **options)


def narrate(
    stream: Stream,
    prompt: Tensor,
    frames: Sequence[Tensor],
    *,
    end: int,
    ratio: float = RATIO,
    most: int = MOST,
    longest: int = LONGEST,
) -> Narrated:
    """Reads frame after frame, int64 [n] each, and captions where the last caption fits no more.

    end: the token that ends a caption, part of it; a caption has at most `longest` tokens.
    """
    held: list[Frame] = []
    seen, gate, group = Narrated(), PplRise(ratio), 0
    caption = prompt[:0]
    _read(stream, prompt, seen)
    for i, frame in enumerate(frames):
        keep = None
        if len(held) > most:
            kept = peak_end(held)
            gone = {t for x in held if x not in kept for t in x.tokens}
            keep = [t for t in stream.held.number.tolist() if t not in gone]
            stream.keep(keep)
            held = kept
        perplexity = verify(stream, frame, caption) if group else math.nan
        speak = gate(Signal(perplexity=perplexity))
        if speak and group:
            _read(stream, caption, seen, keep)
            keep = None
        _read(stream, frame, seen, keep)
        if speak:
            caption, gate.born = _caption(stream, end, longest)
            group += 1
            seen.captions[i], seen.born[i] = caption, gate.born
        seen.fired.append(speak)
        seen.perplexity.append(perplexity)
        weight = seen.born[i] if math.isnan(perplexity) else perplexity
        numbers = range(stream.tokens - len(frame), stream.tokens)
        held = [*held, Frame(i, group, weight, numbers)]
        seen.held.append([x.number for x in held])
    return seen


def verify(stream: Stream, frame: Tensor, caption: Tensor) -> float:
    """Perplexity of the caption behind it and a new frame; the stream is then as it was."""
    mark = stream.mark()
    try:
        nll = stream.feed(torch.cat([caption, frame, caption])).nll
    finally:
        stream.rollback(mark)
        mark.release()
    return math.exp(float(nll[-len(caption) :].double().mean()))


def peak_end(held: Sequence[Frame]) -> list[Frame]:
    """Of every group the half with the lowest perplexity, the earlier of equals."""
    kept = []
    for group in sorted({x.group for x in held}):
        mine = sorted((x for x in held if x.group == group), key=lambda x: x.perplexity)
        kept += mine[: math.ceil(len(mine) / 2)]
    return sorted(kept)


def _caption(stream: Stream, end: int, longest: int) -> tuple[Tensor, float]:
    """What the stream says of its newest frame, and the perplexity of it; nothing of it stays."""
    said: list[int] = []
    nll: list[float] = []
    mark = stream.mark()
    try:
        while len(said) < longest and said[-1:] != [end]:
            assert stream._last is not None
            said.append(int(stream._last.argmax()))
            nll.append(float(stream.feed(said[-1:]).nll))
    finally:
        stream.rollback(mark)
        mark.release()
    return torch.tensor(said, device=stream.engine.device), math.exp(math.fsum(nll) / len(nll))


def _read(
    stream: Stream, tokens: Tensor, seen: Narrated, keep: Sequence[int] | None = None
) -> None:
    stream.feed(tokens)
    seen.pieces.append(Piece(tokens, keep=keep))


def check(model: Model, *, frames: int = 18) -> list[Check]:
    """Decisions, captions and survivors by the rule, and that weighing a frame leaves no bit."""
    prompt, shown = random_tokens(model, 6, seed=1), random_tokens(model, 5 * frames).split(5)
    most, longest, end = 5, 4, 0
    with live_star(model, page_size=16, pool_pages=64) as engine:
        stream = engine.open()
        seen = narrate(stream, prompt, shown, end=end, most=most, longest=longest)
        keys, table, pages = engine.pool.k.clone(), stream.table, stream.pages
        filled = list(engine.pool.filled)
        verify(stream, shown[0], next(reversed(seen.captions.values())))
        changed = int(stream.table != table or engine.pool.filled != filled)
        for page in pages:
            slots = slice(0, filled[page])
            differ = engine.pool.k[:, page, ..., slots] != keys[:, page, ..., slots]
            changed += int(differ.sum())
        packed = engine.pool.live_pages - len(stream.pages)
    wrong, said, gap, held = _against_rule(model, seen, prompt, shown, most)
    fires = sum(seen.fired)
    return [
        Check("decisions that differ from the rule's", wrong, 0),
        Check("tokens of captions that the oracle does not choose", said, 0),
        Check("max |perplexity / the oracle's - 1|", gap, 1e-4),
        Check("frames after which others are held than by the rule", held, 0),
        Check("spoke at one frame only or at all of them", int(not 1 < fires < frames), 0),
        Check("numbers of the cache that weighing a frame changes", changed, 0),
        Check("pages held by nothing", packed, 0),
    ]


def _against_rule(
    model: Model, seen: Narrated, prompt: Tensor, shown: Sequence[Tensor], most: int
) -> tuple[int, int, float, int]:
    """Decisions, tokens said, perplexities and survivors that differ from the rules over dense
    forwards over what was alive.
    """

    def likely(pieces: list[Piece], more: list[Tensor], count: int) -> Tensor:
        told = [*pieces, Piece(torch.cat(more), keep=after)]
        return oracle(model, told, Keep(), InCache()).log_softmax(-1)[-count - 1 :]

    at, wrong, said, gap, strange = 1, 0, 0, 0.0, 0
    last, born = prompt[:0], 1.0
    held: dict[int, tuple[int, float]] = {}  # of a frame its group and perplexity
    where: dict[int, int] = {}  # its first token
    alive, count = list(range(len(prompt))), len(prompt)
    group = 0
    for i, frame in enumerate(shown):
        before, after = seen.pieces[:at], seen.pieces[at].keep
        if len(held) > most:
            gone, held = set(held), _half(held)
            lost = {where[j] + t for j in gone - set(held) for t in range(len(frame))}
            alive = [t for t in alive if t not in lost]
            strange += after != alive
        perplexity = math.nan
        if len(last):
            rows = likely(before, [last, frame, last], len(last))
            perplexity = math.exp(-float(rows[:-1].gather(1, last[:, None]).mean()))
            gap = max(gap, abs(seen.perplexity[i] / perplexity - 1))
            wrong += seen.fired[i] != (perplexity > 1.03 * born)
        else:
            wrong += not seen.fired[i]
        more = [frame]
        closed = len(last)
        if seen.fired[i]:
            more, last = [last, frame], seen.captions[i]
            at += i > 0
            rows = likely(before, [*more, last], len(last))
            said += int((rows[:-1].argmax(-1) != last).sum())
            born = math.exp(-float(rows[:-1].gather(1, last[:, None]).mean()))
            gap = max(gap, abs(seen.born[i] / born - 1))
            group += 1
        at += 1
        first = count
        where[i] = first + (closed if seen.fired[i] else 0)  # a caption goes before its frame
        count = where[i] + len(frame)
        alive += range(first, count)
        held[i] = group, born if math.isnan(perplexity) else perplexity
        strange += seen.held[i] != list(held)
    return wrong, said, gap, strange


def _half(held: dict[int, tuple[int, float]]) -> dict[int, tuple[int, float]]:
    """Each frame stays if fewer than half of its group, rounded up, are better."""

    def rank(i: int) -> tuple[int, int]:
        mine = [j for j in held if held[j][0] == held[i][0]]
        better = [j for j in mine if (held[j][1], j) < (held[i][1], i)]
        return len(better), (len(mine) + 1) // 2

    return {i: what for i, what in held.items() if rank(i)[0] < rank(i)[1]}


PRESET = Preset(
    "live_star",
    "Yang et al., LiveStar (NeurIPS 2025); github.com/yzy-bupt/LiveStar",
    live_star,
    check,
    kind="gate",
)
