# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import bad_value
from ..ops.lora_rows import lora_rows
from .route import LoraRoute


class LoraSite:
    """`lora_rows` of one projection with everything but the rows of a step in place.

    Takes what `lora_rows` takes of a pool.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        rows: Tensor,
        row_indptr: Tensor,
        scale: Tensor,
        **options: Tensor | None,
    ) -> None:
        self._pool = (a, b, rows, row_indptr)
        self._scale = scale
        self._options = options

    def __call__(self, x: Tensor, y: Tensor, route: LoraRoute) -> Tensor:
        """Adds the updates of x [T, K] to y [T, N], in place, and returns it. T is the number of
        rows that the route was set for, or more, up to those it has room for, which use none.

        Nothing happens, and nothing is looked at, when the route is idle. Errors as `lora_rows`.
        """
        if route.idle:
            return y
        tokens, slots = x.shape[0], route.slots
        more: dict[str, Any] = self._options
        room, width = slots.shape
        if not route.rows <= tokens <= room:
            wanted = f"{route.rows} to {room} rows, as the route has"
            raise bad_value("lora_rows", "x", wanted, tokens)
        if tokens < room:  # rows that use none come last
            slots = slots[:tokens]
        if width > 1:
            more = more | {"weights": route.weights[:tokens]}
        if route.order is not None and route.tiles is not None:
            more = more | {"order": route.order[:tokens], "tiles": route.tiles[:tokens]}
        return lora_rows(x, *self._pool, slots, self._scale, y, **more)
