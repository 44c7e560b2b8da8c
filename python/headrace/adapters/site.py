# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, get_num_threads

from .. import _C, audit, backends
from ..errors import bad_value
from ..kernels.lora.spec import LORA_ROWS
from ..ops.lora_rows import lora_rows, prepared
from .route import LoraRoute


class LoraSite:
    """`lora_rows` of one projection with everything but the rows of a step in place.

    Takes what `lora_rows` takes of a pool; the tensors may change in what they hold, not in where
    they lie. The first call with rows of a dtype checks everything, as the op does; later ones on
    the CPU go to the kernel without the dispatcher, which costs more than the kernel where a step
    has few rows. Whatever is not the plain case (a GPU, torch.compile, a backend by name, debug
    mode, rows that do not fit) goes through the op.
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
        self._calls: dict[torch.dtype, tuple[Any, int, int, int]] = {}

    def __call__(self, x: Tensor, y: Tensor, route: LoraRoute) -> Tensor:
        """Adds the updates of x [T, K] to y [T, N], in place, and returns it. T is the number of
        rows that the route was set for, or more, up to those it has room for, which use none.

        Nothing happens, and nothing is looked at, when the route is idle. Errors as `lora_rows`.
        """
        if route.idle:
            return y
        known = self._calls.get(x.dtype)
        if known is not None and self._plain(x, y, route, known):
            call, width = known[0], known[1]
            call.run(
                x.data_ptr(),
                y.data_ptr(),
                route.slots.data_ptr(),
                route.weights.data_ptr() if width > 1 else 0,
                x.shape[0],
                x.stride(0),
                y.stride(0),
                get_num_threads(),
            )
            return y
        return self._checked(x, y, route)

    def _plain(
        self, x: Tensor, y: Tensor, route: LoraRoute, known: tuple[Any, int, int, int]
    ) -> bool:
        _, width, depth, outputs = known
        tokens = x.shape[0]
        return (
            type(x) is Tensor
            and type(y) is Tensor
            and y.dtype is x.dtype
            and x.shape == (tokens, depth)
            and y.shape == (tokens, outputs)
            and route.rows <= tokens <= route.tokens
            and route.width == width
            and x.stride(1) == 1
            and y.stride(1) == 1
            and x.is_cpu
            and y.is_cpu
            and not (x.requires_grad or y.requires_grad)
            and backends.current() in ("auto", "cpu")
            and not audit.on
            and not torch.compiler.is_compiling()
        )

    def _checked(self, x: Tensor, y: Tensor, route: LoraRoute) -> Tensor:
        tokens = x.shape[0]
        if not route.rows <= tokens <= route.tokens:
            wanted = f"{route.rows} to {route.tokens} rows, as the route has"
            raise bad_value("lora_rows", "x", wanted, tokens)
        mine: dict[str, Any] = dict(self._options)
        if route.width > 1:
            mine["weights"] = route.weights[:tokens]
        if route.order is not None and route.tiles is not None:  # rows that use none come last
            mine["order"], mine["tiles"] = route.order[:tokens], route.tiles[:tokens]
        args: Any = (x, *self._pool, route.slots[:tokens], self._scale, y)
        lora_rows(*args, **mine)
        if type(x) is Tensor and x.is_cpu and not torch.compiler.is_compiling():
            bound = LORA_ROWS.bind(*args, **mine)
            axes = LORA_ROWS.check(bound)
            call = _C.LoraCall(*prepared(bound, axes))
            self._calls[x.dtype] = (call, axes["W"], axes["K"], axes["N"])
        return y
