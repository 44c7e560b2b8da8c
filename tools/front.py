# SPDX-License-Identifier: Apache-2.0
"""The figures of the front page: a table of speed, and what is said below it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from aim import geometric, rows
from machines import Found, Machine

SURE = 1.05
"""A share of the floor above this is no share of it: the floor was then another, or noise."""

# What the front page shows: what, file, beginnings of shapes, the peer. All shapes of a line count.
FRONT = (
    (
        "decode, bf16, 32 query and 8 kv heads of 128, 1k to 64k cached tokens, batch 1 to 8,"
        " re-indexing on",
        "bench-paged_attention.json", "decode bf16", "torch SDPA",
    ),
    (
        "the same from int8 pages, 64k cached tokens", "bench-paged_attention.json", "decode int8",
        "ours from bf16 pages",
    ),
    (
        "prefill of 4k and 16k, window 512 and 2048, 4 sinks, bf16", "bench-attention.json",
        "prefill bf16", "compiled FlexAttention",
    ),
    ("the same in fp32", "bench-attention.json", "prefill fp32", "compiled FlexAttention"),
    (
        "block-sparse attention, 20% of the blocks, bf16", "bench-attention.json", "blocks bf16",
        "compiled FlexAttention",
    ),
    ("batch-invariant linear, fp32, 1 to 512 rows", "bench-linear.json", "fp32", "torch linear"),
    ("the same in bf16", "bench-linear.json", "bf16", "torch linear"),
    (
        "gated delta rule, 256 and 4,096 tokens, 8 heads of 128 x 128",
        "bench-gated_delta_rule.json", ("bf16 256", "bf16 4096"), "torch, token by token",
    ),
    (
        "64 rows of 64 adapters of rank 16, 4096 wide, bf16", "bench-lora_rows.json",
        "bf16 64 rows, 64 adapters", "gather and bmm",
    ),
    (
        "512 rows of 8 adapters of rank 16, 4096 wide, bf16", "bench-lora_rows.json",
        "bf16 512 rows, 8 adapters", "a loop over adapters",
    ),
    (
        "score a million cached tokens by block means, 4 layers, and select",
        "bench-block_score.json", "mean bf16 1000000", "torch, head by head",
    ),
    ("append to pages, bf16, 1 to 4,096 tokens", "bench-append.json", "bf16", "rotate and copy"),
)  # fmt: skip


def front(found: Found) -> str:
    """The table of the front page."""
    lines = ["| | ours against | speed-up | share of the machine's floor |", "|---|---|---|---|"]
    for what, file, begins, peer in FRONT:
        names = begins if isinstance(begins, tuple) else (begins,)
        at = [row for name in names for row in rows(found[file], name)]
        speed = _range([row["speedup"] for row in at], lambda v: f"{v:.1f}", "x")
        shares = [row["of_floor"] for row in at if row["of_floor"] <= SURE]
        floor = _range(shares, lambda v: f"{100 * v:.0f}", "%") if shares else ""
        lines.append(f"| {what} | {peer} | {speed} | {floor} |")
    return "\n".join(lines)


def _range(values: list[float], text: Any, unit: str) -> str:
    middle = text(geometric(values)) + unit
    low, high = text(min(values)), text(max(values))
    return middle if low == high else f"{middle} ({low} to {high})"


def prose(found: Found) -> str:
    """What the table does not say of the same shapes."""
    decode, prefill = found["bench-paged_attention.json"], found["bench-attention.json"]
    reindexed = {
        many: [row["notes"]["time over re-indexing off"] - 1 for row in rows(decode, "decode bf16")
               if f" {many} cached" in row["shape"]]
        for many in ("1k", "4k", "16k", "64k")
    }  # fmt: skip
    few, many = reindexed["1k"] + reindexed["4k"], reindexed["16k"] + reindexed["64k"]
    rates = [
        _times(row["notes"]["share of matmul rate"] for row in rows(prefill, f"prefill {dtype}"))
        for dtype in ("fp32", "bf16")
    ]
    appended = [f"{rows(found['bench-append.json'], f'bf16 {n} tokens')[0]['speedup']:.1f}"
                for n in (1, 256, 4096)]  # fmt: skip
    told = (
        f"Re-indexing costs decode at most {max(many):.0%} of its time from 16k cached tokens on"
        f" and {max(few):.0%} with fewer. Prefill in fp32 runs at {rates[0]} times the"
        f" rate of torch's own fp32 matrix product, in bf16 at {rates[1]} times. Small calls go"
        " past torch's dispatcher where nothing of torch is to see them: appending 1, 256 and 4,096"
        f" tokens is {appended[0]}, {appended[1]} and {appended[2]} times as fast as rotating and"
        " copying them in torch. SDPA is slow where heads share keys: `--peers` sets decode beside"
        " quicker ways to write it in torch too."
    )
    return textwrap.fill(told, 100, break_on_hyphens=False, break_long_words=False)


def elsewhere(others: Sequence[Machine]) -> str:
    """Where the figures of other machines are; nothing where there are none."""
    if not others:
        return ""
    listed = ", ".join(f"{one.name} (`bench/results/{one.folder}`)" for one in others)
    text = (
        "[docs/aims.md](docs/aims.md) and [docs/speed.md](docs/speed.md) set other machines beside"
        f" this one: {listed}."
    )
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _times(values: Iterable[float]) -> str:
    kept = list(values)
    return f"{min(kept):.1f} to {max(kept):.1f}"
