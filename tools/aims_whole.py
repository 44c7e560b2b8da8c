# SPDX-License-Identifier: Apache-2.0
"""Aims of whole streams, of the engine around them, and of what a user types."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aim import Aim, Record, geometric, inside, over


def whole() -> Iterator[Aim]:
    for part in (_stream, _exact, _transformers, _video, _runtime, _lanes, _commands):
        yield from part()


def _stream() -> Iterator[Aim]:
    file, family = "stream-4m.json", "endless text"
    what = "four million bytes through the packaged model, sinks + window"
    yield Aim(
        family, f"{what}: resident KV bytes at the end over those at 100k", file,
        lambda record: _policy(record, "kv_bytes_at_end") / _policy(record, "kv_bytes_at_100k"),
        most=1.0,
    )  # fmt: skip
    yield Aim(
        family, f"{what}: bytes of the whole process, the same", file,
        over(("resident_set_bytes", "at_end"), ("resident_set_bytes", "at_100k")), most=1.05,
    )  # fmt: skip
    yield Aim(
        family, f"{what}: time per token, last 100k over first, medians", file,
        lambda record: _last_over_first(record, "ms_per_token_p50"), most=1.05,
    )  # fmt: skip
    yield Aim(
        family, f"{what}: perplexity, last 100k over first", file,
        lambda record: _last_over_first(record, "perplexity"), most=1.0,
    )  # fmt: skip
    yield Aim(
        family, f"{what}: nats above recomputing the window at sampled places of the last 100k, in"
        " standard errors", file, _above_recomputation, most=2.0, unit="",
    )  # fmt: skip


def _policy(record: Record, key: str) -> float:
    (found,) = [one for one in record["policies"] if one["policy"] == "sinks-window"]
    return float(found[key])


def _last_over_first(record: Record, key: str) -> float:
    (found,) = [one for one in record["policies"] if one["policy"] == "sinks-window"]
    return float(found["last_100k"][key] / found["first_100k"][key])


def _above_recomputation(record: Record) -> float:
    found = record["versus_recompute"]["last_100k"]["sinks-window"]
    return float(found["difference"] / found["standard_error"])


def _exact() -> Iterator[Aim]:
    file, family = "check.json", "exactness"
    yield Aim(
        family, "text in chunks of 1, 7, 64 and 257, over windows of evictions: furthest from a"
        " dense oracle", file, lambda record: max(_claims(record, ", chunks of ")), most=1e-4,
        unit="in a logit",
        test="tests/streams/test_equality.py::test_chunks_equal_one_another_and_the_oracle",
    )  # fmt: skip
    for part, test in (
        ("stream", "streams/test_equality.py::test_four_million_is_as_exact_as_four_thousand"),
        ("paged_attention", "ops/test_paged_attention.py::test_error_at_position_4_million"),
    ):
        yield Aim(
            family, f"error at position 4,000,000 over that at 4,000, {part}", file,
            lambda record, part=part: max(_claims(record, f"{part} at position 4,000,000")),
            most=1.5, test=f"tests/{test}",
        )  # fmt: skip
    yield Aim(
        family, "`headrace check`: claims that hold, of all presets, ops and models", file,
        lambda record: sum(one["holds"] for one in record["claims"]) / len(record["claims"]), 1.0,
        unit="%",
    )  # fmt: skip


def _claims(record: Record, words: str) -> list[float]:
    """The figures of the claims that have these words; never none."""
    found = [one["figure"] for one in record["claims"] if words in one["claim"]]
    if not found:
        raise ValueError(f"no claim has {words!r} in {record['command']}")
    return found


def _transformers() -> Iterator[Aim]:
    file, family = "transformers-stream.json", "transformers"
    what = "100,000 tokens of a stock random Llama, `StreamingCache`"
    yield Aim(
        family, f"{what}: tokens", file, inside("summary", "streaming", "tokens"), 100_000, unit="",
    )  # fmt: skip
    yield Aim(
        family, f"{what}: keys and values, last over early", file,
        over(("summary", "streaming", "cache_bytes_late"),
             ("summary", "streaming", "cache_bytes_early")), most=1.0,
    )  # fmt: skip
    yield Aim(
        family, f"{what}: processor time per token, last tenth over first", file,
        inside("summary", "streaming", "late_over_early_cpu"), most=1.05,
    )  # fmt: skip


STOCK = ("endless_chat", "recall")
"""Examples on models of the transformers library."""


def _commands() -> Iterator[Aim]:
    """Of what a user types: how long it takes by itself."""
    for file, what, bar, why in (
        ("quick.json", "`headrace bench --quick`", 30.0, ""),
        ("check.json", "`headrace check`", 600.0, ""),
        ("examples.json", "every example, one after another", 30.0, _imports),
    ):
        yield Aim(
            "commands", what, file, lambda record: record.get("wall_seconds"), most=bar, unit="s",
            why=why,
        )  # fmt: skip


def _imports(record: Record) -> str:
    taken: dict[str, float] = record["examples"]
    stock = [seconds for name, seconds in taken.items() if name.split()[0] in STOCK]
    return (
        f"{len(taken)} processes that each import torch anew, and {sum(stock):.0f} s for the"
        f" {len(stock)} that import transformers too"
    )


def _video() -> Iterator[Aim]:
    def best(record: Record) -> float:
        """Of the clips whose scores lose less than a point, held out."""
        cuts = record["scene_cuts"]
        assert cuts["whole"]["f1"] - cuts["pruned"]["f1"] < 1
        parts = ("held_out", "all")
        lossless = (r for r in record["rows"] if max(r[p]["points_lost"] for p in parts) < 1)
        return max((float(row["speedup_process_s"]) for row in lossless), default=0.0)

    yield Aim(
        "video", "frames per second of processor time from a file to the report, pruned over whole,"
        " the best clip that loses less than a point of next patches and of scene cuts",
        "video.json", best, 2,
    )  # fmt: skip
    yield Aim(
        "video", "points of next patches that pruning costs on held-out frames, the worst clip",
        "video.json", lambda record: max(row["held_out"]["points_lost"] for row in record["rows"]),
        most=1, unit="",
    )  # fmt: skip
    yield Aim(
        "video", "share of the variance of changed patches that is foretold, pruned, held out, the"
        " worst clip (that it stays: 0)", "video.json",
        lambda record: min(row["held_out"]["explained_pruned"] for row in record["rows"]) / 100,
        0.1, unit="%",
    )  # fmt: skip
    yield Aim(
        "video", "two hours of video, a frame a second: p99 of a step in the second over the "
        "first, of the thread's time, in turns", "video-hours.json",
        lambda record: record["last_over_first"]["thread_p99"], most=1.05,
    )  # fmt: skip


def _runtime() -> Iterator[Aim]:
    def share(name: str) -> Callable[[Record], float]:
        def of(record: Record) -> float:
            (row,) = [row for row in record["rows"] if row["streams"] == 32]
            return float(row[name])

        return of

    file = "engine-overhead.json"
    yield Aim(
        "runtime", "engine's share of a step, 32 streams of one token", file,
        share("overhead_share"), most=0.1, unit="%",
    )  # fmt: skip
    yield Aim(
        "runtime", "the same, when every stream is asked for its nll", file,
        share("overhead_share_asked"), most=0.1, unit="%",
    )  # fmt: skip
    file = "soak.json"
    yield Aim(
        "runtime", "random operations on 50 streams, 24 virtual hours, without a problem", file,
        lambda record: 0 if record["problems"] else record["operations"], 1_000_000, unit="",
    )  # fmt: skip
    yield Aim(
        "runtime", "the same: worst difference from the oracle", file,
        lambda record: record["worst_drift"], most=1e-4, unit="in a logit",
    )  # fmt: skip
    yield Aim(
        "runtime", "the same for fewer, memory trimmed: growth of it past a quarter",
        "soak-memory.json", lambda record: record["resident_growth_mib"], most=1.0, unit="MiB",
    )  # fmt: skip


def _lanes() -> Iterator[Aim]:
    def gain(pick: Callable[[list[float]], float]) -> Callable[[Record], float]:
        def measure(record: Record) -> float:
            return pick(
                [
                    row["gain"]
                    for row in record["rows"]
                    if row["exact"] and row["tokens_read"] == row["tokens_written"]
                ]
            )

        return measure

    file, what = "lanes.json", "read and write in one step, a token each, over one after the other"
    yield Aim("lanes", f"{what}: mean of 1, 8 and 32 streams", file, gain(geometric), 1.4)
    yield Aim(
        "lanes", "the same: worst", file, gain(min), 1.4,
        why="a step of 32 streams reads its weights for 32 rows already; one step in place of two "
        "saves what a step costs by itself, and little else",
    )  # fmt: skip
