# SPDX-License-Identifier: Apache-2.0
"""docs/speed.md from what was recorded: ops beside every peer, loops, and work that grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aim import geometric
from front import SURE
from machines import MAIN, Found, Machine, host, sections

from headrace.bench import loops, scaling
from headrace.bench.tables import bytes_of, time_of

NONE = "Not recorded yet.\n"
FLOOR = """## The floor

The floor of a shape is the larger of two times, both measured in the same run:

- **Bytes.** To read as many bytes as the result needs at least, its inputs once and its outputs
  once, in one call from Python: a buffer of huge pages, at four places at a time, with every
  thread, or with one where that is quicker. It is read in the state of the cache in which ours is
  timed, and where every call of ours meets other memory, so does it. Weights of a linear layer,
  and keys whose mass is taken, are read where they lie, so that both find them in the same cache.
  Where a record holds rates of copies, what ops that move bytes write elsewhere (append,
  merge_states, compact, compact_inplace, scatter_back, causal_conv) is copied there; other results
  count as read, which is at least as quick, and what is written where it was read is read a second
  time while it is near.
- **Multiply-adds.** As many as the result has by its definition, at the rate of independent ones
  in registers: of fp32, of pairs of bf16 (vdpbf16ps), or of pairs of int16 (vpdpwssd), to which
  int8 is widened. The dtype is that of the wider of the two *inputs* of a product: bf16 with bf16
  is bf16 even where our kernel turns a query into two of them; bf16 with a state or with taps of
  fp32 is fp32; int8 pages with bf16 queries are whole numbers. Pairs of bf16 exist at the level
  `avx512_bf16` only (`headrace info`), pairs of int16 at `avx512_vnni` too; fp16, and every dtype
  at other levels, is multiplied as fp32. The rate is the most that has been seen in the run.

Both are parts of any way to the result, so 100% is out of reach but for noise: medians of two
calls that take turns differ by some hundredths on a machine that others use, too. What is left
out is what only some ways need: exponentials, reading twice, turning a query, a call of torch's
dispatcher.
"""


def measured(found: Found, kind: str) -> list[dict[str, Any]]:
    """Every loop or work of the recorded files, in the order of the command's own list."""
    order = list(loops.LOOPS if kind == "loops" else scaling.WORKS)
    each = [one for record in found.values() for one in record.get(kind, ())]
    return sorted(each, key=lambda one: order.index(one["name"]))


def speed_page(machines: Sequence[Machine]) -> str:
    """The page."""
    parts = [
        "# Speed\n\n"
        "Written by `python tools/results.py` from `bench/results`; docs/aims.md has the bars.\n"
        "Whatever is compared took turns in one process, equality was checked first, and nothing"
        " has a\nratio where that failed. Times are medians.\n",
        FLOOR + _rates(machines) + _moves(machines),
        "## Every op beside every peer\n\n"
        "`headrace bench OP --peers`. Peers that are not installed are named by the command, with"
        " how to get\nthem. Warm: the three calls before were the same one; cold: a buffer twice"
        " the size of the last cache\nwas written in between. Means are geometric, over the shapes;"
        " in brackets the least and the most.\nCalls: how many of a peer were timed, warm and cold"
        " of a shape together; slow ones are few.\n",
        sections(machines, [_roofs(one) + _peers(one.found) for one in machines]) or NONE,
        "## Loops\n\n"
        "`headrace bench --loops [NAME]`: whole steps of an engine, over a size that grows. Lag is"
        " from when\nan input is there to its answer; what is kept are keys, values, indices and"
        " adapters between steps.\n",
        _each(machines, "loops", _loops) or NONE,
        "## Cost as work grows\n\n"
        "`headrace bench --scaling [NAME]`: time goes with the amount of work to the power of the"
        " slope, by\nleast squares of the logarithms, with its standard error; the last part is the"
        " last factor of 16.\n",
        _each(machines, "scaling", _scaling) or NONE,
    ]
    return "\n".join(parts)


def _each(
    machines: Sequence[Machine], kind: str, told: Callable[[list[dict[str, Any]], str], str]
) -> str:
    """Of every machine that has any, with its plot, and the level of what has another."""
    texts = []
    for one in machines:
        found = measured(one.found, kind)
        texts.append(told(found, f"({plot_name(kind, one.folder)})") if found else "")
        if texts[-1] and (note := _levels(one, kind)):
            texts[-1] += f"\n{note}\n"
    return sections(machines, texts)


def roofs(found: Found) -> list[dict[str, Any]]:
    """Every row of an op that lies under a roof of the dtype of its products: what older records,
    which do not name it, would draw under another is left out."""
    rows = [row for name, record in found.items() if name.startswith("bench-")
            for row in record["rows"]]  # fmt: skip
    return [row for row in rows if row["ok"] and row.get("product") and row.get("flops")]


def plot_name(kind: str, folder: str) -> str:
    """Of a machine's plot in docs; the first has the plain name."""
    return f"{kind}.png" if folder == MAIN else f"{kind}-{folder}.png"


def _roofs(one: Machine) -> str:
    name = plot_name("rooflines", one.folder)
    told = "Rate of every shape, ours and the peer's, under the roofs of the machine, by family"
    return f"![{told}]({name})\n\n" if roofs(one.found) else ""


def _levels(one: Machine, kind: str) -> str:
    """Which of its files were taken at another level than the machine has, or on fewer threads."""
    taken: dict[str, list[str]] = {}
    for name, record in one.found.items():
        there = host(record)
        whole = not one.level(name) and there.get("threads") == there.get("processors")
        if record.get(kind) and not whole:
            many = f"{there['threads']} thread{'s' if there['threads'] > 1 else ''}"
            how = f"Taken at {there['isa']} with {many}"
            taken.setdefault(how, []).append(record[kind][0]["name"])
    told = "; ".join(f"{how}: {', '.join(names)}" for how, names in taken.items())
    return f"{told}." if told else ""


def _peers(found: Found) -> str:
    lines = [
        "| op | beside | shapes | ours is, warm | ours is, cold | calls |"
        " from the floor, warm and cold |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in sorted(found.items()):
        rows = [row for row in record.get("rows", ()) if row.get("beside") and row["ok"]]
        ratios, calls = _ratios(rows if name.startswith("bench-") else [])
        share = _of_floor(ratios.pop("floor", []))
        for peer, pairs in ratios.items():
            warm, cold = zip(*pairs, strict=True)
            op = name.removeprefix("bench-").removesuffix(".json")
            low, high = min(calls[peer]), max(calls[peer])
            many = f"{low} to {high}" if low < high else f"{low}"
            cells = (f"`{op}`", peer, str(len(pairs)), _range(warm), _range(cold), many, share)
            lines.append("| " + " | ".join(cells) + " |")
            share = ""
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _ratios(
    rows: Sequence[dict[str, Any]],
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[int]]]:
    """By peer: what it takes over ours, warm and cold, and how many calls that was, by shape."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    calls: dict[str, list[int]] = {}
    for row in rows:
        (ours,) = [one for one in row["beside"] if one["name"] == "ours"]
        for one in row["beside"]:
            if one["ok"] and one["warm_s"] and one is not ours:
                pair = one["warm_s"] / ours["warm_s"], one["cold_s"] / ours["cold_s"]
                ratios.setdefault(one["name"], []).append(pair)
                calls.setdefault(one["name"], []).append(sum(one["calls"]))
    return ratios, calls


def _of_floor(shares: Sequence[tuple[float, float]]) -> str:
    """Their means, of those that are shares."""
    sure = [[share for share in each if share <= SURE] for each in zip(*shares, strict=True)]
    return ", ".join(f"{100 * geometric(each):.0f}%" if each else "-" for each in sure)


def _rates(machines: Sequence[Machine]) -> str:
    """Of multiply-adds, in the records of every machine that has any."""
    rates = [(one.name, text) for one in machines if (text := _rates_of(one.found))]
    several = len(machines) > 1
    told = [f"{f'{name}: ' if several else ''}{text}" for name, text in rates]
    return f"\nAt their best in these records, in GFLOP/s: {'; '.join(told)}.\n" if told else ""


def _moves(machines: Sequence[Machine]) -> str:
    """How fast every machine reads and copies, and what a call costs, where that was recorded: in
    the record that was taken last."""
    lines = []
    for one in machines:
        timed = [record for name, record in one.found.items()
                 if name.startswith(("bench-", "quick")) and "rates" in record]  # fmt: skip
        if timed:
            rates = max(timed, key=lambda record: str(record["taken"]))["rates"]
            empty = {name: 1e6 * each for name, each in rates["empty_call_s"].items()}
            (size, read), (_, copied) = rates["read"][-1], rates["copy"][-1]
            lines.append(
                f"{one.name}: {size / 2**20:.0f} MiB are read at {read / 1e9:.1f} GB/s and copied"
                f" at {copied / 1e9:.1f}, both counted; a call that does nothing takes"
                f" {empty['extension']:.2g} us of the extension, {empty['op']:.2g} us of an op."
            )
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _rates_of(found: Found) -> str:
    """By the dtype of the factors."""
    most: dict[str, float] = {}
    for record in found.values():
        for row in record.get("rows", ()):
            if row.get("product"):
                most[row["product"]] = max(most.get(row["product"], 0.0), row["rates"][1])
    return ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in sorted(most.items()))


def _range(values: tuple[float, ...]) -> str:
    middle, low, high = geometric(list(values)), min(values), max(values)
    return f"{middle:.2f}x" + (f" ({low:.2f} to {high:.2f})" if len(values) > 1 else "")


def _loops(found: list[dict[str, Any]], plot: str) -> str:
    shown = "![Throughput, ratio, lag and memory of every loop over its size]"
    parts = [f"{shown}{plot}\n"] if plot else []
    for loop in found:
        lines = [
            f"**{loop['name']}**: {loop['title']}. Equal to: {loop['equals']}.\n",
            f"| {loop['axis']} | | {loop['unit']} | lag, p50 and p99 | kept | ours is |",
            "|---|---|---|---|---|---|",
        ]
        for point in loop["points"]:
            for name, side in point["sides"].items():
                gain, told = point["speedup"].get(name), ""
                if gain:
                    told = f"{gain['median']:.2f}x ({gain['least']:.2f} to {gain['most']:.2f})"
                lag = f"{1e3 * side['lag_p50']:.2f}, {1e3 * side['lag_p99']:.2f} ms"
                cells = (
                    f"{point['at']:,}", name, f"{side['throughput']:,.1f}", lag,
                    bytes_of(side["bytes"]), told,
                )  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
        told = [
            f"{point['at']:,}: " + ", ".join(f"{k} {v:.0%}" for k, v in point["notes"].items())
            for point in loop["points"] if point.get("notes")
        ]  # fmt: skip
        parts.append("\n".join(lines) + "\n")
        if told:
            parts.append("; ".join(told) + ".\n")
    return "\n".join(parts)


def _scaling(found: list[dict[str, Any]], plot: str) -> str:
    lines = [
        *([f"![Time over the amount of work, on logarithmic axes]{plot}\n"] if plot else []),
        "| work | | from, to | time of | slope | its last part |",
        "|---|---|---|---|---|---|",
    ]
    for work in found:
        for one in work["series"]:
            last = f"{one['last_slope']:+.2f}" if "last_slope" in one else ""
            first, then = (time_of(one["seconds"][i]) for i in (0, -1))
            cells = (
                work["name"], one["name"], f"{one['at'][0]:,} to {one['at'][-1]:,} {work['axis']}",
                f"{work['of']}: {first} to {then}", scaling.slope(one), last,
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
