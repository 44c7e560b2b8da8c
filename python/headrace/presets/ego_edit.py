# SPDX-License-Identifier: Apache-2.0
"""EgoEdit: live video edited chunk by chunk, at a cost that does not grow.

EgoEdit (2025); known here from its abstract alone: a streaming editor of egocentric video,
distilled by self-forcing from a bidirectional one, interactive on a single GPU.

Chosen here: four steps from noise; chunks of 3 latent frames, each conditioned token by token on
the chunk of the source and on the instruction; a cache of the 4 newest edited chunks, at their
ranks, and none pinned, for what was edited first need not be in sight of a head that turns.

Oracle: a masked forward over all chunks, without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Window
from ..models import Denoiser
from ..streams import InCache, Ring
from .given import counts
from .proof import Check, Preset
from .ring_loops import Loop, clip, equality, small_denoiser
from .rolling_forcing import warped

__all__ = ["EgoEdit", "ego_edit", "told"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


def loop(levels: Sequence[float] = LEVELS, window: int = 4, chunk: int = 3) -> Loop:
    """One chunk in flight behind the newest `window`."""
    return Loop(levels, 1, memory=Window(window + 1), positions=InCache(), span=chunk)


class EgoEdit:
    """An editor: `edit(source)` gives the edited chunk. ring: to turn other knobs."""

    def __init__(self, ring: Ring, instruction: Tensor) -> None:
        self.ring, self.instruction = ring, instruction

    def edit(self, source: Tensor) -> Tensor:
        """The edited chunk [P, C] of a chunk [P, C] of the source."""
        self.ring.tick(source, condition=told(source, self.instruction))
        return self.ring.drain()[0].frame

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()


def told(source: Tensor, instruction: Tensor) -> Tensor:
    """What the tokens of a chunk are conditioned on, [P, C + I]."""
    return torch.cat([source, instruction.expand(len(source), -1)], 1)


def ego_edit(
    denoiser: Any,
    instruction: Tensor,
    *,
    levels: Sequence[float] = LEVELS,
    window: int = 4,
    chunk: int = 3,
    **options: Any,
) -> EgoEdit:
    """The editor, for a denoiser that is conditioned on a token of the source and an instruction
    [I]; `instruction` may be changed between two chunks.

    levels: of noise, one for every step, falling. window: edited chunks that are seen. chunk:
    latent frames of one, positions in time that it takes. Options as in `headrace.Ring`, whose
    errors it raises.
    """
    counts("ego_edit", least=0, window=window)
    return EgoEdit(loop(levels, window, chunk).ring(denoiser, **options), instruction)


def oracle(denoiser: Any, source: Tensor, instructions: Sequence[Tensor], **options: Any) -> Tensor:
    """Edited chunks [N, P, C] of chunks of the source, each with its instruction."""

    def own(number: int, step: int) -> dict[str, Any]:
        return {"condition": told(source[number], instructions[number])}

    return loop(**options).oracle(denoiser, source, own=own)


def recompute(
    denoiser: Any, source: Tensor, instructions: Sequence[Tensor], **options: Any
) -> Tensor:
    """The same with what is seen encoded anew."""

    def own(number: int, step: int) -> dict[str, Any]:
        return {"condition": told(source[number], instructions[number])}

    return loop(**options).recompute(denoiser, source, own=own)


def check(denoiser: Any, *, chunks: int = 12) -> list[Check]:
    """Equality with an instruction that changes on the way; work and pages of every chunk."""
    source = clip(denoiser, chunks)
    one, two = torch.randn(2, 4, generator=torch.Generator().manual_seed(4))
    said = [one] * 5 + [two] * (chunks - 5)
    want = oracle(denoiser, source, said)

    def opened(**options: Any) -> Ring:
        return ego_edit(denoiser, one, **options).ring

    def own(number: int) -> dict[str, Any]:
        return {"condition": told(source[number], said[number])}

    checks = equality(opened, source, want, own=own)
    editor, held = ego_edit(denoiser, one), set()
    for number, chunk in enumerate(source):
        before = editor.ring.calls
        editor.instruction = said[number]
        differ = float((editor.edit(chunk) - want[number]).abs().max())
        if number > 5:
            held.add((editor.ring.calls - before, editor.ring.pool.live_pages))
    editor.close()
    checks.append(Check("calls and pages of a chunk: values they took", len(held), 1))
    checks.append(Check("the last chunk, by edit(): max |value - oracle|", differ, 1e-3))
    return checks


def small_editor() -> Denoiser:
    """A random denoiser of frames [16, 4] that is conditioned on 4 + 4 numbers."""
    return small_denoiser(condition=8)


PRESET = Preset(
    "ego_edit",
    "EgoEdit, 2025, abstract",
    ego_edit,
    check,
    small_editor,
    oracle,
    recompute,
    kind="ring",
)
