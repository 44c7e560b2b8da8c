# SPDX-License-Identifier: Apache-2.0
"""Aims of what is kept beside the model: adapters in a store and a bank, and archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aim import Aim, Record, inside


def kept() -> Iterator[Aim]:
    yield from _store()
    yield from _bank()
    yield from _archive()


def _store() -> Iterator[Aim]:
    file, family = "adapter-store.json", "adapter store"
    yield Aim(
        family, "a million records: open, cold", file, inside("cold", "open_s"), most=1.0, unit="s",
    )  # fmt: skip
    yield Aim(
        family, "name to revision, p99", file, inside("warm", "lookup", "p99_us"), most=5.0,
        unit="us",
    )  # fmt: skip
    yield Aim(
        family, "registrations", file, inside("registration", "registrations_per_s"), 10_000,
        unit="/s",
    )  # fmt: skip
    yield Aim(
        family, "killed while it writes, opened again: nothing lost, nothing half, `verify` clean",
        file, lambda record: _clean(record["killed"]), 200, unit="kills",
        test="tests/adapters/test_processes.py::test_killed_while_writing",
    )  # fmt: skip


def _clean(killed: Record) -> float:
    """How many kills, none if anything was found to be wrong after one: of an archive there is no
    record then."""
    return 0 if killed.get("problems") else float(killed["kills"])


def _bank() -> Iterator[Aim]:
    file = "adapter-bank.json"
    for part, model in (("twice_the_slots", "2.8M"), ("twice_the_slots_wide", "100M")):
        yield Aim(
            "adapter bank", f"twice as many adapters as slots, {model} model: first token over all "
            "resident, medians", file, inside(part, "poisson", "ratio_of_medians"), most=1.5,
        )  # fmt: skip
    for at, width in enumerate((128, 256, 512)):
        yield Aim(
            "adapter bank", f"64 requests on 64 adapters, a Llama {width} wide: peft's mixed batch "
            "over ours, the quicker of plain and exact", "adapter-peft.json",
            lambda found, at=at: _over_ours(found["models"][at]), 5.0,
            why=lambda found, at=at: _models_own(found["models"][at]),
        )  # fmt: skip


def _over_ours(model: Record) -> float:
    return float(max(model["peft_mixed_over_ours"], model["peft_mixed_over_ours_exact"]))


def _models_own(model: Record) -> str:
    peft, ms = model["ms"]["peft, mixed batch"], model["ms"]
    plain, exact = (peft / ms[name] for name in ("no adapters", "no adapters, exact"))
    return (
        f"most of the time is the model's own: without any adapters it is {plain:.1f} times as"
        f" quick as peft's batch, {exact:.1f} times by ops.linear"
    )


def _archive() -> Iterator[Aim]:
    file, family = "archive.json", "archive"
    for kind, rate in (("disk", "the sequential read of its files"), ("host", "one copy")):
        yield Aim(
            family, f"64 random pages of 1 MiB from {kind}: share of the rate of {rate}", file,
            inside("rates", kind, "of_floor"), 0.8, unit="%",
        )  # fmt: skip
    facts = "facts in 10^6 tokens"
    yield Aim(
        family, f"{facts}: bytes that ReKV (64 frames of 196) moves over ours for as many answers",
        file, inside("stream", "rekv", "bytes_over_ours"), 4.0,
    )  # fmt: skip
    yield Aim(
        family, f"{facts}: answered with 16 pages over a window of equal memory, index included",
        file, _over_window("16"), 1.0,
    )  # fmt: skip
    yield Aim(
        family, f"{facts}: most pages of 64 held while reading, 4 sinks and a window of 512", file,
        inside("stream", "most_pages_while_reading"), most=11.0, unit="pages",
    )  # fmt: skip
    yield Aim(
        family, f"{facts}: a question scored against every page", file,
        inside("stream", "score_ms"), most=70.0, unit="ms",
    )  # fmt: skip
    for p in ("0.5", "0.9"):
        yield Aim(
            family, f"the dial at p = {p}: reached, of the questions for which 192 pages can do it",
            file, _dial(p), 0.8, unit="%",
        )  # fmt: skip
    yield Aim(
        family, "killed while it writes, opened again: no promised page lost or damaged",
        "archive-kills.json", lambda record: _clean(record["killed"]), 200, unit="kills",
        test="tests/memory/test_disk.py::"
        "test_a_writer_killed_at_random_points_loses_nothing_it_promised",
    )  # fmt: skip


def _over_window(budget: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        curves = record["stream"]["curves"]
        ours, window = (curves[k][budget]["answered"] for k in ("largest logit", "window only"))
        return float(ours / max(window, 1 / record["stream"]["facts"]))

    return measure


def _dial(p: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        told: dict[str, Any] = record["stream"]["dial"][p]
        return float(told["reached"] / told["could_be_reached"])

    return measure
