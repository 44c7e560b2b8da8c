# SPDX-License-Identifier: Apache-2.0
"""SAVEMem: three tiers of vision tokens under one budget, and a gate that says which are opened.

Wu et al., arXiv 2605.07897, and its code, github.com/wuhang03/savemem. Tokens are worth what the
closest of five fixed questions says (`headrace.recipes.save_mem`). The newest 8 frames are whole.
A frame that leaves them for the mid-term tier keeps tokens that differ from the 3x3 neighbourhood
in the frame before or after by more than Otsu's threshold, but, where the scene goes on, none that
is closer to the one after than 0.8 (and 0.15 times its worth). After 256 frames it goes on to the
long-term tier with 0.15 to 0.40 of its tokens, spread over its quadrants. Of more than 2,048 tokens
in all, long-term ones of the least worth go. A question that the newest frames answer as well as
questions before it sees nothing else; otherwise frames of older tiers are added.

Chosen here: Otsu's bins are those of `headrace.ops.select`; where the long-term tier is empty the
oldest mid-term tokens go, so that the budget holds whatever the frames are; all frames settle by
worth, where small ones are clustered there. Memory is over what the model reads, so that a question
reads what was kept, in order, and then itself. It opens 16 frames of older tiers where their
affinities differ much, more where they do not; the answer has room for 512 tokens with it. Worth
and likeness are of features handed in.

Oracle: the same rules token by token in plain Python, and a dense forward over what is opened.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from ..memory import Window
from ..recipes import save_mem as rule
from ..streams import Absolute, Engine, Stream, wrap
from ..streams.engine import Model
from .assembled import reported
from .given import counts
from .proof import Check, Preset
from .save_mem_oracle import checks

__all__ = ["Frame", "Memory", "Video", "save_mem"]

SHORT, MID, BUDGET, TOP = 8, 256, 2048, 16
SAME, WORTH, CUT = 0.8, 0.15, 1.5


@dataclass(frozen=True)
class Frame:
    """What is left of a frame: tokens int64 [n], features fp32 [n, D], worth fp32 [n], and place
    int64 [n, 2]; apart fp32 [n]: how far each was from the frame before; cut: a new scene.
    """

    number: int
    tokens: Tensor
    x: Tensor
    worth: Tensor
    place: Tensor
    apart: Tensor
    cut: bool

    def only(self, kept: Tensor) -> Frame:
        """With the tokens of bool [n]."""
        parts = {name: getattr(self, name)[kept] for name in ("tokens", "x", "worth", "place")}
        return replace(self, apart=self.apart[kept], **parts)


class Memory:
    """The tiers: `watch` frames, `open` what a question needs."""

    def __init__(
        self,
        probes: Tensor,
        *,
        short: int = SHORT,
        mid: int = MID,
        budget: int = BUDGET,
        top: int = TOP,
        gate: rule.Opens | None = None,
    ) -> None:
        """probes [Q, D]: tokens of the fixed questions; D a multiple of 16."""
        self.probes, self.budget, self.top = probes, budget, top
        self.limits = short, mid
        self.gate = rule.Opens() if gate is None else gate
        self.short: deque[Frame] = deque()
        self.mid: deque[Frame] = deque()
        self.long: list[Frame] = []
        self._last: Tensor | None = None
        self._far: tuple[float, int] = (0.0, 0)  # sum and number of mean distances
        self._seen = 0

    @property
    def size(self) -> int:
        """Tokens in all tiers."""
        return sum(len(f.tokens) for f in (*self.short, *self.mid, *self.long))

    def watch(self, tokens: Tensor, features: Tensor) -> None:
        """A frame: tokens int64 [H, W], features [H, W, D]. Frames are all of one size, of which
        the newest ones must fit the budget.
        """
        rows, columns = tokens.shape
        if rows * columns * self.limits[0] > self.budget:
            most = self.budget // self.limits[0]
            raise bad_value("save_mem", "tokens", f"{most} or fewer", rows * columns)
        x = features.float()
        apart = _apart(x, x if self._last is None else self._last)
        mean, (total, many) = float(apart.double().mean()), self._far
        cut = many > 0 and total / many > 1e-6 and mean > CUT * total / many
        if self._last is not None:
            self._far = total + mean, many + 1
        flat, place = (
            x.flatten(0, 1),
            torch.cartesian_prod(torch.arange(rows), torch.arange(columns)),
        )
        worth = rule.worth(flat, self.probes)
        frame = Frame(self._seen, tokens.flatten(), flat, worth, place, apart.flatten(), cut)
        self._last, self._seen = x, self._seen + 1
        self.short.append(frame)
        if len(self.short) > self.limits[0]:
            after = self.short[1].x.view(x.shape)
            self.mid.append(_pruned(self.short.popleft(), after))
        if len(self.mid) > self.limits[1]:
            old = self.mid.popleft()
            self.long.append(old.only(rule.settle(old.worth, *old.place.unbind(1))))
        self._forget()

    def _forget(self) -> None:
        """Within the budget again."""
        over = self.size - self.budget
        worths = torch.cat([torch.zeros(0), *(f.worth for f in self.long)])
        if over > 0 and len(worths):
            gone, count = ops.select(worths, k=min(over, len(worths)), lowest=True)
            kept = torch.ones(len(worths), dtype=torch.bool)
            kept[gone[: int(count)].long()] = False
            masks = kept.split([len(f.tokens) for f in self.long])
            self.long = [f.only(m) for f, m in zip(self.long, masks, strict=True) if m.any()]
            over -= int(count)
        while over > 0:
            oldest = self.mid.popleft()
            kept = torch.arange(len(oldest.tokens)) >= over
            over -= len(kept) - int(kept.sum())
            if kept.any():
                self.mid.appendleft(oldest.only(kept))

    def open(self, question: Tensor) -> list[Frame]:
        """The frames that a question with features [n, D] needs, in order; the gate remembers."""
        newest = [f for f in self.short if len(f.tokens)]
        if not self.gate([rule.affinity(f.x, question) for f in newest]):
            return newest
        older = [f for f in (*self.long, *self.mid) if len(f.tokens)]
        likes = [rule.affinity(f.x, question) for f in older]
        many = rule.how_many(likes, self.top)
        best = sorted(range(len(older)), key=lambda i: (-likes[i], i))[:many]
        return [older[i] for i in sorted(best, key=lambda i: older[i].number)] + newest


def _apart(x: Tensor, other: Tensor) -> Tensor:
    """fp32 [H, W]: 1 less the best cosine in the 3x3 neighbourhood of another frame."""
    made: Tensor = 1 - ops.similarity(x[None], other[None], radius=1)[0]
    return made


def _pruned(frame: Frame, after: Tensor) -> Frame:
    """What goes to the mid-term tier, by the frame that follows [H, W, D]."""
    next_ = _apart(frame.x.view(after.shape), after).flatten()
    kept = _above(next_)
    if frame.number:
        kept |= _above(frame.apart)
    if not frame.cut:
        kept &= 1 - next_ <= SAME + WORTH * frame.worth
    return frame.only(kept)


def _above(distance: Tensor) -> Tensor:
    """bool [n]: above Otsu's threshold."""
    index, count = ops.select(distance, "otsu")
    made = torch.zeros(len(distance), dtype=torch.bool)
    made[index[: int(count)].long()] = True
    return made


class Video:
    """A memory, and an engine that answers from it."""

    def __init__(self, engine: Engine, memory: Memory) -> None:
        self.engine, self.memory = engine, memory

    def ask(self, question: Tensor, features: Tensor) -> tuple[Stream, Tensor, list[Frame]]:
        """A stream that has read what the question needs and the question, int64 [n] with features
        [n, D]; logits [n, V] of the question; and the frames.
        """
        frames = self.memory.open(features)
        stream = self.engine.open()
        try:
            stream.feed(torch.cat([torch.zeros(0, dtype=torch.int64), *(f.tokens for f in frames)]))
            return stream, reported(stream.feed(question, logits=True)), frames
        except BaseException:
            stream.close()
            raise


def save_mem(
    model: Model,
    probes: Tensor,
    *,
    short: int = SHORT,
    mid: int = MID,
    budget: int = BUDGET,
    top: int = TOP,
    gate: rule.Opens | None = None,
    answer: int = 512,
    **options: Any,
) -> Video:
    """A memory of `budget` tokens and an engine with room for them and an answer.

    probes [Q, D]: tokens of the fixed questions, D a multiple of 16. short, mid: frames of the two
    newer tiers. top: frames of older tiers that a question opens. gate: says whether it does, the
    recipe's unless given. answer: tokens of a question and its answer. Options as in
    `headrace.wrap`, whose errors it raises. ValueError or TypeError where a number is none from 1
    on (mid and top from 0).
    """
    counts("save_mem", short=short, budget=budget, answer=answer)
    counts("save_mem", least=0, mid=mid, top=top)
    memory = Memory(probes, short=short, mid=mid, budget=budget, top=top, gate=gate)
    window = Window(budget + answer)
    return Video(wrap(model, memory=window, positions=Absolute(), **options), memory)


def check(model: Model) -> list[Check]:
    """Tiers, gate and answers against plain rules, over a video with still and changing scenes."""
    return checks(model, save_mem)


PRESET = Preset(
    "save_mem",
    "Wu et al., arXiv 2605.07897; github.com/wuhang03/savemem",
    save_mem,
    check,
    kind="archive",
)
