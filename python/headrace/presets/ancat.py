# SPDX-License-Identifier: Apache-2.0
"""ANCAT: each frame chooses how far it looks ahead, and only those that look wait.

Strimel et al., Lookahead When It Matters: Adaptive Non-causal Transformers for Streaming Neural
Transducers (ICML 2023), arXiv 2305.04159; abstract and introduction were read. An encoder of
speech decides frame by frame whether future frames are worth waiting for, and how many, so that it
is causal wherever that is enough.

Chosen here: a frame chooses 0, 2 or 8 frames from what it is itself, by the largest of three
products; it is then due at its own time plus that, and sees of the frames from `window` before it
to its look-ahead after it those that are due no later than itself, in every layer. So nobody waits
for a frame that looks further, and one that does sees all that have come out meanwhile, and those
that come out with it. What is still waiting when the input ends comes out at once. A frame's keys
and values go to the slot of its number in a ring of pages, whenever it is done; attention has no
convolutions beside it.

Oracle: the whole encoder under that mask, dense. Recompute is the whole with every look-ahead at
its largest, the encoder that never chooses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import bad_value
from ..memory import UNLIMITED, PagePool
from ..memory.view import BEFORE, Row, View
from ..models import Conformer, ConformerConfig
from .encoding import BOUND, dense, gap, whole
from .given import counts
from .proof import Check, Preset

__all__ = ["Ancat", "Chooser", "ancat", "due"]

CHOICES, WINDOW = (0, 2, 8), 40


class Chooser(nn.Module):
    """An encoder, and what chooses: [choices, inputs]. Random weights from `seed`."""

    def __init__(self, choices: int = len(CHOICES), *, seed: int = 0) -> None:
        super().__init__()
        config = ConformerConfig(stages=0, taps=0, halves=False)
        self.encoder = Conformer(config, seed=seed)
        made = torch.Generator().manual_seed(seed + 1)
        self.choose = nn.Parameter(torch.randn(choices, config.inputs, generator=made))


class Ancat:
    """`feed(frames)` gives numbers and encodings of the frames that are done; see `ancat`."""

    def __init__(self, model: Chooser, choices: Sequence[int], window: int, page_size: int) -> None:
        self.model, self.choices, self.window = model, tuple(choices), window
        c = model.encoder.config
        pages = 1 + -(-(window + max(choices) + 1) // page_size)
        self.pool = PagePool(c.layers, pages, c.heads, c.head_dim, page_size)
        self._pages = self.pool.take(pages)
        self.count = 0
        """Frames that have come in."""
        self._waiting: dict[int, tuple[int, Tensor]] = {}
        self._done: set[int] = set()

    @torch.inference_mode()
    def feed(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [m] and fp32 [m, width] for frames fp32 [n, inputs], any number."""
        chosen = ops.linear(frames, self.model.choose).argmax(1).tolist()
        numbers, out = [], [torch.zeros(0, self.model.encoder.config.width)]
        for frame, choice in zip(frames, chosen, strict=True):
            self._waiting[self.count] = (self.count + self.choices[choice], frame)
            due = [n for n, (when, _) in self._waiting.items() if when == self.count]
            self.count += 1
            if due:
                out.append(self._encode(due))
                numbers += due
        return torch.tensor(numbers, dtype=torch.int64), torch.cat(out)

    @torch.inference_mode()
    def finish(self) -> tuple[Tensor, Tensor]:
        """Those that still wait for what does not come any more."""
        due = sorted(self._waiting)
        none = torch.zeros(0, self.model.encoder.config.width)
        return torch.tensor(due, dtype=torch.int64), self._encode(due) if due else none

    def close(self) -> None:
        """Gives the memory back."""
        self.pool.close()

    def _encode(self, due: list[int]) -> Tensor:
        frames = torch.stack([self._waiting.pop(number)[1] for number in due])
        self._done.update(due)
        oldest = self.count - 1 - max(self.choices) - self.window
        self._done -= {number for number in self._done if number < oldest}
        size, encoder = self.pool.page_size, self.model.encoder
        places = [(self._page(n), n % size, n % size) for n in due]
        view = View.of([[place] for place in places], [*map(self._sees, due)], due, frames.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pages, _ = self.pool.layer(layer)
            ops.append(k, v, *pages, view.where, inv_freq=encoder.inv_freq)
            seen = (*view.lists(layer), view.q_indptr, view.q_pos)
            o, _ = ops.paged_attention(q, *pages, *seen, inv_freq=encoder.inv_freq)
            return o

        made: Tensor = encoder(frames, attend, _none, _none, ops.linear)
        return made

    def _page(self, number: int) -> int:
        return self._pages[number // self.pool.page_size % len(self._pages)]

    def _sees(self, number: int) -> list[Row]:
        """Rows of a view: runs of frames that are done, in the window and its look-ahead."""
        rows: list[Row] = []
        size, run = self.pool.page_size, 0
        for at in range(max(0, number - self.window), self.count):
            run = run + 1 if at in self._done else 0
            if run and ((at + 1) % size == 0 or at + 1 == self.count or at + 1 not in self._done):
                first = at - run + 1
                row = (self._page(at), first % size, run, at - at % size)
                rows.append((*row, UNLIMITED, BEFORE, UNLIMITED))
                run = 0
        return rows


def _none(*_: object) -> Tensor:
    raise AssertionError("an encoder without convolutions")


def ancat(
    model: Chooser, *, choices: Sequence[int] = CHOICES, window: int = WINDOW, page_size: int = 16
) -> Ancat:
    """The system: a stream of frames of speech.

    choices: look-aheads in frames, one for each row of `model.choose`. window: frames before one
    that it sees. page_size: of the ring of pages. ValueError where a choice is negative or their
    number is another, or where window or page_size is no such number.
    """
    counts("ancat", least=0, window=window)
    counts("ancat", page_size=page_size)
    if len(choices) != len(model.choose) or min(choices) < 0:
        raise bad_value("ancat", "choices", f"{len(model.choose)} from 0 on", tuple(choices))
    return Ancat(model, choices, window, page_size)


def due(model: Chooser, frames: Tensor, choices: Sequence[int] = (0, 2, 8)) -> Tensor:
    """int64 [T]: when every frame of a whole file comes out; T for after its end."""
    chosen = (frames.double() @ model.choose.detach().double().T).argmax(1)
    when = torch.arange(len(frames)) + torch.tensor(choices)[chosen]
    return torch.where(when < len(frames), when, len(frames))


def oracle(
    model: Chooser, frames: Tensor, *, choices: Sequence[int] = (0, 2, 8), window: int = 40
) -> Tensor:
    """Encodings fp64 [T, width] of a whole file [T, inputs]."""
    when, at = due(model, frames, choices), torch.arange(len(frames))
    key = at[None]
    seen = (key >= at[:, None] - window) & (key <= when[:, None]) & (when[None] <= when[:, None])
    return whole(model.encoder, frames, lambda m, count: dense(m, seen))


def recompute(
    model: Chooser, frames: Tensor, *, choices: Sequence[int] = (0, 2, 8), window: int = 40
) -> Tensor:
    """The encoder that never chooses: every frame looks ahead as far as any."""
    at = torch.arange(len(frames))
    age = at[:, None] - at[None]
    seen = (age <= window) & (age >= -max(choices))
    return whole(model.encoder, frames, lambda m, count: dense(m, seen))


def check(model: Chooser) -> list[Check]:
    """Equality with the whole encoder; every frame late by what it chose, and by nothing else."""
    made, checks = torch.Generator().manual_seed(18), []
    frames = torch.randn(150, model.encoder.config.inputs, generator=made)
    want, when = oracle(model, frames), due(model, frames)
    for size in (1, 7):
        system = ancat(model)
        got, late = torch.zeros(want.shape), torch.zeros(len(frames), dtype=torch.int64)
        for part in frames.split(size):
            numbers, encoded = system.feed(part)
            got[numbers], late[numbers] = encoded, system.count - 1 - numbers
        numbers, encoded = system.finish()
        got[numbers] = encoded
        name = f"{size} at a time"
        off = gap(got, want)
        checks.append(Check(f"{name}: max |value - oracle| over max |oracle|", off, BOUND))
        stray = set(numbers.tolist()) ^ set((when == len(frames)).nonzero()[:, 0].tolist())
        checks.append(Check(f"{name}: frames that wait for the end, or do not", len(stray), 0))
        if size == 1:
            ended = when < len(frames)
            chosen = when - torch.arange(len(frames))
            wrong = int((late != chosen)[ended].sum())
            checks.append(Check("frames late by other than what they chose", wrong, 0))
            never = len(set(CHOICES) - set(chosen[ended].tolist()))
            checks.append(Check("choices that no frame made", never, 0))
            mean = float(late[ended].double().mean())
            claim = "frames late on average, of the 8 that the encoder that never chooses is"
            checks.append(Check(claim, mean / 8, 0.5))
        system.close()
    return checks


PRESET = Preset(
    "ancat",
    "Strimel et al., ICML 2023; arXiv 2305.04159",
    ancat,
    check,
    Chooser,
    oracle,
    recompute,
    kind="net",
)
