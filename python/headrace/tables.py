# SPDX-License-Identifier: Apache-2.0
"""What only the values of a call can tell: whether its pages, slots, rows and offsets exist.

The CPU kernels look at the same themselves, in the same order and words. Here it is for the other
backends, with the tables on whatever device they are; to read them there waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from .errors import bad_value

Bound = Mapping[str, Any]

PAGE, FIRST, COUNT, REACH = 0, 1, 2, 6
CAPS = {7: [4], 11: [4, 8, 10]}
"""Columns of an entry, by how many it has: the cap along each axis."""

INDICES = 2**61
"""What the indices of hstu_attention's keys are below."""


def check(name: str, bound: Bound) -> None:
    """ValueError that names the first value which op `name` cannot take."""
    if name in _CHECKS:
        _CHECKS[name](bound)


def _first(bad: Tensor) -> int | None:
    """The first place where it is true."""
    at = bad.nonzero()
    return int(at[0, 0]) if len(at) else None


def _rising(op: str, arg: str, ends: Tensor, total: int) -> None:
    there = ends.tolist()
    if there[0] != 0 or there[-1] != total or any(a > b for a, b in pairwise(there)):
        raise bad_value(op, arg, f"offsets that rise from 0 to {total}", "others")


def _rows(op: str, rows: Tensor, states: int) -> None:
    taken: set[int] = set()
    for b, row in enumerate(rows.tolist()):
        if not 0 <= row < states or row in taken:
            raise bad_value(op, "rows", f"distinct rows in [0, {states})", f"{row} for stream {b}")
        taken.add(row)


def _streams(op: str, first: str, bound: Bound) -> None:
    """first: an argument that has a row for every token."""
    _rising(op, "indptr", bound["indptr"], len(bound[first]))
    _rows(op, bound["rows"], len(bound["state"]))


def _frames(bound: Bound) -> None:
    op, frames = "frame_delta_rule", bound["frames"]
    _rising(op, "frames", frames, len(bound["q"]))
    _rising(op, "indptr", bound["indptr"], len(frames) - 1)
    _rows(op, bound["rows"], len(bound["state"]))


def _freq_axis(op: str, bound: Bound, axes: int) -> None:
    axis = bound["freq_axis"]
    if axis is not None and (i := _first((axis < 0) | (axis >= axes))) is not None:
        got = f"{int(axis[i])} for frequency {i}"
        raise bad_value(op, "freq_axis", f"axes in [0, {axes})", got)


def _entries(bound: Bound) -> None:
    op, entries = "paged_attention", bound["entries"]
    pages, size = bound["k_pages"].shape[0], bound["k_pages"].shape[3]
    page, first, count, reach = (entries[:, i] for i in (PAGE, FIRST, COUNT, REACH))
    cap = entries[:, CAPS[entries.shape[1]]].amin(1)
    away = (page < 0) | (page >= pages)
    # Compared so that no sum of two columns can overflow.
    out = (first < 0) | (count < 0) | (count > size) | (first > size - count)
    i = _first(away | out | (reach < 0) | (cap < 0))
    if i is None:
        return
    if away[i]:
        expected, got = f"pages in [0, {pages})", f"{int(page[i])}"
    elif out[i]:
        expected = f"first and count within a page of {size} slots"
        got = f"first {int(first[i])} and count {int(count[i])}"
    else:
        expected = "reach and cap of 0 or more"
        got = f"reach {int(reach[i])} and cap {int(cap[i])}"
    raise bad_value(op, "entries", expected, f"{got} in entry {i}")


def _paged_attention(bound: Bound) -> None:
    op = "paged_attention"
    _rising(op, "entry_indptr", bound["entry_indptr"], len(bound["entries"]))
    _rising(op, "q_indptr", bound["q_indptr"], len(bound["q"]))
    _entries(bound)
    _freq_axis(op, bound, 1 if bound["q_pos"].dim() == 1 else 3)


def _append(op: str, bound: Bound) -> None:
    where, pages, size = bound["where"], bound["k_pages"].shape[0], bound["k_pages"].shape[3]
    _freq_axis(op, bound, where.shape[1] - 2)
    page, slot = where[:, 0], where[:, 1]
    t = _first((page < 0) | (page >= pages) | (slot < 0) | (slot >= size))
    if t is not None:
        expected = f"pages in [0, {pages}) and slots in [0, {size})"
        got = f"page {int(page[t])} and slot {int(slot[t])} for token {t}"
        raise bad_value(op, "where", expected, got)


def _append_absorb(bound: Bound) -> None:
    op, where, size = "append_absorb", bound["where"], bound["k_pages"].shape[3]
    _append(op, bound)
    slots, times = (where[:, 0] * size + where[:, 1]).unique(return_counts=True)
    if (i := _first(times > 1)) is not None:
        page, slot = divmod(int(slots[i]), size)
        hint = "give what would evict this call's own tokens to the next"
        raise bad_value(op, "where", "every slot once", f"slot {slot} of page {page} twice", hint)
    _streams(op, "k", bound)


def _length(indices: list[int], first: int) -> int:
    """Tokens of a sequence of which the cache holds these indices, key `first` and on."""
    op, arg = "hstu_attention", "k_order"
    for i, index in enumerate(indices):
        if not 0 <= index < INDICES:
            raise bad_value(op, arg, "indices in [0, 2**61)", f"{index} for key {first + i}")
    indices = sorted(indices)
    for before, index in pairwise(indices):
        if before == index:
            raise bad_value(op, arg, "every index once in a sequence", f"{index} twice")
    return indices[-1] + 1 if indices else 0


def _hstu_attention(bound: Bound) -> None:
    op, keys, order = "hstu_attention", bound["k_indptr"], bound["k_order"]
    asked = keys if bound["q_indptr"] is None else bound["q_indptr"]
    _rising(op, "q_indptr", asked, len(bound["q"]))
    _rising(op, "k_indptr", keys, len(bound["k"]))
    indices = None if order is None else order.tolist()
    targets = None if bound["num_targets"] is None else bound["num_targets"].tolist()
    spans = zip(pairwise(asked.tolist()), pairwise(keys.tolist()), strict=True)
    for b, ((row, stop), (first, last)) in enumerate(spans):
        length = last - first if indices is None else _length(indices[first:last], first)
        if stop - row > length:
            expected = f"at most {length} queries, as there are tokens"
            raise bad_value(op, "q_indptr", expected, f"{stop - row} in sequence {b}")
        if targets is not None and not 0 <= targets[b] <= length:
            got = f"{targets[b]} in sequence {b}"
            raise bad_value(op, "num_targets", f"0 to {length}", got)


def _listed(op: str, bound: Bound) -> None:
    """index names rows that rise, as far as its count goes."""
    index, count = bound["index"], bound["count"]
    if index is None:
        return
    batch, heads, size = bound["y" if op == "scatter_back" else "x"].shape[:3]
    index = index.expand(batch, heads, -1).long()
    before = torch.cat([index.new_full((batch, heads, 1), -1), index[..., :-1]], -1)
    bad = (index <= before) | (index >= size)
    if count is not None:
        bad &= torch.arange(index.shape[-1], device=index.device) < count[..., None]
    if len(at := bad.nonzero()):
        b, h, c = at[0].tolist()
        got = f"{int(index[b, h, c])} " + (f"after {int(before[b, h, c])}" if c else "first")
        raise bad_value(op, "index", f"ascending rows below {size}", got)


def _lora(op: str, bound: Bound) -> None:
    adapters, many = len(bound["scale"]), bound["slots"].unsqueeze(-1).flatten(1, -1)
    slots: list[list[int]] = many.tolist()
    ends, indptr = bound.get("slice_ends"), bound.get("row_indptr")
    for t, mine in enumerate(slots):
        for slot in mine:
            if not -1 <= slot < adapters:
                _out(op, "slots", -1, adapters, f"{slot} for token {t}")
    if ends is not None:
        _columns(op, ends.tolist(), bound["y"].shape[1])
    if indptr is not None:
        _rising(op, "row_indptr", indptr, len(bound["rows"]))
    for slot in sorted({slot for mine in slots for slot in mine if slot >= 0}):
        _adapter(op, bound, slot)
    if bound.get("epilogue") is not None:
        for mine in slots:
            _epilogue(op, bound, [slot for slot in mine if slot >= 0])


def _out(op: str, arg: str, least: int, end: int, got: str) -> NoReturn:
    raise bad_value(op, arg, f"values in [{least}, {end})", got)


def _columns(op: str, ends: list[int], outputs: int) -> None:
    for j, (begin, end) in enumerate(pairwise([0, *ends])):
        if end < begin or (j + 1 == len(ends) and end != outputs):
            expected, got = f"columns that rise to {outputs}", f"{end} for slice {j}"
            raise bad_value(op, "slice_ends", expected, got)


def _adapter(op: str, bound: Bound, slot: int) -> None:
    """Its ranks, and the rank rows that these take."""
    rows, ranks = bound.get("rows"), bound["ranks"]
    first, last = 0, bound["a"].shape[1]
    if rows is not None:
        first, last = bound["row_indptr"][slot : slot + 2].tolist()
    most = last - first
    for rank in [most] if ranks is None else ranks[slot].reshape(-1).tolist():
        if not 0 <= rank <= most:
            raise bad_value(op, "ranks", f"0 to {most} for slot {slot}", rank)
        for row in [] if rows is None else rows[first : first + rank].tolist():
            if not 0 <= row < len(bound["a"]):
                _out(op, "rows", 0, len(bound["a"]), f"{row} for slot {slot}")


def _epilogue(op: str, bound: Bound, slots: list[int]) -> None:
    """Of a token, the rows of bias and gain that its adapters name."""
    for slot in slots:
        named = zip(("bias", "gain"), bound["epilogue"][slot].tolist(), strict=True)
        for what, row in named:
            there = 0 if bound[what] is None else len(bound[what])
            if not -1 <= row < there:
                raise bad_value(op, "epilogue", f"{what} rows in [-1, {there})", row)
        if row >= 0 and len(slots) > 1:
            expected = "no gain where a token has several adapters"
            raise bad_value(op, "epilogue", expected, f"gain row {row}")


_CHECKS: dict[str, Callable[[Bound], None]] = {
    "paged_attention": _paged_attention,
    "append": partial(_append, "append"),
    "append_absorb": _append_absorb,
    "linear_attention": partial(_streams, "linear_attention", "q"),
    "gated_delta_rule": partial(_streams, "gated_delta_rule", "q"),
    "frame_delta_rule": _frames,
    "causal_conv": partial(_streams, "causal_conv", "x"),
    "hstu_attention": _hstu_attention,
    "lora": partial(_lora, "lora"),
    "lora_rows": partial(_lora, "lora_rows"),
    **{op: partial(_listed, op) for op in ("compact", "compact_inplace", "scatter_back")},
}
