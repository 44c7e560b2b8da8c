# SPDX-License-Identifier: Apache-2.0
"""The adapter bank under load: a Zipf replay over a large catalog, and more adapters than slots.

    python bench/adapter_bank.py OUT.json [--adapters N] [--requests N] [--folder DIR] [--threads N]

Replays requests: each opens a stream with its adapter and reads a prompt; its delay goes from its
arrival, which does not wait for the server, to its first token. Arrivals are Poisson at `--load` of
what one warm request at a time would fill, measured in the same run. The closed loop is one client
that asks again as soon as it is answered: no queue at all. Writes OUT.json and OUT.png. The catalog
(small adapters of the packaged model, about 2.2 GB for 100,000) is built in a temporary folder, or
in DIR, where it stays for the next run. `--parts` measures some and keeps what OUT.json has of the
others.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import drawn
import numpy as np
import torch
from drawn import PARTS

from headrace import AdapterBank, AdapterStore, Sink, Window, models, wrap
from headrace.adapters import Base
from headrace.bench.loops.adapters import base_of, fill
from headrace.cli import report
from headrace.models import Decoder, DecoderConfig

SLOTS, BATCH, PROMPT = 256, 16, 32
MEMORY = Sink(4) + Window(252)


class Server:
    """An engine that serves whoever waits, `BATCH` at a time."""

    def __init__(self, model: Decoder, base: Base, store: AdapterStore | None, slots: int, **bank):
        self.bank = None
        if store is not None:
            self.bank = AdapterBank(base, slots=slots, store=store, **bank)
        self.engine = wrap(model, memory=MEMORY, adapters=self.bank, pool_pages=12 * BATCH)

    def serve(self, users: list[int], prompt: bytes) -> list[bool]:
        """One step for these users' first tokens; whether each one's adapter was there."""
        warm, streams = [], []
        for user in users:
            stream = self.engine.open(adapter=None if self.bank is None else f"user-{user}")
            streams.append(stream)
            if self.bank is not None:
                warm.append(stream.adapter in self.bank._seats.residents)
        self.engine.step(dict.fromkeys(streams, prompt))
        for stream in streams:
            stream.close()
        return warm or [True] * len(users)


def replay(server: Server, users: np.ndarray, gap: float, prompt: bytes) -> dict[str, list]:
    """Delays in seconds of requests that arrive every `gap` seconds on average."""
    chance = np.random.default_rng(1)
    due = np.cumsum(chance.exponential(gap, len(users)))
    delays, warm, waiting, at = [], [], deque(), 0
    began = time.perf_counter()
    while at < len(users) or waiting:
        now = time.perf_counter() - began
        while at < len(users) and due[at] <= now:
            waiting.append(at)
            at += 1
        if not waiting:
            time.sleep(max(0.0, due[at] - now))
            continue
        batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
        warm += server.serve([int(users[i]) for i in batch], prompt)
        now = time.perf_counter() - began
        delays += [now - due[i] for i in batch]
    return {"delay": delays, "warm": warm}


def closed(server: Server, users: np.ndarray, prompt: bytes) -> dict[str, list]:
    """Delays of requests of which each waits for the one before."""
    delays, warm = [], []
    for user in users.tolist():
        began = time.perf_counter()
        warm += server.serve([user], prompt)
        delays.append(time.perf_counter() - began)
    return {"delay": delays, "warm": warm}


def times(seconds: Any) -> dict[str, float]:
    """Quantiles in milliseconds."""
    ms = 1e3 * np.asarray(seconds)
    if not len(ms):
        return {"count": 0}
    p50, p90, p99 = np.quantile(ms, (0.5, 0.9, 0.99))
    return {
        "count": len(ms), "p50_ms": round(p50, 3), "p90_ms": round(p90, 3), "p99_ms": round(p99, 3),
    }  # fmt: skip


def zipf(count: int, requests: int, exponent: float, seed: int = 0) -> np.ndarray:
    """Users of requests; the most popular are strewn over the catalog."""
    chance = np.random.default_rng(seed)
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    ranks = chance.choice(count, requests, p=weights / weights.sum())
    return chance.permutation(count)[ranks]


def lru(users: np.ndarray, slots: int, skip: int) -> float:
    """Hit rate of a plain dictionary with so many places."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for i, user in enumerate(users.tolist()):
        hits += user in held and i >= skip
        held[user] = held.pop(user, None)
        if len(held) > slots:
            held.popitem(last=False)
    return hits / (len(users) - skip)


def forget_pages(folder: Path) -> None:
    """Takes files out of the page cache, as far as the system does that."""
    for path in folder.glob("segments/*/*"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def curve(seconds: Any) -> list[float]:
    """101 quantiles in milliseconds."""
    ms = 1e3 * np.asarray(seconds)
    return [float(f"{q:.4g}") for q in np.quantile(ms, np.linspace(0, 1, 101))] if len(ms) else []


def build(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The catalog, unless it is there."""
    base = base_of(models.load("bytes-stream"), "bytes-stream")
    with AdapterStore(folder / "catalog") as store:
        if len(store) >= args.adapters:
            return {}
        seconds = fill(store, base, ("query", "value"), (1, 2, 3, 4, 8), count=args.adapters)
        size = sum(p.stat().st_size for p in (folder / "catalog").rglob("*") if p.is_file())
    return {"registered_per_second": round(args.adapters / seconds), "bytes_on_disk": size}


def catalog(args: argparse.Namespace, folder: Path, pages: str) -> dict[str, Any]:
    """The Zipf replay, with the catalog's files in the page cache or not."""
    model = models.load("bytes-stream")
    base, prompt = base_of(model, "bytes-stream"), bytes(range(32, 32 + PROMPT))
    trace = zipf(args.adapters, args.residency + args.requests * 3 // 2, args.zipf)
    before, users = trace[: args.residency], trace[args.residency :]
    skip = args.residency // 5
    bank = {"rank_rows": 8 * SLOTS, "max_rank": 8, "modules": [
        n for n in base.modules if n.rpartition(".")[2] in ("query", "value")
    ]}  # fmt: skip
    with AdapterStore(folder / "catalog", create=False) as store:
        plain, server = Server(model, base, None, 0), Server(model, base, store, SLOTS, **bank)
        if pages == "disk":
            forget_pages(folder / "catalog")
        assert server.bank is not None
        stats, began, hits = server.bank.stats, time.perf_counter(), 0
        for i, user in enumerate(before.tolist()):  # residency alone, no model
            loads = stats.loads
            server.bank.route([server.bank.find(f"user-{user}")], [1]).__exit__()
            hits += stats.loads == loads and i >= skip
        spent = time.perf_counter() - began
        loads, moved = stats.loads, stats.bytes_loaded
        one = closed(server, users[: args.requests // 2], prompt)
        alone, warm = np.array(one["delay"]), np.array(one["warm"])
        gap = float(np.median(alone[warm])) / args.load
        loops = {"hit": alone[warm], "miss": alone[~warm]}
        loops["no adapters"] = closed(plain, users[: args.requests // 4], prompt)["delay"]
        users = users[args.requests // 2 :]
        seen = replay(server, users, gap, prompt)
        delay, warm = np.array(seen["delay"]), np.array(seen["warm"])
        without = replay(plain, users[: args.requests // 4], gap, prompt)["delay"]
        server.bank.close()
    often = np.sort(np.unique(trace, return_counts=True)[1])[::-1]
    kinds = {"all": delay, "hit": delay[warm], "miss": delay[~warm], "no adapters": without}
    return {
        "adapters": args.adapters, "slots": SLOTS, "zipf": args.zipf,
        "requests_without_model": args.residency, "of_these_warm_up": skip,
        "requests": args.requests, "prompt_tokens": PROMPT, "most_streams_in_a_step": BATCH,
        "arrivals_per_second": round(1 / gap, 1),
        "hit_rate": round(hits / (args.residency - skip), 4),
        "hit_rate_of_a_dictionary_with_lru": round(lru(before, SLOTS, skip), 4),
        "hit_rate_of_the_served": round(float(warm.mean()), 4),
        "hit_rate_if_the_most_popular_stayed": round(often[:SLOTS].sum() / often.sum(), 4),
        "loads": loads, "bytes_loaded": moved, "bytes_per_request": round(moved / args.residency),
        "microseconds_per_request_without_model": round(1e6 * spent / args.residency, 1),
        "first_token": {kind: times(some) for kind, some in kinds.items()},
        "first_token_closed_loop": {kind: times(some) for kind, some in loops.items()},
        "curves": {kind: curve(some) for kind, some in kinds.items()}
        | {f"closed loop: {kind}": curve(some) for kind, some in loops.items()},
    }  # fmt: skip


def _timed(server: Server, users: list[int], prompt: bytes) -> float:
    began = time.perf_counter()
    server.serve(users, prompt)
    return time.perf_counter() - began


def oversubscribed(
    model: Decoder, name: str, rank: int, slots: int, rounds: int, folder: Path, load: float
) -> dict[str, Any]:  # fmt: skip
    """Twice as many active adapters as slots, beside a bank with a slot for each; in turns."""
    base, prompt = base_of(model, name), bytes(range(32, 32 + PROMPT))
    parts = ("query", "key", "value", "output", "up", "down")
    active = 2 * slots
    told: dict[str, Any] = {"slots": slots, "active": active, "rank": rank, "curves": {}}
    with tempfile.TemporaryDirectory(dir=folder) as place, AdapterStore(Path(place) / "s") as store:
        fill(store, base, parts, (rank,), count=active)
        told["bytes_of_an_adapter"] = store.open("user-0").size
        modules = [n for n in base.modules if n.rpartition(".")[2] in parts]
        servers = {
            kind: Server(model, base, store, n, rank_rows=n * rank, max_rank=rank, modules=modules)
            for kind, n in (("all resident", active), ("half of them", slots))
        }
        for user in range(active):
            servers["all resident"].bank.load(f"user-{user}")
        chance = np.random.default_rng(0)
        gap = float(np.median([_timed(servers["all resident"], [0], prompt) for _ in range(10)]))
        gap /= load
        seen: dict[str, dict[str, list]] = {
            kind: {"poisson": [], "batch": [], "warm": []} for kind in servers
        }
        for turn in range(4 * rounds):  # short turns: what else the host does is in both
            users = chance.integers(active, size=BATCH)
            sets = [chance.choice(active, BATCH, replace=False).tolist()]
            order = list(servers.items())[:: -1 if turn % 2 else 1]
            for kind, server in order:
                got = replay(server, users, gap, prompt)
                seen[kind]["poisson"] += got["delay"]
                seen[kind]["warm"] += got["warm"]
                seen[kind]["batch"] += [_timed(server, some, prompt) for some in sets]
        for what in ("poisson", "batch"):
            mine = {kind: times(found[what]) for kind, found in seen.items()}
            ratio = mine["half of them"]["p50_ms"] / mine["all resident"]["p50_ms"]
            told[what] = {**mine, "ratio_of_medians": round(ratio, 3)}
            for kind, found in seen.items():
                told["curves"][f"{what}: {kind}"] = curve(found[what])
        told["hit_rate"] = round(float(np.mean(seen["half of them"]["warm"])), 3)
        everyone = {}
        for kind, server in servers.items():  # each has a stream, all of them in every step
            with server.engine as engine:
                streams = [engine.open(adapter=f"user-{u}") for u in range(active)]
                took = []
                for _ in range(6):
                    began = time.perf_counter()
                    engine.step(dict.fromkeys(streams, b"x"))
                    took.append(time.perf_counter() - began)
                everyone[kind] = times(took)
            server.bank.close()
        ratio = everyone["half of them"]["p50_ms"] / everyone["all resident"]["p50_ms"]
        told["all_active_in_one_step"] = {**everyone, "ratio_of_medians": round(ratio, 3)}
    return told


def measure(args: argparse.Namespace, part: str, folder: Path) -> dict[str, Any]:
    """One part."""
    if part.startswith("zipf"):
        return catalog(args, folder, part.rpartition("_")[2])
    if part == "twice_the_slots":
        model = models.load("bytes-stream")
        return oversubscribed(model, "bytes-stream", 8, 32, args.rounds, folder, args.load)
    torch.manual_seed(0)
    shape = {"layers": 8, "width": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "hidden": 4096}
    wide = Decoder(DecoderConfig(**shape, window=252, sinks=4)).eval()
    return oversubscribed(wide, "wide", 16, 16, max(1, args.rounds // 4), folder, args.load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--residency", type=int, default=100_000, help="requests without model")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--load", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    told: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    told = {**report.taken(), **{k: told[k] for k in ("catalog", *PARTS) if k in told}}
    with tempfile.TemporaryDirectory(prefix="adapter-bank-") as temporary:
        folder = Path(temporary) if args.folder is None else args.folder
        if not args.parts or any(part.startswith("zipf") for part in args.parts):
            told.setdefault("catalog", {}).update(build(args, folder))
        for part in args.parts:
            found = measure(args, part, folder)
            load = [round(n, 1) for n in os.getloadavg()[:2]]  # of everybody, on this host
            told[part] = {
                "command": report.command(), "taken": report.now(), "commit": report.commit(),
                "load": load, **found,
            }  # fmt: skip
            print(part, json.dumps({k: v for k, v in found.items() if k != "curves"}), flush=True)
            args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    drawn.adapter_bank(told, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
