# SPDX-License-Identifier: Apache-2.0
"""Writers that are killed at random points, and what must hold afterwards.

python -m tests.adapters.killing [KILLS]: the long form, as JSON. A kill ends a process, not the
machine: what the disk does when the power goes is up to fsync and not shown here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from headrace.adapters import AdapterStore, NewAdapter

from .conftest import SHAPES, weights

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["headrace", "tests.adapters.killing"])


def forked(target, *args):
    """A started process that imports nothing anew."""
    child = context.Process(target=target, args=args, daemon=True)
    child.start()
    return child


def _write(path, start, pipe):
    """Changes a store without end; says what is committed, before and after each step."""
    torch.set_num_threads(1)
    store = AdapterStore(path)
    rng = random.Random(start)
    mine: list[str] = []
    serial = start
    say = lambda *words: os.write(pipe, (json.dumps(words) + "\n").encode())  # noqa: E731
    say("ready")
    while True:
        kind = rng.choice(("add", "add", "many", "many", "promote", "evaluate", "remove", "gc"))
        if kind in ("add", "many"):
            n = 1 if kind == "add" else rng.randint(2, 30)
            new = [NewAdapter(*weights(serial + i), name=f"n{serial + i}") for i in range(n)]
            say("try", "add", [a.name for a in new])
            made = store.add_many(new)
            say("done", "add", dict(zip([a.name for a in new], made, strict=True)))
            mine += made
            serial += n
        elif kind == "gc":
            store.gc(waste=0.1)
        elif mine:
            digest = rng.choice(mine)
            if kind == "promote":
                say("try", "promote", digest)
                store.promote(f"p{start}", digest)
                say("done", "promote", f"p{start}", digest)
            elif kind == "evaluate":
                say("try", "evaluate", digest)
                store.evaluate(digest, "m", float(serial))
                say("done", "evaluate", digest, serial)
            else:
                name = next(iter(store.show(digest).names), None)
                held = store.history(f"p{start}") if name else []
                if name is not None and digest not in {m["revision"] for m in held}:
                    say("try", "remove", digest, name)
                    store.forget(name)
                    store.remove(digest)
                    say("done", "remove", digest, name)
                    mine.remove(digest)


def _lines(pipe):
    data = b""
    while chunk := os.read(pipe, 1 << 16):
        data += chunk
    return [json.loads(line) for line in data.splitlines() if line.endswith(b"]")]


def _expect(told, state):
    """Takes in what a writer said; gives what it was about to do when it died."""
    pending = None
    for words in told:
        if words[0] == "try":
            pending = words[1:]
        elif words[0] == "done":
            pending = None
            kind = words[1]
            if kind == "add":
                state["names"].update(words[2])
            elif kind == "promote":
                state["promoted"][words[2]] = words[3]
            elif kind == "evaluate":
                state["scores"][words[2]] = words[3]
            else:
                state["names"].pop(words[3])
                state["scores"].pop(words[2], None)
    return pending


def _check(store, state, pending):
    found = store.verify()
    unsure = pending[1:] if pending else []
    added = set(unsure[0]) if pending and pending[0] == "add" else set()
    have = dict(store.names())
    for name, digest in state["names"].items():
        if name in unsure:  # it was being removed
            continue
        assert have.get(name) == digest, f"lost {name}"
        store.open(digest, verify=True)
    there = added & have.keys()
    assert there in (set(), added), f"half of {added}"
    for name, digest in state["promoted"].items():
        if not (pending and pending[0] == "promote"):
            assert have[name] == digest, f"lost the move of {name}"
    for digest, value in state["scores"].items():
        if digest not in unsure:
            assert store.show(digest).scores["m"] == value, f"lost a score of {digest}"
    for name in have:
        assert name in state["names"] or name in added or name.startswith("p"), f"made up {name}"
    state["names"] = {n: d for n, d in have.items() if not n.startswith("p")}
    state["promoted"] = {n: d for n, d in have.items() if n.startswith("p")}
    state["scores"] = {d: v for d, v in state["scores"].items() if d not in unsure}
    return found


def rounds(path, kills, seed, lose=False):
    """Kills `kills` writers of one store, at random moments; checks it after each. `lose`: takes a
    committed record away, which the check has to notice.
    """
    rng = random.Random(seed)
    state: dict = {"names": {}, "promoted": {}, "scores": {}}
    told = {"kills": 0, "acknowledged": 0, "while_busy": 0, "problems": [], "unused_files": 0}
    with AdapterStore(path) as store:
        store.add_base("base", SHAPES)
    for i in range(kills):
        fifo = Path(path).parent / f"told-{i}"
        os.mkfifo(fifo)
        child = forked(_start, path, i * 1_000_000, str(fifo))
        pipe = os.open(fifo, os.O_RDONLY)
        first = os.read(pipe, 10)
        assert first == b'["ready"]\n'
        time.sleep(rng.uniform(0.0, 0.12))
        child.kill()
        child.join()
        said = _lines(pipe)
        os.close(pipe)
        os.unlink(fifo)
        told["kills"] += child.exitcode == -9
        told["acknowledged"] += sum(words[0] == "done" for words in said)
        pending = _expect(said, state)
        told["while_busy"] += pending is not None
        with AdapterStore(path) as store:
            if lose and state["names"]:
                store.forget(next(iter(state["names"])))
            found = _check(store, state, pending)
            told["problems"] += found.problems
            told["unused_files"] += len(found.unused)
    with AdapterStore(path) as store:
        store.gc()
        found = store.verify()
        told["problems"] += [*found.problems, *found.unused]
        told["revisions"] = found.revisions
    return told


def _make(folder, fifo):
    """Makes one store after the other."""
    pipe = os.open(fifo, os.O_WRONLY)
    i = 0
    while True:
        os.write(pipe, b"%6d" % i)
        AdapterStore(Path(folder) / str(i)).close()
        i += 1


def made_and_killed(folder, kills, seed):
    """Kills processes that make stores; the store that was being made has to open and to work.
    Gives how many were killed.
    """
    rng, dead = random.Random(seed), 0
    for i in range(kills):
        home, fifo = Path(folder) / f"made-{i}", Path(folder) / f"making-{i}"
        home.mkdir()
        os.mkfifo(fifo)
        child = forked(_make, str(home), str(fifo))
        pipe = os.open(fifo, os.O_RDONLY)
        said = os.read(pipe, 6)
        time.sleep(rng.uniform(0.0, 0.05))
        child.kill()
        child.join()
        dead += child.exitcode == -9
        while more := os.read(pipe, 6000):
            said = more[-6:]
        os.close(pipe)
        with AdapterStore(home / str(int(said))) as store:
            store.add_base("base", SHAPES)
            digest = store.add(*weights(i), name="n")
            found = store.verify()
            assert (found.problems, found.unused) == ((), ())
            store.open(digest, verify=True)
    return dead


def _start(path, start, fifo):
    _write(path, start, os.open(fifo, os.O_WRONLY))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
        told = rounds(Path(folder) / "store", count, seed=2)
        told["killed_while_made"] = made_and_killed(folder, count, seed=4)
        print(json.dumps(told))
