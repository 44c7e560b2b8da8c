# SPDX-License-Identifier: Apache-2.0
"""Calls of which one value names a page, slot, row, axis or offset that does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from headrace import ops
from tests.ops import adapters, evictions, samples, sequences, survivors, views
from tests.ops.samples import Call, StreamShape

STREAMS = [StreamShape(40, 3, 20, 4), StreamShape(9, 0), StreamShape(30, 2, 20, 4)]


def paged_attention() -> Call:
    return views.three_axes(1, samples.paged(1, STREAMS, dim=32, page_size=16))


def append() -> Call:
    return views.three_offsets(1, samples.append(1, 20, dim=32, page_size=16), "turns")


def append_absorb() -> Call:
    return evictions.append_absorb(1, axes="turns", counted=True)


def lora_rows(several: int = 1, ranked: bool = True) -> Call:
    """Every slot is used. Nothing in the pool is NaN, for a list that is wrong may lead there."""
    call = adapters.pool(1, 9, 32, (16, 20), mix="distinct", several=several, epilogue="bias gain")
    if several > 1:
        call[1]["epilogue"][:, 1] = -1
    if not ranked:
        del call[1]["ranks"]
    return finite(call)


def finite(call: Call) -> Call:
    args, kwargs = call
    return tuple(x.nan_to_num() if x.is_floating_point() else x for x in args), kwargs


CALLS: dict[str, Callable[[], Call]] = {
    "paged_attention": paged_attention,
    "paged_attention along one axis": lambda: samples.paged(1, STREAMS, dim=32, page_size=16),
    "append": append,
    "append_absorb": append_absorb,
    "linear_attention": lambda: sequences.linear_attention(1, decay=True),
    "gated_delta_rule": lambda: sequences.gated_delta_rule(1),
    "frame_delta_rule": lambda: sequences.frame_delta_rule(1),
    "causal_conv": lambda: sequences.causal_conv(1),
    "hstu_attention": lambda: sequences.hstu_attention(1, (9, 0, 20), (3, 0, 5), targets=2),
    "hstu_attention of a cache": lambda: sequences.hstu_attention(2, (9, 20), (2, 3), kept=6),
    "lora": lambda: finite(adapters.stack(1, 9, 32, mix="distinct")),
    "lora_rows": lora_rows,
    "lora_rows of whole slots": lambda: lora_rows(ranked=False),
    "lora_rows of two adapters": lambda: lora_rows(several=2),
    "compact": lambda: finite(survivors.compact(1, masked=False)),
    "compact_inplace": lambda: survivors.compact_inplace(1),
    "scatter_back": lambda: survivors.scatter_back(1),
}
"""Valid calls; what is said after the name of the op tells those of one op apart."""

Place = tuple[int, ...]
Value = int | Callable[[dict[str, Any]], int] | None
Case = tuple[str, str, Place, Value]


def pages(given: dict[str, Any]) -> int:
    """The first page that is none."""
    return len(given["k_pages"])


def states(given: dict[str, Any]) -> int:
    """The first row that no state has."""
    return len(given["state"])


def adapter(given: dict[str, Any]) -> int:
    """The first slot that is none."""
    return len(given["scale"])


def rank(given: dict[str, Any]) -> int:
    """A row more than the widest slot has."""
    return 1 + (given["a"].shape[1] if "rows" not in given else len(given["rows"]))


def pooled(given: dict[str, Any]) -> int:
    """The first rank row that is none."""
    return len(given["a"])


def survivor(given: dict[str, Any]) -> int:
    """The first row that is none."""
    return given["y" if "y" in given else "x"].shape[2]


def indices(name: str) -> list[Case]:
    """Before the rows, behind them, twice the same."""
    return [
        (name, "index", (0, 1, 0), -1),
        (name, "index", (1, 2, 4), survivor),
        (name, "index", (1, 0, 3), lambda given: int(given["index"][1, 0, 2])),
    ]


def offsets(name: str, arg: str) -> list[Case]:
    """They begin late, end late, fall."""
    return [(name, arg, (0,), 1), (name, arg, (-1,), 99), (name, arg, (2,), 1)]


def rows(name: str) -> list[Case]:
    return [(name, "rows", (0,), -1), (name, "rows", (2,), states), (name, "rows", (1,), None)]


def slots(name: str) -> list[Case]:
    columns: list[tuple[int, Value]] = [(0, -1), (0, pages), (1, -1), (1, 16)]
    return [(name, "where", (7, column), value) for column, value in columns] + [
        (name, "freq_axis", (2,), -1),
        (name, "freq_axis", (2,), 3),
    ]


FAR = 2**62
PAGED, ONE, CACHE = "paged_attention", "paged_attention along one axis", "hstu_attention of a cache"
WHOLE = "lora_rows of whole slots"
ENTRY: list[tuple[int, Value]] = [
    (0, -1), (0, pages), (1, -1), (1, 16), (1, FAR), (2, -1), (2, 17), (2, FAR), (4, -1), (6, -1),
]  # fmt: skip
"""Columns of an entry, and what they cannot be."""

WRONG: list[Case] = [
    *[(ONE, "entries", (1, column), value) for column, value in ENTRY],
    *[(PAGED, "entries", (1, column), -1) for column in (0, 2, 4, 6, 8, 10)],
    *offsets(PAGED, "entry_indptr"),
    *offsets(PAGED, "q_indptr"),
    (PAGED, "freq_axis", (3,), 3),
    (PAGED, "freq_axis", (0,), -1),
    *slots("append"),
    *slots("append_absorb"),
    ("append_absorb", "where", (1,), None),
    *offsets("append_absorb", "indptr"),
    *rows("append_absorb"),
    *offsets("linear_attention", "indptr"),
    *rows("linear_attention"),
    *offsets("gated_delta_rule", "indptr"),
    *rows("gated_delta_rule"),
    *offsets("frame_delta_rule", "frames"),
    *offsets("frame_delta_rule", "indptr"),
    *rows("frame_delta_rule"),
    *offsets("causal_conv", "indptr"),
    *rows("causal_conv"),
    *offsets("hstu_attention", "q_indptr"),
    *offsets("hstu_attention", "k_indptr"),
    ("hstu_attention", "q_indptr", (2,), 5),
    ("hstu_attention", "num_targets", (0,), -1),
    ("hstu_attention", "num_targets", (2,), 21),
    (CACHE, "k_order", (3,), -1),
    (CACHE, "k_order", (3,), 2**61),
    (CACHE, "k_order", (3,), None),
    ("lora", "slots", (3,), -2),
    ("lora", "slots", (3,), adapter),
    ("lora", "ranks", (1,), -1),
    ("lora", "ranks", (1,), rank),
    ("lora_rows", "slots", (3, 0), -2),
    ("lora_rows", "slots", (3, 0), adapter),
    ("lora_rows", "ranks", (1, 1), -1),
    ("lora_rows", "ranks", (1, 0), rank),
    ("lora_rows", "slice_ends", (0,), -1),
    ("lora_rows", "slice_ends", (1,), 35),
    ("lora_rows", "slice_ends", (1,), 99),
    ("lora_rows", "epilogue", (0, 0), -2),
    ("lora_rows", "epilogue", (0, 0), 3),
    ("lora_rows", "epilogue", (1, 1), -2),
    ("lora_rows", "epilogue", (1, 1), 2),
    *offsets(WHOLE, "row_indptr"),
    (WHOLE, "rows", (0,), -1),
    (WHOLE, "rows", (2,), pooled),
    ("lora_rows of two adapters", "epilogue", (1, 1), 0),
    *indices("compact"),
    *indices("compact_inplace"),
    *indices("scatter_back"),
]
"""A call, an argument of it, where in that, and what it says there: what is before it, for None."""


def called(name: str) -> tuple[str, dict[str, Any]]:
    """The op, and the arguments of a call, in memory of their own."""
    op = name.split(" ")[0]
    args, kwargs = CALLS[name]()
    bound = ops.specs()[op].bind(*args, **kwargs)
    return op, {n: x.clone() if isinstance(x, Tensor) else x for n, x in bound.items()}


def spoil(given: dict[str, Any], arg: str, at: Place, value: Value) -> None:
    """Makes one argument wrong."""
    x = given[arg]
    x[at] = x[at[0] - 1] if value is None else value(given) if callable(value) else value
