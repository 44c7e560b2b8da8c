# SPDX-License-Identifier: Apache-2.0
"""What else attention in a ring may be than softmax over all that is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .ring_cache import Caches
    from .ring_tick import Tick


class Mixer:
    """Takes the place of attention in a ring that caches finished frames, one in flight.

    page_size: slots of a page, a multiple of 16; None for the usual. unpaged: layers that have no
    pages. folding: it serves a memory with a Fold. What it carries from call to call it changes in
    `commit` alone, so that a call that fails leaves no trace.
    """

    page_size: int | None = None
    unpaged: frozenset[int] = frozenset()
    folding = False

    def open(self, caches: Caches, denoiser: Any) -> None:
        """Once, before the first call."""

    def begin(self, rows: int) -> None:
        """Before a model call of so many rows."""

    def attend(
        self, tick: Tick, layer: int, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor
    ) -> Tensor:
        """[T, Hq, D] for q [T, Hq, D], k and v [T, Hkv, D] of all rows. `tick.write`, `tick.seen`
        and `tick.read` do what a ring does without a mixer."""
        raise NotImplementedError

    def commit(self) -> None:
        """The call was well."""
