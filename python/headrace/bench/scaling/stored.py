# SPDX-License-Identifier: Apache-2.0
"""How lookups grow with the adapters in a store, and questions with the tokens cached."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ...adapters import AdapterConfig, AdapterStore, Module, NewAdapter
from ..loops import recall as asked
from ..loops.turns import rounds
from ..scores import retrieve
from ..timing import reader, samples
from .curve import Point, Told, Work

SHAPES = {f"layers.{i}.q": (64, 64) for i in range(2)}
CONFIG = AdapterConfig("base", tuple(Module(n, 1, 64, 64, 1.0, "BF16") for n in SHAPES))
OWNERS = 10_000


def small(serials: Iterable[int], parents: list[str]) -> list[NewAdapter]:
    """Rank-1 adapters of two modules, one owner in ten thousand, every tenth with a parent."""
    serials = list(serials)
    g = torch.Generator().manual_seed(serials[0])
    w = torch.randn(len(serials), 4, 64, generator=g).to(torch.bfloat16)
    made = []
    for i, serial in enumerate(serials):
        tensors = {}
        for j, name in enumerate(SHAPES):
            tensors[f"{name}.a"] = w[i, 2 * j : 2 * j + 1]
            tensors[f"{name}.b"] = w[i, 2 * j + 1].view(64, 1)
        parent = (parents[serial // 10 % len(parents)],) if parents and serial % 10 == 0 else ()
        made.append(
            NewAdapter(CONFIG, tensors, f"user-{serial:07d}", f"o{serial % OWNERS}", parent)
        )
    return made


def adapters(quick: bool, told: Told) -> Iterator[Point]:
    """A store that is filled up, and asked at every factor of ten; files in the page cache."""
    sizes = (100, 1000) if quick else (1000, 10_000, 100_000, 1_000_000)
    chance, batch = random.Random(0), 100 if quick else 1000
    with (
        tempfile.TemporaryDirectory(prefix="bench-store-") as folder,
        AdapterStore(Path(folder) / "store") as store,
    ):
        store.add_base("base", SHAPES)
        for size in sizes:
            while len(store) < size:
                at = len(store)
                new = small(range(at, min(at + batch, size)), [])
                began = time.perf_counter()
                store.add_many(new)
                if len(store) * 2 > size:
                    yield "register", size, [(time.perf_counter() - began) / len(new)]
                told(f"adapters: {len(store):,} of {size:,}")
            calls: dict[str, Callable[[str], Any]] = {
                "name to revision": store.resolve, "open": store.open,
            }  # fmt: skip
            for name, call in calls.items():
                call("user-0000000")
                for _ in range(200 if quick else 5000):
                    one = f"user-{chance.randrange(size):07d}"
                    began = time.perf_counter()
                    call(one)
                    yield name, size, [time.perf_counter() - began]


def cached(quick: bool, told: Told) -> Iterator[Point]:
    """The best 64 blocks of a layer for a query, in turns with torch and a read of its bytes."""
    for tokens in (8192, 16384) if quick else (8192, 32768, 131_072, 524_288, 1_048_576):
        told(f"cached: {tokens:,} tokens")
        count = 1 if quick else min(64, 1_048_576 // tokens)  # together larger than a cache
        case = retrieve(tokens, count, "bounds")
        error, tolerance = case.check()
        if error > tolerance:
            raise ValueError(f"cached: {case.shape}: off by {error:.1e}, more than {tolerance:.1e}")
        runs = {"score and select": case.ours, "reading as many bytes": reader(case.bytes)}
        runs |= {f"the same, {name}": run for name, run in case.rivals.items()}
        for name, taken in samples(runs, 0.1 if quick else 1.0).items():
            yield name, tokens, [seconds / count for seconds in taken]


def recall(quick: bool, told: Told) -> Iterator[Point]:
    """What `headrace.bench.loops.recall` asks: seconds of every question. All streams take turns,
    so that a slow spell of the disk, past whose cache they read, falls on all of them."""
    loop = asked.LOOP
    with ExitStack() as stack:
        sizes = []
        for size in loop.sizes(quick):
            stack.callback(size.close)
            sizes.append(size)
            error = size.error()
            if not error <= size.tolerance:
                raise ValueError(f"recall: {size.at:,} tokens: off by {error:.1e}")
        for turn in range(loop.turns(quick)):
            for size in sizes:
                told(f"recall: {size.at:,} tokens, turn {turn + 1}")
                for name, (done,) in rounds(loop, size, 1, None).items():
                    yield name, size.at, list(done.lags)


ADAPTERS = Work(
    "adapters", "A store of small adapters", "adapters in the store", "an adapter", adapters
)
CACHED = Work(
    "cached", "The best 64 blocks by bounds, 8 kv heads of 128", "tokens cached",
    "a layer", cached, 1.0,
)  # fmt: skip
RECALL = Work(
    "recall", "A question to a stream on disk, 16 pages recalled", "tokens read", "a question",
    recall, 1.0,
)  # fmt: skip
