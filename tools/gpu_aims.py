# SPDX-License-Identifier: Apache-2.0
"""What is aimed for on a GPU, and what the reports of devices show of each: data of docs/gpu.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Reports = dict[str, Any]
"""Reports of scripts/gpu_check.py, of devices, by the folder that holds each."""


@dataclass(frozen=True)
class Seen:
    """What one report shows: in words, and whether that is what was aimed for."""

    told: str
    met: bool


@dataclass(frozen=True)
class Aim:
    """One bar: of which capability, of what, how far, and how a report shows it (None: it does
    not)."""

    of: str
    what: str
    bar: str
    seen: Callable[[dict[str, Any]], Seen | None]


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row that a report has timed."""
    return [row for unit in report["units"].values() for row in unit.get("rows", ())]


def ours(row: dict[str, Any], backend: str | None = None) -> float | None:
    """Microseconds of the quickest backend whose result is right, or of one of them."""
    times = [row["us"].get(b) for b, good in row["correct"].items()
             if good and backend in (None, b)]  # fmt: skip
    return min((t for t in times if isinstance(t, float)), default=None)


def _row(report: dict[str, Any], op: str, what: str) -> dict[str, Any] | None:
    found = [r for r in rows_of(report) if r["op"] == op and r["what"] == what]
    return found[-1] if found and ours(found[-1]) is not None else None


def within(op: str, what: str, us: float) -> Callable[[dict[str, Any]], Seen | None]:
    """So many microseconds or fewer."""

    def seen(report: dict[str, Any]) -> Seen | None:
        row = _row(report, op, what)
        best = None if row is None else ours(row)
        return None if best is None else Seen(f"{best:.1f} us", best <= us)

    return seen


def share(op: str, what: str, least: float) -> Callable[[dict[str, Any]], Seen | None]:
    """So much of the floor or more."""

    def seen(report: dict[str, Any]) -> Seen | None:
        row = _row(report, op, what)
        best = None if row is None else ours(row)
        if row is None or best is None:
            return None
        reached = row["floor_us"] / best
        return Seen(f"{reached:.0%}, {best:.1f} us", reached >= least)

    return seen


def rate(op: str, what: str, backend: str, least: float) -> Callable[[dict[str, Any]], Seen | None]:
    """So much of the rate of a large matrix product or more."""

    def seen(report: dict[str, Any]) -> Seen | None:
        row = _row(report, op, what)
        best = None if row is None else ours(row, backend)
        if row is None or best is None:
            return None
        reached = row["flops"] / (best * 1e-6) / report["floors"]["matrix_flops_per_s"]
        return Seen(f"{reached:.0%}, {best / 1e3:.2f} ms", reached >= least)

    return seen


def beside(ops: tuple[str, ...], peer: str, least: float) -> Callable[..., Seen | None]:
    """So many times as fast as a peer or more, geometric mean over all rows that have it."""

    def seen(report: dict[str, Any]) -> Seen | None:
        pairs = [(row["us"].get(peer), ours(row)) for row in rows_of(report) if row["op"] in ops]
        ratios = [p / o for p, o in pairs if isinstance(p, float) and o is not None]
        if not ratios:
            return None
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        span = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} shapes"
        return Seen(f"{mean:.2f}x ({span})", mean >= least)

    return seen


def nodes(op: str, what: str, most: int) -> Callable[[dict[str, Any]], Seen | None]:
    """So many nodes of a graph or fewer, in the backend that has the fewest."""

    def seen(report: dict[str, Any]) -> Seen | None:
        row = _row(report, op, what)
        if row is None or not row.get("nodes"):
            return None
        told = ", ".join(f"{n} ({backend})" for backend, n in row["nodes"].items())
        return Seen(told, min(row["nodes"].values()) <= most)

    return seen


def replayed(count: int) -> Callable[[dict[str, Any]], Seen | None]:
    """Graphs replayed so often, equal to eager calls."""

    def seen(report: dict[str, Any]) -> Seen | None:
        unit = report["units"].get("replays", {})
        if unit.get("state") not in ("ok", "failed"):
            return None
        return Seen(unit["told"], unit["state"] == "ok" and unit["count"] >= count)

    return seen


def passed(begins: str) -> Callable[[dict[str, Any]], Seen | None]:
    """All units of a stage, none of them unfinished."""

    def seen(report: dict[str, Any]) -> Seen | None:
        found = [u["state"] for name, u in report["units"].items() if name.startswith(begins)]
        known = [state for state in found if state in ("ok", "failed")]
        if not known or "unfinished" in found:
            return None
        return Seen(f"{known.count('ok')} of {len(known)} ok", "failed" not in known)

    return seen


DECODE = "decode B {} cached 2048 re-indexed"
SHARED = "decode B 32 cached 4096 in common and 320"
AIMS = (
    Aim("all", "tests of the GPU backends against the references", "all pass", passed("tests ")),
    Aim("all", "the same of small shapes under compute-sanitizer's four tools", "no error",
        passed("sanitize ")),
    Aim("attention", "decode of 64 streams, 2k cached tokens, sinks and re-indexing",
        "85% of the floor", share("paged_attention", DECODE.format(64), 0.85)),
    Aim("attention", "decode of one stream, 2k cached tokens, one layer in a graph", "8 us",
        within("paged_attention", DECODE.format(1), 8)),
    Aim("attention", "decode of 32 streams, 4k cached tokens in common and 320 of their own",
        "85% of the floor of pages read once", share("paged_attention", SHARED, 0.85)),
    Aim("attention", "prefill of 128k under a window of 2k, Triton", "50% of the matrix rate",
        rate("attention", "prefill 131072 window 2048 + 4 sinks", "triton", 0.5)),
    Aim("attention", "a captured step through wraps of its ring, equal to eager",
        "100,000 replays", replayed(100_000)),
    Aim("adapters", "a site with one adapter, beside its projection alone",
        "1 node of a graph at most", nodes("site", "1 rows, one adapter of rank 16, 4096 wide", 1)),
    Aim("adapters", "64 rows of 64 adapters of rank 16, 4096 wide", "80% of the floor",
        share("lora_rows", "64 rows, 64 adapters of rank 16, 4096", 0.8)),
    Aim("adapters", "beside the Triton kernels of vLLM", "1.2x, geometric mean",
        beside(("lora", "lora_rows"), "vLLM", 1.2)),
    Aim("pruning", "similarity, select and compact of 10,000 tokens x 3584", "45 us",
        within("prune", "similarity, select and compact, 10000 x 3584", 45)),
    Aim("retrieval", "score and select of a million tokens, one layer", "15 us",
        within("recall", "score and select 64 blocks of 1000000 tokens", 15)),
    Aim("retrieval", "64 blocks of one layer from host memory", "80% of the link",
        share("fetch", "64 blocks of 262144 bytes from host memory", 0.8)),
)  # fmt: skip


def aims_table(reports: Reports) -> str:
    """Every aim with what the newest report that shows it has of it, or `unproved`."""
    lines = ["", "## What is aimed for", "", "| of | what | bar | measured | |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    newest = sorted(reports.values(), key=lambda report: report["date"], reverse=True)
    for aim in AIMS:
        found = ((report["device"], aim.seen(report)) for report in newest)
        device, seen = next(((d, s) for d, s in found if s is not None), ("", None))
        cells = (
            ("unproved", "") if seen is None
            else (f"{seen.told} ({device})", "met" if seen.met else "short")
        )  # fmt: skip
        lines.append(f"| {aim.of} | {aim.what} | {aim.bar} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"
