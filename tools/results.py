# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of recorded figures anew from bench/results/<machine>/*.json.

    python tools/results.py [--check | --stale]

bench/results/<machine>/README.md   every shape, with commit, time and command; prose from notes.md
docs/aims.md                        what the engine aims for, what was measured, met or short
docs/speed.md                       ops beside peers, loops, cost as work grows
docs/gpu.md                         what was seen on a GPU, and what every kernel takes of one
docs/*.png, bench/results/*/*.png   the plots of plots.py
README.md, docs/pruning.md          the blocks between their marks

`--check` writes nothing and fails when a file differs. `--stale` writes nothing and lists the
records whose sources have changed since, for tools/record.py to take again. No figure is typed in
by hand.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import sources
from aims import AIMS, Aim
from endless import endless
from front import elsewhere, front, prose
from gpu import gpu_page
from machines import Machine, host, machines
from plots import mark_of, plots
from speed import speed_page

from headrace.bench import Row, table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures: tools/results.py -->", "<!-- end of figures -->"


def aims(machines: Sequence[Machine], aims: Iterable[Aim] = AIMS) -> str:
    """docs/aims.md."""
    folders = ", ".join(f"`bench/results/{one.folder}`" for one in machines)
    said = (
        f"Written by `python tools/results.py`: every bar beside what was recorded in {folders};"
        " ratios are of times taken in turns in one run. A bar that is not met says what stands in"
        " its way, as far as that is known of the machine, after what the record itself shows. A"
        " level in brackets is that of a record taken at fewer instructions than the machine has."
    )
    heads = ["", "what", "bar", *(one.name for one in machines), "recorded in"]
    lines = [
        "# What the engine aims for",
        "",
        textwrap.fill(said, 100, break_on_hyphens=False, break_long_words=False),
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    lines += [_line(aim, machines) for aim in aims]
    heads = ["GPUs", "what every kernel is to reach on one", "", *[""] * len(machines)]
    lines.append(f"| {' | '.join([*heads, '[gpu.md](gpu.md)'])} |")
    return "\n".join(lines) + "\n"


def _line(aim: Aim, machines: Sequence[Machine]) -> str:
    """What is aimed for, every machine's figure, and where they are from."""
    bar = f"{_value(aim.least, aim.unit)} or more" if aim.least is not None else None
    bar = bar or f"{_value(aim.most or 0, aim.unit)} or less"
    told = [_verdict(aim, one) for one in machines]
    source = f"`{aim.file}`"
    if aim.test:
        source += f"; in the tests, `{aim.test}`"
    if not any(told):
        told[0] = "not recorded yet"
    return f"| {' | '.join([aim.family, aim.what, bar, *told, source])} |"


def _verdict(aim: Aim, machine: Machine) -> str:
    """What a machine measured, and whether that is enough; empty where it did not."""
    if aim.file not in machine.found:
        return ""
    record = machine.found[aim.file]
    value = aim.measure(record)
    if value is None:
        return ""
    level, met = machine.level(aim.file), aim.met(value)
    told = f"{_value(value, aim.unit)}{f' (at {level})' if level else ''}"
    told += ", met" if met else ", **short**"
    more = [aim.where(record, met) if aim.where else ""]
    more += [] if met else [aim.reason(machine.folder, record)]
    said = "; ".join(each for each in more if each)
    return f"{told}: {said}" if said else told


def _value(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f}%"
    if value >= 1000:
        return f"{value:,.0f}{unit}"
    return f"{value:.3g}{'' if unit == 'x' else ' '}{unit}".rstrip()


def page(folder: Path, found: dict[str, dict[str, Any]]) -> str:
    """README.md of a machine: its notes, where each file comes from, every shape."""
    parts = [(folder / "notes.md").read_text("utf-8").rstrip() + "\n"]
    lines = ["| file | command | commit | taken, UTC | level, threads |", "|---|---|---|---|---|"]
    for name, record in found.items():
        at, there = record.get("taken") or record["started"], host(record)
        cells = (
            f"`{name}`", f"`{' '.join(record['command'])}`", record["commit"][:12], at[:16],
            f"{there['isa']}, {there['threads']}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    parts.append("\n".join(lines) + "\n")
    for name, record in found.items():
        if name.startswith(("bench-", "quick")):
            known = [f.name for f in fields(Row)]
            shown = [Row(**{k: row[k] for k in known if k in row}) for row in record["rows"]]
            parts.append(f"```\n{table(shown)}\n```\n")
    return "\n".join(parts)


def clips(found: dict[str, dict[str, Any]]) -> str:
    """Of real clips: what is dropped, and how far off that leaves a place, at one threshold."""
    lines = [
        "| clip | dropped, last kept | furthest off | dropped, frame before | furthest off |",
        "|---|---|---|---|---|",
    ]
    shown = [r for r in found["clips.json"]["rows"]
             if (r["form"], r["stride"], r["threshold"]) == ("pixels", 1, 5)]  # fmt: skip
    for clip in dict.fromkeys(row["clip"] for row in shown):
        cells = {r["reference"]: (r["dropped"], r["worst"]) for r in shown if r["clip"] == clip}
        (a, near), (b, far) = cells["last kept"], cells["frame before"]
        lines.append(f"| {clip} | {a:.0%} | {near:.1f} | {b:.0%} | {far:.0f} |")
    return "\n".join(lines)


def gated(found: dict[str, dict[str, Any]]) -> str:
    """Of real clips: how many more frames an encoder takes when a pixel gate decides."""
    lines = [
        "| clip | threshold | patches computed | tokens kept | frames a second over all of them |"
        " the published form |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["gated-video.json"]["rows"]:
        lines.append(
            f"| {r['clip']} | {r['threshold']:g} | {r['kept_patches']:.0%} |"
            f" {r['kept_tokens']:.0%} | {r['times']:.2g}x | {r['dropped_times']:.2g}x |"
        )
    return "\n".join(lines)


def _between(text: str, block: str, nth: int = 0) -> str:
    """A page with another block between its nth marks."""
    parts = text.split(BEGIN)
    parts[nth + 1] = f"\n{block}\n{END}{parts[nth + 1].split(END, 1)[1]}"
    return BEGIN.join(parts)


def written() -> dict[Path, str]:
    """Every file that this writes, and its text."""
    every = machines(ROOT / "bench/results")
    found = every[0].found
    texts = {
        ROOT / "bench/results" / one.folder / "README.md": page(
            ROOT / "bench/results" / one.folder, one.found
        )
        for one in every
    }
    texts[ROOT / "docs/aims.md"] = aims(every)
    texts[ROOT / "docs/speed.md"] = speed_page(every)
    texts[ROOT / "docs/gpu.md"] = gpu_page(ROOT / "bench/results")
    page_of = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/pruning.md")}
    shown = [front(found), prose(found), elsewhere(every[1:])]
    block = "\n\n".join(part for part in shown if part)
    readme = _between(page_of["README.md"], endless(found))
    texts[ROOT / "README.md"] = _between(readme, block, 1)
    pruning = _between(page_of["docs/pruning.md"], clips(found))
    texts[ROOT / "docs/pruning.md"] = _between(pruning, gated(found), 1)
    return texts


def stale(machine: Machine) -> dict[str, list[str]]:
    """The records of ops whose kernels, or what times them, have changed since: which of them."""
    timed = [name for name in machine.found if name.startswith(("bench-", "quick"))]
    found = {name: sources.changed(name, machine.found[name]) for name in timed}
    return {name: parts for name, parts in found.items() if parts}


def main(arguments: Sequence[str]) -> None:
    every = machines(ROOT / "bench/results")
    if "--stale" in arguments:
        for one in every:
            for name, parts in stale(one).items():
                print(f"bench/results/{one.folder}/{name}: {', '.join(parts)} changed since")
        return
    differs = []
    check = "--check" in arguments
    for path, text in written().items():
        if not path.exists() or path.read_text("utf-8") != text:
            differs.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text, "utf-8")
    for name, (mark, draw) in plots(every).items():
        if mark_of(ROOT / name) != mark:
            differs.append(name)
            if not check:
                draw(ROOT / name)
    if differs and check:
        told = ", ".join(differs)
        sys.exit(f"results: {told} differ from what was recorded; run tools/results.py")


if __name__ == "__main__":
    main(sys.argv[1:])
