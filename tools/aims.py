# SPDX-License-Identifier: Apache-2.0
"""What the engine aims for, each with the recorded file that shows it: data for docs/aims.md.

Here those of single kernels; aims_kept.py has stores and archives, aims_whole.py whole streams,
aims_speed.py every op beside its peers.
"""

from __future__ import annotations

from collections.abc import Iterator

from aim import Aim, Record, between, geometric, mean, note, rows, worst
from aims_kept import kept
from aims_speed import loops, scaling, shapes
from aims_whole import whole
from machines import XEON, ZEN4, ZEN5

__all__ = ["AIMS", "Aim", "geometric", "mean", "rows"]

DECODE = "decode, bf16, 1k to 64k cached tokens, batch 1 to 8"
REINDEXED = "time over re-indexing off"


def _decode() -> Iterator[Aim]:
    file = "bench-paged_attention.json"
    yield Aim("attention", f"{DECODE}: torch SDPA's time, mean", file, mean("decode bf16"), 2.5)
    yield Aim("attention", f"{DECODE}: the same, worst shape", file, worst("decode bf16"), 1.0)
    yield Aim(
        "attention", f"{DECODE}: share of the floor, mean", file, mean("decode bf16", "of_floor"),
        0.75, unit="%",
        why={ZEN5: _decode_in_cache, ZEN4: _decode_multiplied, XEON: _decode_widened},
    )  # fmt: skip
    yield Aim(
        "attention", f"{DECODE}: time over re-indexing off, worst shape", file,
        note("decode bf16", REINDEXED), most=1.03,
        why={ZEN5: _turned, ZEN4: _turned, XEON: _worst_turned},
    )  # fmt: skip
    yield Aim(
        "attention", "decode from int8 pages, 64k cached: time of bf16 pages over it, mean", file,
        mean("decode int8"), 1.5,
    )  # fmt: skip
    yield Aim(
        "attention", "decode from fp8 pages, 64k cached: time of bf16 pages over it, worst shape",
        file, worst("decode fp8"), 1.0, why=CODES,
    )  # fmt: skip
    yield Aim(
        "attention", "the same: share of the floor, mean", file, mean("decode fp8", "of_floor"),
        0.75, unit="%", why=_codes,
    )  # fmt: skip


CODES = (
    "no instruction multiplies e4m3, or widens it: keys are made floats before they are multiplied,"
    " and values, or pairs of bf16 where these are multiplied; int8 is multiplied as it is"
)


def _codes(record: Record) -> str:
    each = {kind: mean(f"decode {kind}", "of_floor")(record) for kind in ("int8", "fp8")}
    return f"the same bytes as int8, which is at {each['int8']:.0%}, and made other numbers first"


def _decode_in_cache(record: Record) -> str:
    few = between(record, "of_floor", "decode bf16 B1 1k", "decode bf16 B2 1k")
    rest = between(record, "of_floor", *_but("decode bf16 B1 1k", "decode bf16 B2 1k"))
    return (
        f"{few} for one and two streams of 1k, whose bytes lie in the cache, where the products"
        f" take longer than reading; {rest} elsewhere"
    )


def _near_and_far(record: Record) -> tuple[str, str]:
    """Shares of the floor with few cached tokens, which may lie in the cache, and with many."""
    few, many = (_at("1k"), _at("4k")), (_at("16k"), _at("64k"))
    near, far = (between(record, "of_floor", *one, *other) for one, other in (few, many))
    return near, far


def _decode_multiplied(record: Record) -> str:
    near, far = _near_and_far(record)
    return (
        f"{near} with 1k and 4k cached tokens, which the cache holds for few streams: there the"
        " products, of which a turned query takes two where the floor counts one, take longer than"
        f" reading; {far} with more"
    )


def _decode_widened(record: Record) -> str:
    near, far = _near_and_far(record)
    return (
        f"{near} with 1k and 4k cached tokens, {far} with more: without bf16 instructions every key"
        " and value is widened before it is multiplied, beside a floor that only reads"
    )


def _at(many: str) -> list[str]:
    return [f"decode bf16 B{batch} {many} " for batch in (1, 2, 8)]


def _but(*left_out: str) -> list[str]:
    every = [name for many in ("1k", "4k", "16k", "64k") for name in _at(many)]
    return [name for name in every if not name.startswith(left_out)]


def _costs(record: Record) -> dict[str, float]:
    """Of re-indexing, by shape."""
    return {row["shape"]: row["notes"][REINDEXED] for row in rows(record, "decode bf16")}


def _turned(record: Record) -> str:
    costs = [cost for shape, cost in _costs(record).items() if " 16k " in shape or " 64k " in shape]
    return (
        "a turned query is multiplied as two bf16, so that lse keeps its digits, another as one,"
        f" which shows where keys come from the cache; at most {max(costs):.2f} from 16k on"
    )


def _worst_turned(record: Record) -> str:
    costs = _costs(record)
    shape = max(costs, key=lambda one: costs[one])
    others = [cost for one, cost in costs.items() if one != shape]
    return (
        f"{shape.removeprefix('decode bf16 ')}, the median of few pairs of calls;"
        f" {min(others):.2f} to {max(others):.2f} at the other shapes"
    )


def _prefill() -> Iterator[Aim]:
    file = "bench-attention.json"
    for dtype, why in (("bf16", ""), ("fp32", {ZEN5: _peak, ZEN4: _peak})):
        yield Aim(
            "attention", f"prefill {dtype}, 4k and 16k, 4 sinks: FlexAttention's time, worst shape",
            file, worst(f"prefill {dtype}"), 3.0, why=why,
        )  # fmt: skip
    yield Aim(
        "attention", "prefill, useful pairs: share of torch's fp32 matrix rate, worst shape", file,
        note("prefill", "share of matmul rate", min), 0.6, why=_edges,
    )  # fmt: skip
    yield Aim(
        "attention", "block-sparse at 20% density: time over dense, worst shape", file,
        note("blocks", "time over dense"), most=1 / 3,
    )  # fmt: skip


def _edges(record: Record) -> str:
    def share(window: int) -> str:
        of_window = [row for row in rows(record, "prefill") if f"window {window} " in row["shape"]]
        found = [row["notes"]["share of matmul rate"] for row in of_window]
        return f"{min(found):.0%} to {max(found):.0%}"

    return (
        f"{share(512)} with a window of 512, {share(2048)} with one of 2,048: of a short window"
        " more lies in tiles that its edges cut, whose other pairs are multiplied and not counted"
    )


def _peak(record: Record) -> str:
    found = [(row["flops"] / row["rates"][1], row) for row in rows(record, "prefill fp32")]
    wanted = [3 * least / row["peer_s"] for least, row in found]
    ours = [least / row["ours_s"] for least, row in found]
    return (
        f"three times FlexAttention would be {min(wanted):.0%} to {max(wanted):.0%} of the rate of"
        " multiply-adds from registers, for everything, softmax included; ours is at"
        f" {min(ours):.0%} to {max(ours):.0%}"
    )


def _states() -> Iterator[Aim]:
    yield Aim(
        "states", "gated delta rule, 4,096 tokens: the loop's time over it",
        "bench-gated_delta_rule.json", worst("bf16 4096"), 5.0,
    )  # fmt: skip
    file = "bench-append_absorb.json"
    yield Aim(
        "states", "append and absorb in one pass, a token of each of 64 streams: time over its"
        " bytes", file, note("bf16 64 streams x 1", "time over moving its bytes"), most=1.3,
    )  # fmt: skip
    yield Aim(
        "states", "the same, of one stream, worst dtype", file, lambda record: _alone(record)[0],
        most=1.3, why=lambda record: "a megabyte that lies in the cache, moved in"
        f" {1e6 * _alone(record)[1]:.0f} us: what a call costs by itself counts",
    )  # fmt: skip


def _alone(record: Record) -> tuple[float, float]:
    """The worst of one stream that appends one token: time over moving its bytes, seconds."""
    of = [row for row in record["rows"] if row["shape"].endswith(" 1 streams x 1 tokens")]
    return max((row["notes"]["time over moving its bytes"], row["ours_s"]) for row in of)


def _adapters() -> Iterator[Aim]:
    file, many = "bench-lora_rows.json", "bf16 64 rows, 64 adapters"
    yield Aim(
        "adapters", "64 rows of 64 adapters: gather and bmm's time", file, worst(many), 4.0,
    )  # fmt: skip
    yield Aim(
        "adapters", "the same: share of the floor", file, worst(many, "of_floor"), 0.7, unit="%",
        why={ZEN5: lambda record: "16 MB that lie in the cache, which a plain reader of huge pages"
             f" takes in {1e3 * rows(record, many)[0]['floor_s']:.2f} ms"},
    )  # fmt: skip
    yield Aim(
        "adapters", "512 rows of 8 adapters: the time of a loop over adapters", file,
        worst("bf16 512 rows, 8 adapters"), 2.0,
    )  # fmt: skip
    for many_int4, why in (
        (64, "4 MB of codes a call: what a call costs by itself counts"), (256, ""),
    ):  # fmt: skip
        yield Aim(
            "adapters", f"{many_int4} rows of {many_int4} int4 adapters: time over bf16", file,
            note(f"int4 {many_int4} rows, {many_int4} adapters", "time over bf16 adapters"),
            most=1 / 2.5, why={ZEN5: why, XEON: _unpacked},
        )  # fmt: skip
    yield Aim(
        "adapters", "rows without adapters: the base layer's time over it", file,
        worst("base layer"), 0.95,
    )  # fmt: skip


def _unpacked(record: Record) -> str:
    (bf16,) = rows(record, "bf16 64 rows, 64 adapters")
    return f"bf16 is at {bf16['of_floor']:.0%} of its floor, while codes have to be unpacked"


def _scores() -> Iterator[Aim]:
    file = "bench-block_score.json"
    for kind, many in (
        ("mean", "mean bf16 1000000"), ("bounds", "bounds bf16 1000000"), ("bits", "bits 1000000"),
    ):  # fmt: skip
        yield Aim(
            "retrieval", f"score a million cached tokens by {kind}: share of the floor", file,
            worst(many, "of_floor"), 1 / 1.6, unit="%",
            why={ZEN5: "1/16 of the bytes of keys, and as many products of bits"},
        )  # fmt: skip
        yield Aim(
            "retrieval", f"the same: the time of the torch expression over it, {kind}", file,
            worst(many), 3.0,
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


AIMS = [
    *_decode(), *_prefill(), *_states(), *_adapters(), *_scores(), *_pruning(), *kept(), *whole(),
    *loops(), *scaling(), *shapes(),
]  # fmt: skip
