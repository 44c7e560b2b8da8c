# SPDX-License-Identifier: Apache-2.0
"""What a run saw, as Markdown."""

from __future__ import annotations

from typing import Any


def table(report: dict[str, Any]) -> str:
    """Units that did not go well first, then tests, then times: microseconds of a call in a graph
    whose inputs no cache holds, half of what lies between the quartiles, the share of the floor
    that ours reaches, ratios to the peers; then ours with inputs that a cache may hold, and outside
    a graph; then what the compilers report."""
    units = report["units"]
    head = ("device", "date", "commit", "sources", "command", "versions")
    lines = ["# GPU check", "", *(f"- {name}: {report[name]}" for name in head)]
    lines += [f"- {name}: {value:.4g}" for name, value in report["floors"].items()]
    for name, unit in units.items():
        if unit["state"] != "ok" or not name.startswith("bench "):
            told = unit.get("why") or unit.get("told", "")
            lines.append(f"- {name}: {unit['state']}{', ' + told if told else ''}")
        for test, why in unit.get("wrong", {}).items():
            if unit["tests"].get(test) != "SKIPPED":
                lines.append(f"  - {test.split('::')[-1]}: {' '.join(why.split())[:200]}")
    rows = [row for name, unit in units.items() for row in unit.get("rows", ())]
    if rows:
        lines += ["", "| op | what | floor us | ours us | of the floor | peers us (peer / ours) | "
                  "again us | no graph us |",
                  "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |"]  # fmt: skip
        lines += map(_row, rows)
    kernels = [kernel for unit in units.values() for kernel in unit.get("kernels", ())]
    if kernels:
        lines += ["", *resources(kernels)]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    ours = {b: row["us"][b] for b in row["correct"]}
    peers = {n: t for n, t in row["us"].items() if n not in ours}
    good = {b: t for b, t in ours.items() if row["correct"][b] and isinstance(t, float)}
    best = min(good.values()) if good else None
    spread = row.get("spread", {})
    told = ", ".join(
        f"{b} {_us(t)}"
        + (f" ±{spread[b]:.0%}" if spread.get(b) else "")
        + ("" if row["correct"][b] else " WRONG")
        for b, t in ours.items()
    )
    share = f"{row['floor_us'] / best:.0%}" if best else "-"
    against = ", ".join(
        f"{n} {_us(t)}" + (f" ({t / best:.2f}x)" if best and isinstance(t, float) else "")
        for n, t in peers.items()
    )
    more = (
        ", ".join(f"{b} {_us(t)}" for b, t in row.get(kind, {}).items())
        for kind in ("warm_us", "eager_us")
    )
    what = row["what"] + "".join(f", {n} nodes ({b})" for b, n in row.get("nodes", {}).items())
    cells = (row["op"], what, f"{row['floor_us']:.1f}", told, share, against, *more)
    return f"| {' | '.join(cells)} |"


def resources(kernels: list[dict[str, Any]]) -> list[str]:
    """A line for each kernel and architecture: the most that any of its forms takes."""
    lines = ["| kernel | sm | forms | registers | shared KiB | spilled bytes |",
             "| --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name, arch in sorted({(k["kernel"], k["arch"]) for k in kernels}):
        forms = [k for k in kernels if (k["kernel"], k["arch"]) == (name, arch)]
        most = {x: max(k[x] for k in forms) for x in ("registers", "shared", "spills")}
        lines.append(
            f"| {name} | {arch} | {len(forms)} | {most['registers']} | {most['shared'] / 1024:.0f} "
            f"| {most['spills']} |"
        )
    return lines


def _us(t: float | str) -> str:
    return f"{t:.1f}" if isinstance(t, float) else f"({t})"
