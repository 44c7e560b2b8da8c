# SPDX-License-Identifier: Apache-2.0
"""The adapter store at a million records: built, opened, looked up, searched, killed, filled up.

    python bench/adapter_store.py OUT.json [--records N] [--batch N] [--kills N] [--folder DIR]

Builds a store of small adapters in a folder of DIR (about 5.5 KB a record; taken away at the end)
and writes what it saw as JSON. Every batch is one `add_many`: when that returns, the blobs and
their folder have been through fsync and LMDB has synced the commit, so all of the batch is on the
disk. Killing ends a process, not the machine. `--kills 0` leaves that part out. Where a private
tmpfs can be mounted (root on Linux), the store also runs into full disks of several sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.adapters import AdapterConfig, AdapterStore, Module
from headrace.bench.scaling.stored import OWNERS, SHAPES, small
from headrace.cli import report

ROOT = Path(__file__).resolve().parents[1]
SMALL_DISKS = (1, 2, 3, 5, 8)  # MiB


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Percentiles of times, in microseconds."""
    us = np.fromiter(seconds, float) * 1e6
    at = {"p50_us": 50, "p99_us": 99, "p99_9_us": 99.9, "max_us": 100}
    return {"n": len(us)} | {k: round(float(np.percentile(us, p)), 3) for k, p in at.items()}


def each(call: Callable[[Any], Any], arguments: Iterable[Any]) -> dict[str, float]:
    """Times call(argument) one by one. The clock's own 0.05 us are in it."""
    clock, times = time.perf_counter_ns, []
    for argument in arguments:
        start = clock()
        call(argument)
        times.append(clock() - start)
    return spread(t * 1e-9 for t in times)


class Pauses(threading.Thread):
    """Sees when this whole process stood still (stopped, or its machine was), which is not the
    store's doing. Waiting for the disk is no pause: this thread goes on meanwhile.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        last = time.perf_counter()
        while True:
            time.sleep(0.02)
            now = time.perf_counter()
            if now - last > 0.5:
                self.seconds += now - last
            last = now


def build(path: Path, records: int, batch: int) -> dict[str, Any]:
    """Registers everything, names in random order."""
    order = list(range(records))
    random.Random(0).shuffle(order)
    spent, parents, pauses, own, queued = [], [], Pauses(), 0.0, 0.0
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    with AdapterStore(path) as store:
        store.add_base("base", SHAPES)
        for start in range(0, records, batch):
            new = small(order[start : start + batch], parents)
            t, stood, cpu = time.perf_counter(), pauses.seconds, time.process_time()
            waited = _waited()
            digests = store.add_many(new)
            spent.append(time.perf_counter() - t - (pauses.seconds - stood))
            own += time.process_time() - cpu
            queued += _waited() - waited
            parents = parents or digests[:100]
        wall = time.perf_counter() - begun
        scored = [(f"user-{s:07d}", "accuracy", (s * 7919 % 10007) / 10007) for s in order[::10]]
        t = time.perf_counter()
        store.evaluate_many(scored, by="bench")
        evaluated = time.perf_counter() - t
    tenth = max(1, len(spent) // 10)
    rate = lambda times: round(batch * len(times) / sum(times))  # noqa: E731
    return {
        "records": records,
        "batch": batch,
        "registrations_per_s": round(records / sum(spent)),
        "registrations_per_s_first_tenth": rate(spent[:tenth]),
        "registrations_per_s_last_tenth": rate(spent[-tenth:]),
        "registrations_per_s_of_processor_time": round(records / own),
        "registrations_per_s_but_for_waits_for_a_processor": round(records / (sum(spent) - queued)),
        "load_before_and_after": [round(n, 1) for n in (load, os.getloadavg()[0])],
        "stood_still_s": round(pauses.seconds, 1),
        "registrations_per_s_with_making_the_weights": round(records / wall),
        "batch_s": {p: round(float(np.percentile(spent, p)), 4) for p in (50, 99, 100)},
        "evaluations_per_s": round(len(scored) / evaluated),
        "catalog_bytes_per_record": round(_used(path / "catalog") / records),
        "blob_bytes_per_record": round(_used(path / "segments") / records),
    }


def _waited() -> float:
    """Seconds that this thread could have run and others had all processors; 0 where not told."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
    except OSError:
        return 0.0


def _used(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


def ask(path: Path, cold: bool) -> dict[str, Any]:
    """What a process that opens the store sees. cold: the catalog was taken out of memory."""
    before = report.resident_set() or 0
    t = time.perf_counter()
    store = AdapterStore(path, create=False)
    opened = time.perf_counter() - t
    n = len(store)
    rng = random.Random(1)
    name = lambda: f"user-{rng.randrange(n):07d}"  # noqa: E731
    names = [name() for _ in range(min(n, 200_000))]
    found: dict[str, Any] = {"open_s": round(opened, 5)}
    found["first_lookup_us"] = each(store.resolve, names[:1])["max_us"]
    found["lookup_first_touch"] = each(store.resolve, names)
    if cold:
        return found
    found["lookup"] = each(store.resolve, [name() for _ in range(min(n, 1_000_000))])
    found["open_adapter"] = each(store.open, names[:20_000])
    found["show"] = each(store.show, names[:20_000])
    some = [f"o{rng.randrange(OWNERS)}" for _ in range(500)]
    heads = list({p for x in range(0, n, 10) for p in store.show(f"user-{x:07d}").parents})[:500]
    found["search"] = {
        "by owner": each(lambda o: store.search(owner=o, limit=1000), some),
        "by owner, best first": each(lambda o: store.search(owner=o, metric="accuracy"), some),
        "by parent, the first 100": each(lambda p: store.search(parent=p), heads),
        "by base, the first 100": each(lambda _: store.search(base="base"), range(500)),
        "the 100 best": each(lambda _: store.search(metric="accuracy"), range(500)),
        "the 100 best below a bound": each(
            lambda x: store.search(metric="accuracy", at_most=x / 500), range(500)
        ),
    }
    found["resident_bytes"] = (report.resident_set() or 0) - before
    return found


def _drop(path: Path) -> None:
    """Takes a file out of the page cache; pages that nobody maps, once they are written."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _child(*words: object) -> Any:
    command = [sys.executable, __file__, *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def upkeep(path: Path) -> dict[str, Any]:
    """Verification and collection of everything."""
    found: dict[str, Any] = {}
    with AdapterStore(path, create=False) as store:
        for key, quick in (("verify_quick", True), ("verify", False)):
            t = time.perf_counter()
            seen = store.verify(quick=quick)
            found[key] = {
                "s": round(time.perf_counter() - t, 2),
                "revisions": seen.revisions,
                "problems": list(seen.problems),
                "unused": list(seen.unused),
            }
        t = time.perf_counter()
        store.gc(dry_run=True)
        found["gc_dry_run_s"] = round(time.perf_counter() - t, 2)
    return found


def large(path: Path) -> dict[str, Any]:
    """An adapter of rank 16 on every projection of an 8B decoder, 84 MB."""
    shapes = {}
    for i in range(32):
        for name, n, k in (("qkv", 6144, 4096), ("o", 4096, 4096), ("down", 4096, 14336)):
            shapes[f"layers.{i}.{name}"] = (n, k)
        shapes[f"layers.{i}.gate_up"] = (28672, 4096)
    modules = tuple(Module(m, 16, k, n, 16.0, "BF16") for m, (n, k) in shapes.items())
    config = AdapterConfig("8b", modules)
    tensors = {}
    for m, (n, k) in shapes.items():
        tensors[f"{m}.a"] = torch.randn(16, k).to(torch.bfloat16)
        tensors[f"{m}.b"] = torch.randn(n, 16).to(torch.bfloat16)
    with AdapterStore(path, create=False) as store:
        store.add_base("8b", shapes)
        t = time.perf_counter()
        store.add(config, tensors, name="large")
        took = time.perf_counter() - t
        size = store.open("large").size
        whole = each(lambda n: store.open(n, verify=True), ["large"] * 5)
        return {
            "bytes": size,
            "registered_s": round(took, 3),
            "registered_MB_per_s": round(size / took / 1e6),
            "open": each(store.open, ["large"] * 1000),
            "open_and_verify_s": round(whole["p50_us"] / 1e6, 3),
        }


def fill(path: Path) -> dict[str, Any]:
    """Registers until the disk is full, again and again, then makes room and goes on."""
    lines, committed, serial = [], [], 0
    with AdapterStore(path) as store:
        store.add_base("base", SHAPES)
        for size in (64, 16, 4, 1):
            while True:
                new = small(range(serial, serial + size), [])
                try:
                    store.add_many(new)
                except OSError as error:
                    lines.append(str(error))
                    break
                committed += [a.name for a in new]
                serial += size
            seen = store.verify()
            assert (seen.problems, seen.unused) == ((), ())
            assert [n for n, _ in store.names()] == sorted(committed)
    with AdapterStore(path) as store:
        assert len(store) == len(committed)
        for name in committed[: len(committed) // 2]:
            digest = store.resolve(name)
            store.forget(name)
            store.remove(digest)
        store.gc(waste=0.0)
        store.add_many(small(range(serial, serial + 4), []))
        assert not store.verify().problems
    assert not any("\n" in line for line in lines)
    return {"refusals": sorted(set(lines)), "committed": len(committed)}


def full_disks() -> dict[str, Any] | str:
    """`fill` on file systems of a few MiB, in a mount namespace of their own."""
    found = {}
    for size in SMALL_DISKS:
        with tempfile.TemporaryDirectory() as folder:
            inner = f'mount -t tmpfs -o size={size}m none {folder} && exec "$@"'
            words = [sys.executable, __file__, "--part", "fill", "--folder", f"{folder}/s"]
            command = ["unshare", "-m", "sh", "-c", inner, "sh", *words, "-"]
            if not shutil.which("unshare") or os.geteuid():
                return "left out: no private mount here"
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[f"{size} MiB"] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--part", choices=["ask", "cold", "fill"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part:
        parts = {"ask": lambda p: ask(p, False), "cold": lambda p: ask(p, True), "fill": fill}
        print(json.dumps(parts[args.part](args.folder)))
        return
    told: dict[str, Any] = {
        **report.taken(),
        "durable": "when add_many returns: fsync of blobs and folder, synced LMDB commit",
    }
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="adapter-store-") as folder:
        path = Path(folder) / "store"
        told["registration"] = _say(build(path, args.records, args.batch))
        told["warm"] = _say(_child("--part", "ask", "--folder", path, "-"))
        _drop(path / "catalog" / "data.mdb")
        told["cold"] = _say(_child("--part", "cold", "--folder", path, "-"))
        told["upkeep"] = _say(upkeep(path))
        told["large_adapter"] = _say(large(path))
    told["full_disk"] = _say(full_disks())
    if args.kills:
        sys.path.insert(0, str(ROOT))
        from tests.adapters.killing import made_and_killed, rounds

        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            t = time.perf_counter()
            killed = rounds(Path(folder) / "store", args.kills, seed=2)
            killed["s"] = round(time.perf_counter() - t, 1)
            killed["killed_while_the_store_was_made"] = made_and_killed(folder, args.kills, seed=4)
            told["killed"] = _say(killed)
    report.write(told, args.out)


def _say(found: Any) -> Any:
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
