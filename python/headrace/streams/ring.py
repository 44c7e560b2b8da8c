# SPDX-License-Identifier: Apache-2.0
"""A ring: frames in flight at different solver steps, all of them in one model call per tick.

A few-step denoiser needs its steps in order for a frame, but not frame by frame: while one frame is
at its last step, the next is at the one before. A ring keeps `depth` frames in flight, every tick
takes all of them one step on, and with as many slots as steps every tick takes a frame in and
gives one out (stream batch; StreamDiffusion, Kodaira et al., 2023). What comes out is what the
sequential schedule gives with the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import interrupts
from ..errors import bad_type, bad_value, unsupported
from ..memory import PagePool, Region
from . import ring_rows
from .positions import Absolute, Positions
from .ring_cache import Caches, bounded
from .ring_checks import at_least_one, cut_like, frame_like, mask_like, one_of, recall_like
from .ring_flying import GUIDANCE, Flying
from .ring_knobs import Knobs
from .ring_mixer import Mixer
from .ring_noise import Noise, seeded
from .ring_recall import Done, Recall
from .ring_solver import Flow, Solver


@dataclass(frozen=True)
class Finished:
    """A frame that is done: fp32 [P, C], its number, and the ticks of its first and last step."""

    number: int
    frame: Tensor
    began: int
    ended: int


class Ring:
    """A ring of frames [P, C] through one denoiser. To be used from one thread.

    denoiser: as `headrace.models.Denoiser`. levels: the noise of a frame at each of its steps,
    falling, in (0, 1]; the length is the number of steps. depth: frames in flight, the number of
    steps unless said.

    memory: what a frame sees of those before it, counted in frames, e.g. `Sink(3) + Window(3)`,
    itself among them; None for nothing. cache: "step" keeps one for every step, which a frame reads
    and joins as it passes; "clean" keeps one of finished frames, which join it as one more model
    row, at level 0, of the tick that follows. together: frames in flight see one another.
    positions: where the frames alive stand in time. span: positions a frame takes, for blocks of
    several. swap: see `headrace.streams.ring_kept.Kept.then`; for cache "step". recall: instead of
    a memory, a rule that names the finished frames that a frame sees; with one in flight. mixer:
    attention of another kind; with cache "clean", one in flight and no rule.

    guidance: "none", "self", "initialize" or "full", see `headrace.streams.ring_flying`. solver:
    Flow() or Diffusion(). noise: a function of (number of the frame, steps), or a seed. acts: for
    knobs that are to act otherwise than `headrace.streams.ring_knobs.ACTS` says. knobs: first
    values. exact: every sum through ops whose row bits do not depend on the other rows, so that a
    frame has the bits it has alone; False leaves them to torch. dtype: of cached keys and values.
    Raises TypeError, ValueError or NotImplementedError naming the argument.

    now: number of the next tick. calls: model calls so far. rows: model rows of the last tick.
    """

    def __init__(
        self,
        denoiser: Any,
        levels: Sequence[float],
        *,
        depth: int | None = None,
        memory: Region | None = None,
        cache: str = "step",
        together: bool = False,
        positions: Positions | None = None,
        span: int = 1,
        swap: float | None = None,
        recall: Recall | None = None,
        mixer: Mixer | None = None,
        guidance: str = "none",
        solver: Solver | None = None,
        noise: Noise | int = 0,
        acts: Mapping[str, str] | None = None,
        knobs: Mapping[str, Any] | None = None,
        exact: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not hasattr(getattr(denoiser, "config", None), "channels"):
            got = type(denoiser).__name__
            raise bad_type("Ring", "denoiser", "one such as headrace.models.Denoiser", got)
        c = denoiser.config
        one_of("guidance", guidance, GUIDANCE)
        one_of("cache", cache, ("step", "clean"))
        if together and memory is not None and cache == "step":
            hint = "frames of several steps see one another, so none has the cache of a step"
            raise unsupported("Ring", "together", "memory None or cache 'clean'", "step", hint)
        if swap is not None and (memory is None or cache != "step"):
            raise unsupported("Ring", "swap", "a memory with cache 'step'", f"cache {cache!r}")
        self.denoiser, self.exact, self.guidance = denoiser, exact, guidance
        self.shape: tuple[int, int] = (c.tokens, c.channels)
        self.device = denoiser.inv_freq.device
        self.knobs = Knobs(acts or {}, self.shape, c.condition, self.device)
        if "levels" in (knobs or {}):
            raise bad_value("Ring", "knobs", "other knobs", "levels", "it has its own argument")
        self.knobs.turn({**(knobs or {}), "levels": levels}, "Ring")
        self.solver = solver or Flow()
        self.depth = at_least_one("depth", len(self.knobs["levels"]) if depth is None else depth)
        self.together, self.mixer = together, mixer
        if recall is not None:
            recall_like("recall", memory, None, self.depth, together, guidance)
        if mixer is not None:
            recall_like("mixer", cache, "clean", self.depth, together, guidance)
        self._cache = "clean" if recall is not None else None if memory is None else cache
        self._branches = ("condition", "negative")[: 1 + (guidance in ("initialize", "full"))]
        self._noise = seeded(noise, *self.shape) if isinstance(noise, int) else noise
        folds = mixer is not None and mixer.folding
        plan = None if memory is None else bounded(memory, folds)
        caches = len(self._branches) * (len(self.knobs["levels"]) if cache == "step" else 1)
        rows = 2 * self.depth + 1  # a tick may have all in flight finished and all written
        self._caches = Caches(
            c,
            0 if plan is None else caches * (plan.pinned + plan.reach),
            len(self._branches) * rows,
            plan,
            positions or Absolute(),
            denoiser.inv_freq.double(),
            at_least_one("span", span),
            swap,
            dtype,
            recall,
            mixer,
        )
        if mixer is not None:
            mixer.open(self._caches, denoiser)
        self.now = self.calls = self.rows = 0
        self._flying: tuple[Flying, ...] = ()
        self._unwritten: tuple[Flying, ...] = ()
        self._number = self._jumped = 0

    @property
    def pool(self) -> PagePool:
        """The pages of all caches."""
        return self._caches.pool

    @property
    def most_pages(self) -> int:
        """Pages that frames hold between two ticks when all caches are full."""
        return self._caches.most_pages

    @property
    def moved_bytes(self) -> int:
        """Keys and values copied after they were written: those of `recall`, out and back."""
        return 0 if self._caches.shelf is None else self._caches.shelf.moved_bytes

    @property
    def flying(self) -> tuple[Flying, ...]:
        """Frames in flight, the oldest first."""
        return self._flying

    @property
    def ready(self) -> bool:
        """Whether the next tick has a slot for a frame."""
        return len(self._flying) < self.depth

    def set(self, **values: Any) -> dict[str, int]:
        """Turns knobs, all or none; for each, the tick whose result first shows it.

        For a knob that acts on the frame, that is the end of a frame that comes with the next tick.
        """
        if "levels" in values:
            self._check_steps(self.knobs.checked(values, "Ring.set")["levels"], "Ring.set")
        self.knobs.turn(values, "Ring.set")
        steps = len(self.knobs["levels"])
        return {n: self.now + (steps - 1 if self.knobs.acts[n] == "frame" else 0) for n in values}

    def tick(
        self,
        frame: Tensor | None = None,
        *,
        given: Tensor | None = None,
        cut: int | None = None,
        keep: int = 0,
        label: Any = None,
        **own: Any,
    ) -> list[Finished]:
        """Takes a frame [P, C] in, or none, and every frame in flight one step on: one model call.

        Gives those that are done, the oldest first. given bool [P]: tokens of the frame that are
        clean and stay. own: values of knobs that act on the frame, for this one. cut: the frame
        begins a shot, so many positions in time further on; the newest `keep` frames of the last
        shot in the window join the pinned ones, the others are let go. label: for `recall`.
        ValueError when there is no slot (see `ready`). All or nothing: after any error the ring is
        as it was.
        """
        flying, jumped = list(self._flying), self._jumped
        if frame is not None:
            if cut is not None:
                cut_like(cut, keep, self._cache, self._caches.shelf is not None, len(flying))
                jumped += cut
            flying.append(self._admit(frame, given, own, jumped, label))
        elif own or given is not None or cut is not None or label is not None:
            raise bad_value("Ring.tick", "frame", "a frame [P, C] with what belongs to it", None)
        rows = ring_rows.of_tick(self, flying)
        moved: list[Flying] = []
        call = None
        try:
            if rows:
                with interrupts.deferred():
                    reads = [row for _, _, row in rows]
                    call = self._caches.begin(reads, None if cut is None else keep)
                with torch.inference_mode():
                    moved = ring_rows.stepped(self, flying, rows, call.attend)
            finished = [Finished(f.number, f.x.clone(), f.began, self.now) for f in moved if f.done]
            with interrupts.deferred():
                if call is not None:
                    call.commit()
                    call = None
                self._unwritten = tuple(f for f in moved if f.done and self._cache == "clean")
                if self._caches.shelf is not None:
                    done = {f.number: Done(f.x, f.label) for f in self._unwritten}
                    self._caches.shelf.done.update(done)
                self._flying = tuple(f for f in moved if not f.done)
                self._number += frame is not None
                self._jumped, self.rows, self.now = jumped, len(rows), self.now + 1
                self.calls += bool(rows)
        except BaseException:
            with interrupts.deferred():
                if call is not None:
                    call.undo()
            raise
        return finished

    def drain(self) -> list[Finished]:
        """Ticks without new frames until none is in flight; every one of them is finished."""
        done: list[Finished] = []
        while self._flying:
            done += self.tick()
        return done

    def close(self) -> None:
        """Gives the memory of the caches back."""
        self._flying = self._unwritten = ()
        self._caches.kept = {}
        if self._caches.shelf is not None:
            self._caches.shelf.clear()
        self.pool.close()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _admit(
        self, frame: Tensor, given: Tensor | None, own: Mapping[str, Any], jumped: int, label: Any
    ) -> Flying:
        frame_like(frame, self.shape)
        mask_like(given, self.shape[0])
        if not self.ready:
            got = f"all of {self.depth} taken"
            raise bad_value("Ring.tick", "frame", "a free slot", got, "see Ring.ready")
        taken = self.knobs.of_frame(own)
        steps = len(taken["levels"])
        self._check_steps(taken["levels"], "Ring.tick")
        noise = self._noise(self._number, steps)
        if tuple(noise.shape) != (steps, *self.shape):
            raise bad_value("Ring", "noise", [steps, *self.shape], list(noise.shape))
        if given is not None:
            given = given.to(self.device)
        at = self._number + jumped
        frame, noise = (t.detach().float().to(self.device) for t in (frame, noise))
        made = Flying(self._number, at, frame, frame, frame, noise, taken, self.now, given=given)
        shelf = self._caches.shelf
        if shelf is not None:
            made = replace(made, sees=shelf.context(self._number, label), label=label)
        return made.mixed(self.solver)

    def _check_steps(self, levels: Sequence[float], op: str) -> None:
        steps = len(self.knobs["levels"])
        if self._cache == "step" and len(levels) != steps:
            hint = "every step has a cache of its own"
            raise bad_value(op, "levels", f"{steps} levels", len(levels), hint)
