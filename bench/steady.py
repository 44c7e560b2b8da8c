# SPDX-License-Identifier: Apache-2.0
"""Whether a step of an endless stream costs more after hours than in the beginning.

    python bench/steady.py OUT.json [--chunks 7200] [--model NAME] [--motion 1000] [--repeats 3]

StreamingVLM: a chunk of a second of video a time, each with the replies that the preset lets it
make, of random tokens and of random lengths, the same for all streams. A stream goes through the
first half of the chunks (an hour of 7200); the second half is timed in turns with the first half of
another, so that whatever else the machine does slows both.

MotionStream: the last 100 chunks of a stream of so many, in turns with the first 100 of another; as
often as --repeats says, a fresh pair each time.

Milliseconds of a chunk, by the wall clock and by the thread's own time, and what is held.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from headrace import Engine, models, presets
from headrace.bench.loops.rings import LARGE
from headrace.cli import report
from headrace.models import Decoder, DecoderConfig, Denoiser, DenoiserConfig

CLOCKS, QUANTILES, EDGE = ("wall", "thread"), (0.5, 0.9, 0.99), 100
FRAME, LONGEST = 32, 20
"""Tokens of a chunk, and the most of a reply to it; a quarter of the chunks has one."""
SMALL = DecoderConfig(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, hidden=128)
Times = dict[str, list[float]]


def timed(run: Callable[[], Any], into: Times) -> None:
    """One chunk."""
    begun, busy = time.perf_counter(), time.thread_time()
    run()
    mine, wall = time.thread_time() - busy, time.perf_counter() - begun
    into.setdefault("wall", []).append(1e3 * wall)
    into.setdefault("thread", []).append(1e3 * mine)


def quantiles(times: Times) -> dict[str, float]:
    return {
        f"{clock}_ms_p{100 * q:g}": float(torch.tensor(times[clock]).double().quantile(q))
        for clock in CLOCKS
        for q in QUANTILES
    }


def beside(first: dict[str, Any], last: dict[str, Any]) -> dict[str, float]:
    """The last over the first."""
    names = (f"{clock}_ms_p{100 * q:g}" for clock in CLOCKS for q in QUANTILES)
    return {name: last[name] / first[name] for name in names}


class Watching:
    """A stream of StreamingVLM; chunks and replies are those of an hour, over and over."""

    def __init__(self, engine: Engine, hour: int) -> None:
        self.stream, self.at, self.hour, self.vocab = engine.open(), 0, hour, engine.vocab
        self.stream.feed(self._tokens("header", 7))

    def _tokens(self, what: str, count: int) -> Tensor:
        return torch.tensor(Random(what).choices(range(self.vocab - 1), k=count))

    def step(self) -> list[int]:
        """Reads a second, and replies. The token that ends a reply is none of those said."""
        number = self.at % self.hour
        chunk, draw = self._tokens(f"chunk {number}", FRAME), Random(f"reply {number}")
        self.at += 1
        return presets.streaming_vlm.comment(
            self.stream,
            chunk,
            self.at,
            end=torch.tensor([self.vocab - 1]),
            longest=draw.choice((0, 0, 0, draw.randint(1, LONGEST))),
            choose=lambda _: draw.randrange(self.vocab - 1),
        )

    def row(self, times: Times) -> dict[str, Any]:
        held = {"chunks": self.at, "alive": self.stream.alive, "pages": len(self.stream.pages)}
        row = held | {"resident_set_bytes": report.resident_set()} | quantiles(times)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        return row


def watching(model: Any, chunks: int) -> dict[str, Any]:
    """StreamingVLM over so many chunks."""
    with presets.streaming_vlm(model, exact=False) as engine:
        half = chunks // 2
        old, young = Watching(engine, half), Watching(engine, half)
        alone: Times = {}
        for _ in range(half):
            timed(old.step, alone)
        before = old.row(alone)
        times: dict[Watching, Times] = {old: {}, young: {}}
        for i in range(half):
            for one in (old, young) if i % 2 else (young, old):
                timed(one.step, times[one])
        first, last = young.row(times[young]), old.row(times[old])
    return {
        "preset": "streaming_vlm", "tokens_of_a_chunk": FRAME, "longest_reply": LONGEST,
        "alone": before, "in_turns": {"first": first, "last": last},
        "last_over_first": beside(first, last),
        "pages_growth": last["pages"] - first["pages"],
    }  # fmt: skip


def moving(chunks: int, repeats: int) -> dict[str, Any]:
    """MotionStream over so many chunks."""
    denoiser = Denoiser(DenoiserConfig(**LARGE), seed=1).eval()
    c = denoiser.config
    still, motion = torch.zeros(c.tokens, c.channels), torch.Generator().manual_seed(0)
    first: Times = {}
    last: Times = {}
    held: set[int] = set()
    for _ in range(repeats):
        with (
            presets.motion_stream(denoiser, exact=False) as old,
            presets.motion_stream(denoiser, exact=False) as young,
        ):

            def step(ring: Any, drawn: Tensor) -> Sequence[Any]:
                return ring.tick(still, condition=drawn) + ring.drain()

            for _ in range(chunks - EDGE):
                step(old, torch.randn(c.condition, generator=motion))
            for i in range(EDGE):
                drawn = torch.randn(c.condition, generator=motion)
                pair = [(young, first), (old, last)]
                for ring, times in reversed(pair) if i % 2 else pair:
                    timed(lambda ring=ring, drawn=drawn: step(ring, drawn), times)
                held.add(old.pool.live_pages)
    rows = {"first": quantiles(first), "last": quantiles(last)}
    print({name: {k: round(v, 3) for k, v in row.items()} for name, row in rows.items()})
    return {
        "preset": "motion_stream", "chunks": chunks, "of_each": EDGE * repeats,
        "in_turns": rows, "last_over_first": beside(rows["first"], rows["last"]),
        "pages": sorted(held),
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out", type=Path)
    p.add_argument("--chunks", type=int, default=7200, help="of StreamingVLM, one a second")
    p.add_argument("--model", help="a packaged one (default: two random layers)")
    p.add_argument("--motion", type=int, default=1000, help="chunks of MotionStream")
    p.add_argument("--repeats", type=int, default=3, help="of MotionStream")
    args = p.parse_args()
    if args.chunks < 2 or args.motion <= EDGE or args.repeats < 1:
        p.error(f"expected 2 chunks, {EDGE + 1} of motion and 1 repeat, or more")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    taken = report.taken()
    model = models.load(args.model) if args.model else Decoder(SMALL).eval()
    rows = [watching(model, args.chunks), moving(args.motion, args.repeats)]
    for row in rows:
        ratios = {k: round(v, 3) for k, v in row["last_over_first"].items()}
        print(f"{row['preset']}, last over first:", ratios)
    args.out.write_text(json.dumps({**taken, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
