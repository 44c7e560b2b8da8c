# SPDX-License-Identifier: Apache-2.0
"""What the front page says of text without end, from the reports of `headrace stream --compare`."""

from __future__ import annotations

import textwrap
from typing import Any

from machines import MAIN, Found, host

Record = dict[str, Any]
HEADS = (
    "policy", "perplexity per byte, first and last 100k", "KV cache at 100k and at the end",
    "time per token, first and last 100k (median)",
)  # fmt: skip


def endless(found: Found) -> str:
    """Of the packaged model, and of one that was trained with dense attention; nothing of what was
    not recorded."""
    parts = []
    if "stream-4m.json" in found:
        parts += [_begins(found["stream-4m.json"]), _table(found["stream-4m.json"])]
        parts.append(
            "The model was trained on 49 in 50 of these files. Its card says what sinks do at this"
            " size: nothing yet."
        )
    if "stream-bytes-dense.json" in found:
        parts.append(_dense(found["stream-bytes-dense.json"]))
    return "\n\n".join(parts)


def _begins(record: Record) -> str:
    there = host(record)
    return _filled(
        f"{record['tokens']:,} bytes of CPython's sources through the packaged model, on"
        f" {there['processors']} cores of a CPU with {there['isa']} (`{' '.join(record['command'])}"
        f"`, {record['wall_seconds'] / 60:.0f} minutes for all four policies; the report is"
        f" `bench/results/{MAIN}/stream-4m.json`):"
    )


def _table(record: Record) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    lines += [_line(record, _of(record, policy), name) for policy, name in _names(record).items()]
    return "\n".join(lines)


def _names(record: Record) -> dict[str, str]:
    sinks, window = record["settings"]["sinks"], record["settings"]["window"]
    dense = _of(record, "dense")["tokens"]
    return {
        "sinks-window": f"sinks + window ({sinks} + {window})",
        "window": f"window ({sinks + window})",
        "recompute": "recompute the window for every byte",
        "dense": f"dense (stopped at {dense:,} bytes)",
    }


def _of(record: Record, policy: str) -> Record:
    (found,) = [one for one in record["policies"] if one["policy"] == policy]
    return dict(found)


def _line(record: Record, run: Record, name: str) -> str:
    first, last = run["first_100k"], run["last_100k"]
    if run["policy"] == "dense":
        cells = (
            f"{run['perplexity']:.1f}", f"{_size(run['kv_bytes_at_end'])}, growing",
            f"{_time(last['ms_per_token_p50'])}, growing",
        )  # fmt: skip
    else:
        cells = (
            f"{first['perplexity']:.2f}, {last['perplexity']:.2f}",
            f"{_size(run['kv_bytes_at_100k'])}, {_size(run['kv_bytes_at_end'])}",
            f"{_time(first['ms_per_token_p50'])}, {_time(last['ms_per_token_p50'])}",
        )
    if run["policy"] == "recompute":
        far = record["versus_recompute"]["last_100k"]["sinks-window"]
        told = f"at {far['positions']:,} places of the last 100k, {_apart(far)} from sinks + window"
        cells = (told, *cells[1:])
    return f"| {' | '.join((name, *cells))} |"


def _dense(record: Record) -> str:
    dense, kept = _of(record, "dense"), ("sinks-window", "window", "recompute")
    stay = [_of(record, name)["last_100k"]["perplexity"] for name in kept]
    versus = record["versus_recompute"]["last_100k"]
    far = max((versus[name] for name in kept[:2]), key=lambda one: abs(one["difference"]))
    return _filled(
        "The case that users have is a model trained with dense attention on short contexts"
        f" (`bytes-dense`, 256 bytes). On {record['tokens']:,} bytes of files held out from its"
        f" training, dense attention goes to a perplexity of {dense['perplexity']:.0f} by"
        f" {dense['tokens']:,} bytes, while sinks + window, window alone and recomputation all"
        f" stay at {_ends(stay)} in the last 100k, within {_apart(far)} of one another"
        f" ([plot](docs/stream-bytes-dense.png); `{' '.join(record['command'])}`)."
    )


def _ends(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _apart(pair: Record) -> str:
    return f"{abs(pair['difference']):.3f} \N{PLUS-MINUS SIGN} {pair['standard_error']:.3f} nats"


def _size(size: float) -> str:
    return f"{size / 1024:g} KiB" if size < 2**20 else f"{size / 2**20:g} MiB"


def _time(ms: float) -> str:
    return f"{1e3 * ms:.0f} us" if ms < 1 else f"{ms:.1f} ms"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)
