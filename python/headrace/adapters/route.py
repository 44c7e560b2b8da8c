# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import bad_type, bad_value
from ..kernels.lora.route import route
from ..kernels.lora.spec import MAX_ADAPTERS


class LoraRoute:
    """Which adapters the rows of a step use: made once, shared by every site of the model.

    `slots` int32 [tokens, width], `weights` fp32 [tokens, width] and, on a GPU, `order` int32
    [tokens] and `tiles` int32 [tokens, 2] keep their place in memory, so that a captured CUDA graph
    replays over whatever `set` writes; `set` waits for no device. `idle` says that no row uses any
    adapter, in which case a `LoraSite` does nothing at all; None where only the device knows.

    tokens: rows of the largest step. width: adapters a row, up to 4. tiled: whether to work out
    order and tiles (None: on a GPU).
    """

    def __init__(
        self,
        tokens: int,
        width: int = 1,
        device: torch.device | str = "cpu",
        tiled: bool | None = None,
    ) -> None:
        if tokens < 0:
            raise bad_value("LoraRoute", "tokens", "0 or more", tokens)
        if not 1 <= width <= MAX_ADAPTERS:
            raise bad_value("LoraRoute", "width", f"1 to {MAX_ADAPTERS}", width)
        self.slots = torch.full((tokens, width), -1, dtype=torch.int32, device=device)
        self.weights = torch.ones(tokens, width, device=device)
        self.order: Tensor | None = None
        self.tiles: Tensor | None = None
        self.idle: bool | None = True
        self.rows = 0  # of the step in hand
        if self.slots.is_cuda if tiled is None else tiled:
            self.order = torch.arange(tokens, dtype=torch.int32, device=device)
            self.tiles = torch.zeros(tokens, 2, dtype=torch.int32, device=device)

    @property
    def tokens(self) -> int:
        """Rows of the largest step."""
        return self.slots.shape[0]

    @property
    def width(self) -> int:
        """Adapters a row."""
        return self.slots.shape[1]

    def set(
        self,
        slots: Tensor,
        *,
        weights: Tensor | None = None,
        positions: Tensor | None = None,
        begins: Tensor | None = None,
        experts: Tensor | None = None,
        table: Tensor | None = None,
        idle: bool | None = None,
    ) -> LoraRoute:
        """The rows of the next step: slots int32 [T] or [T, width], -1 none; rows from T on none.

        weights fp32 like slots: of each adapter of a row (None: 1). positions int64 [T] and begins
        int64 like slots: an adapter is at work from the token at which it begins (activated LoRA),
        rows before that keep the bits of the base. experts int32 [T] and table int32 [adapters,
        experts]: slots then name adapters, and table[adapter, expert] the slot of the pair, -1
        where the adapter leaves the expert as it is; a row is one token at one of its experts.
        idle: what the caller knows of whether no row uses any; worked out on the CPU, unknown on a
        GPU. Raises TypeError or ValueError naming the argument; the route then stays as it was.

        Source: Greenewald et al., 2025 (activated LoRA).
        """
        mine = self._rows("slots", slots, torch.int32)
        rows = len(mine)
        if (positions is None) != (begins is None):
            given, missing = (
                ("begins", "positions") if positions is None else ("positions", "begins")
            )
            raise bad_value("LoraRoute", missing, f"a tensor beside {given}", "None")
        if (experts is None) != (table is None):
            given, missing = ("table", "experts") if experts is None else ("experts", "table")
            raise bad_value("LoraRoute", missing, f"a tensor beside {given}", "None")
        if experts is not None and table is not None:
            mine = self._pairs(mine, experts, table)
        if positions is not None and begins is not None:
            self._like("positions", positions, torch.int64, (rows,))
            begin = self._rows("begins", begins, torch.int64, rows)
            mine = torch.where(positions[:, None] < begin, -1, mine)
        by = None if weights is None else self._rows("weights", weights, torch.float32, rows)
        self.slots[:rows] = mine
        self.slots[rows:] = -1
        self.weights.fill_(1.0)
        if by is not None:
            self.weights[:rows] = by
        if self.order is not None and self.tiles is not None:
            order, tiles = route(self.slots)
            self.order.copy_(order)
            self.tiles.copy_(tiles)
        self.rows, self.idle = rows, idle
        if idle is None and not self.slots.is_cuda:
            self.idle = not bool((mine >= 0).any())
        return self

    def _pairs(self, adapters: Tensor, experts: Tensor, table: Tensor) -> Tensor:
        """Slots of (adapter, expert); -1 for what is out of the table, like none."""
        self._like("experts", experts, torch.int32, (len(adapters),))
        self._like("table", table, torch.int32, (-1, -1))
        if 0 in table.shape:
            return torch.full_like(adapters, -1)
        if not table.is_cuda:
            self._within("slots", adapters, -1, table.shape[0])
            self._within("experts", experts, 0, table.shape[1])
        expert = experts[:, None].long().expand_as(adapters)
        inside = (adapters >= 0) & (adapters < table.shape[0])
        inside &= (expert >= 0) & (expert < table.shape[1])
        row = torch.where(inside, adapters, 0).long()
        found = table[row, torch.where(inside, expert, 0)]
        return torch.where(inside, found, -1)

    def _rows(self, name: str, x: Tensor, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        """x as [rows, width]."""
        self._like(name, x, dtype, None)
        wide = x[:, None] if x.dim() == 1 and self.width == 1 else x
        if wide.dim() != 2 or wide.shape[1] != self.width or rows not in (None, len(wide)):
            many = "T" if rows is None else rows
            got = f"shape {tuple(x.shape)}"
            raise bad_value("LoraRoute", name, f"axes [{many}, {self.width}]", got)
        if len(wide) > self.tokens:
            raise bad_value("LoraRoute", name, f"up to {self.tokens} rows", len(wide))
        return wide

    def _like(
        self, name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None
    ) -> None:
        wanted = str(dtype).removeprefix("torch.")
        if not isinstance(x, Tensor):
            raise bad_type("LoraRoute", name, f"a tensor of {wanted}", type(x).__name__)
        if x.dtype != dtype:
            raise bad_type("LoraRoute", name, wanted, str(x.dtype).removeprefix("torch."))
        if x.device != self.slots.device:
            raise bad_value("LoraRoute", name, f"a tensor on {self.slots.device}", x.device)
        if shape is None:
            return
        fits = x.dim() == len(shape) and all(
            n in (-1, m) for n, m in zip(shape, x.shape, strict=True)
        )
        if not fits:
            axes = ", ".join("any" if n < 0 else str(n) for n in shape)
            raise bad_value("LoraRoute", name, f"axes [{axes}]", f"shape {tuple(x.shape)}")

    @staticmethod
    def _within(name: str, x: Tensor, lo: int, end: int) -> None:
        outside = x[(x < lo) | (x >= end)]
        if outside.numel():
            raise bad_value(
                "LoraRoute", name, f"values in [{lo}, {end})", int(outside.flatten()[0])
            )


def invocation_start(tokens: Sequence[int] | Tensor, invocation: Sequence[int]) -> int | None:
    """Where an activated LoRA begins: the first token of the last place in `tokens` (a prompt, 1-D)
    at which its invocation sequence stands; None when it stands nowhere, and the base speaks.

    Raises ValueError for an empty invocation sequence. Source: Greenewald et al., 2025.
    """
    wanted = [int(t) for t in invocation]
    if not wanted:
        raise bad_value("invocation_start", "invocation", "one token or more", "none")
    text = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
    for at in range(len(text) - len(wanted), -1, -1):
        if text[at : at + len(wanted)] == wanted:
            return at
    return None
