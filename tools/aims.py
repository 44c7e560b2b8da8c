# SPDX-License-Identifier: Apache-2.0
"""What the engine aims for, each with the recorded file that shows it: data for docs/aims.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aim import Aim, Record, geometric, inside, mean, note, rows, worst
from aims_speed import loops, scaling, shapes
from machines import MAIN, XEON

__all__ = ["AIMS", "Aim", "geometric", "mean", "rows"]


def _attention() -> Iterator[Aim]:
    file = "bench-paged_attention.json"
    decode = "decode, bf16, 1k to 64k cached tokens, batch 1 to 8"
    yield Aim("attention", f"{decode}: torch SDPA's time, mean", file, mean("decode bf16"), 2.5)
    yield Aim("attention", f"{decode}: the same, worst shape", file, worst("decode bf16"), 1.0)
    yield Aim(
        "attention", f"{decode}: share of the floor, mean", file, mean("decode bf16", "of_floor"),
        0.75, unit="%",
        why={MAIN: "42 to 44% for one and two streams of 1k, whose bytes lie in the cache: reading"
             " 4 MB there takes 25 us, the products over 30; 63 to 100% elsewhere",
             XEON: "53 to 70% where keys lie in the cache: 16 KB of them are read there in 0.4 us"
             " and widened and multiplied in 0.9; 63 to 72% from memory, where a walk over the"
             " pages without any product takes as long as the whole"},
    )  # fmt: skip
    yield Aim(
        "attention", f"{decode}: time over re-indexing off, worst shape", file,
        note("decode bf16", "time over re-indexing off"), most=1.03,
        why={MAIN: "a turned query is multiplied as two bf16, so that lse keeps its digits, another"
             " as one: 10 to 21% of the time where keys come from the cache, at most 4% from 8 x 4k"
             " on",
             XEON: "8 streams of 64k: three pairs of calls of 2 GB in a slow spell of the host;"
             " 0.94 to 1.035 at the other shapes, 0.91 and 0.99 at this one in runs before"},
    )  # fmt: skip
    yield Aim(
        "attention", "decode from int8 pages, 64k cached: time of bf16 pages over it, mean", file,
        mean("decode int8"), 1.5,
    )  # fmt: skip
    file = "bench-attention.json"
    peak = (
        "at window 2048 three times FlexAttention is 83 to 88% of the rate of multiply-adds from"
        " registers, for everything, softmax included; this is 70 to 75% when the processor is"
        " ours alone, and 2.3 to 3.3 times; multiply-adds go at half their rate when it is not"
    )
    for dtype, why in (("bf16", ""), ("fp32", peak)):
        yield Aim(
            "attention", f"prefill {dtype}, 4k and 16k, 4 sinks: FlexAttention's time, worst shape",
            file, worst(f"prefill {dtype}"), 3.0, why={MAIN: why},
        )  # fmt: skip
    yield Aim(
        "attention", "prefill, useful pairs: share of torch's fp32 matrix rate, worst shape", file,
        note("prefill", "share of matmul rate", min), 0.6,
    )  # fmt: skip
    yield Aim(
        "attention", "block-sparse at 20% density: time over dense, worst shape", file,
        note("blocks", "time over dense"), most=1 / 3,
    )  # fmt: skip


def _states() -> Iterator[Aim]:
    yield Aim(
        "states", "gated delta rule, 4,096 tokens: the loop's time over it",
        "bench-gated_delta_rule.json", worst("bf16 4096"), 5.0,
    )  # fmt: skip
    yield Aim(
        "states", "append and absorb in one pass, a token of each stream: time over its bytes",
        "bench-append_absorb.json", note("bf16 64 streams x 1", "time over moving its bytes"),
        most=1.3,
    )  # fmt: skip


def _adapters() -> Iterator[Aim]:
    file, many = "bench-lora_rows.json", "bf16 64 rows, 64 adapters"
    yield Aim(
        "adapters", "64 rows of 64 adapters: gather and bmm's time", file, worst(many), 4.0,
        why={MAIN: "3.9 and 4.1 in two runs, each at the rate of memory"},
    )  # fmt: skip
    yield Aim(
        "adapters", "the same: share of the floor", file, worst(many, "of_floor"), 0.7, unit="%",
        why={MAIN: "16 MB that lie in the cache, which a plain reader of huge pages takes in"
             " 0.27 ms"},
    )  # fmt: skip
    yield Aim(
        "adapters", "512 rows of 8 adapters: the time of a loop over adapters", file,
        worst("bf16 512 rows, 8 adapters"), 2.0,
    )  # fmt: skip
    unpacked = (
        "bf16 is at 74% of its floor; codes are unpacked and multiplied at 4 a cycle and core"
    )
    for many, why in (
        (64, "4 MB of codes a call: what a call costs by itself counts, 25 us warm, more cold"),
        (256, ""),
    ):
        yield Aim(
            "adapters", f"{many} rows of {many} int4 adapters: time over bf16", file,
            note(f"int4 {many} rows, {many} adapters", "time over bf16 adapters"), most=1 / 2.5,
            why={MAIN: why, XEON: unpacked},
        )  # fmt: skip
    yield Aim(
        "adapters", "rows without adapters: the base layer's time over it", file,
        worst("base layer"), 0.95,
    )  # fmt: skip
    file = "adapter-store.json"
    yield Aim(
        "adapter store", "a million records: open, cold", file, inside("cold", "open_s"),
        most=1.0, unit="s",
    )  # fmt: skip
    yield Aim(
        "adapter store", "name to revision, p99", file, inside("warm", "lookup", "p99_us"),
        most=5.0, unit="us",
    )  # fmt: skip
    yield Aim(
        "adapter store", "registrations", file, inside("registration", "registrations_per_s"),
        10_000, unit="/s",
    )  # fmt: skip
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
            why={MAIN: "most of the time is the model's own: without any adapters it is 4 times as"
                 " quick as peft's batch, 5.4 times by ops.linear"} if width == 512 else "",
        )  # fmt: skip


def _over_ours(model: Record) -> float:
    return float(max(model["peft_mixed_over_ours"], model["peft_mixed_over_ours_exact"]))


def _scores() -> Iterator[Aim]:
    file = "bench-block_score.json"
    for kind, many in (
        ("mean", "mean bf16 1000000"), ("bounds", "bounds bf16 1000000"), ("bits", "bits 1000000"),
    ):  # fmt: skip
        yield Aim(
            "retrieval", f"score a million cached tokens by {kind}: share of the floor", file,
            worst(many, "of_floor"), 1 / 1.6, unit="%",
            why={MAIN: "58 and 64% in two runs: 1/16 of the bytes of keys, and as many products of"
                 " bits"},
        )  # fmt: skip
        yield Aim(
            "retrieval", f"the same: the time of the torch expression over it, {kind}", file,
            worst(many), 3.0,
        )  # fmt: skip


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


def _over_window(budget: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        curves = record["stream"]["curves"]
        ours, window = (curves[k][budget]["answered"] for k in ("largest logit", "window only"))
        return float(ours / max(window, 1 / record["stream"]["facts"]))

    return measure


def _dial(p: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        told = record["stream"]["dial"][p]
        return float(told["reached"] / told["could_be_reached"])

    return measure


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


def _pruning() -> Iterator[Aim]:
    file, frames = "bench-similarity.json", "uint8 1920x1080"
    yield Aim(
        "pruning", "pixel gate on 1080p RGB frames, worst patch size", file,
        lambda record: min(8 / row["ours_s"] for row in rows(record, frames)), 400, unit="/s",
    )  # fmt: skip
    yield Aim(
        "pruning", "the same: share of the floor", file, worst(frames, "of_floor"), 1 / 1.5,
        unit="%",
    )  # fmt: skip
    yield Aim("pruning", "the same: the time of torch over it", file, worst(frames), 3.0)
    file, chain = "bench-compact.json", "similarity, select, compact"
    yield Aim(
        "pruning", "similarity, select and compact, 10,000 x 3584 bf16: share of the floor", file,
        worst(chain, "of_floor"), 1 / 1.6, unit="%",
    )  # fmt: skip
    yield Aim("pruning", "the three: the time of torch over it", file, worst(chain), 3.0)

    def furthest(record: Record) -> float:
        mine = [r for r in record["rows"]
                if (r["form"], r["reference"]) == ("pixels", "last kept")]  # fmt: skip
        return max(float(r["worst"] / r["threshold"]) for r in mine)

    yield Aim(
        "pruning", "three real clips: furthest from what was last kept, over the threshold",
        "clips.json", furthest, most=1.0, unit="x",
    )  # fmt: skip


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


AIMS = [
    *_attention(), *_states(), *_adapters(), *_scores(), *_archive(), *_pruning(), *_video(),
    *_runtime(),
    *_lanes(), *loops(), *scaling(), *shapes(),
]  # fmt: skip
