# SPDX-License-Identifier: Apache-2.0
"""Many writers at once, and writers that are killed."""

import threading

import pytest
import torch

from headrace.adapters import AdapterStore, NewAdapter

from .conftest import clean, weights
from .killing import context, forked, made_and_killed, rounds


def test_threads_share_a_store(store):
    errors = []

    def work(start):
        try:
            with AdapterStore(store.path) as mine:
                for i in range(start, start + 10):
                    mine.add_many([NewAdapter(*weights(i % 15), owner=str(start))])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 5, 10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert clean(store).revisions == 15
    assert clean(store).unused == ()


def _race(path, seeds, name):
    with AdapterStore(path) as store:
        for seed in seeds:
            digest = store.add(*weights(seed))
            store.promote(name, digest)
            store.evaluate(digest, "m", float(seed))
            store.gc()


def test_processes_write_collect_and_promote_at_once(store):
    children = [
        forked(_race, store.path, range(20), "same"),
        forked(_race, store.path, range(19, -1, -1), "same"),
    ]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    found = clean(store)
    assert (found.revisions, found.unused) == (20, ())
    moves = store.history("same")
    assert store.resolve("same") == moves[-1]["revision"]
    digests = {store.open(store.add(*weights(i)), verify=True).revision for i in range(20)}
    assert len(digests) == 20


def _same_name(path, seed, gate, told):
    with AdapterStore(path) as store:
        gate.wait(30)
        for i in range(30):
            line = "won"
            try:
                store.add(*weights(seed + i), name=f"n{i}")
            except ValueError as error:
                line = str(error)
            told.put((i, seed + i, line))


def test_two_writers_of_one_name(store):
    """One of them has it, whole; the other is told in one line and leaves nothing behind."""
    gate, told = context.Barrier(2), context.Queue()
    children = [forked(_same_name, store.path, seed, gate, told) for seed in (1000, 2000)]
    said = [told.get(timeout=60) for _ in range(60)]
    won = {i: seed for i, seed, line in said if line == "won"}
    lost = [(i, line) for i, _, line in said if line != "won"]
    assert len(won) == len(lost) == 30
    for i, line in lost:
        want = f"AdapterStore.add(name): expected a new name, got n{i}; promote moves a name"
        assert line == want
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    for i, seed in won.items():
        got = store.open(f"n{i}", verify=True).tensors()
        assert all(torch.equal(got[k], t) for k, t in weights(seed)[1].items())
    found = clean(store)
    assert (found.revisions, found.names, found.unused) == (30, 30, ())


def test_reading_goes_on_while_files_are_written_anew(store):
    made = store.add_many([NewAdapter(*weights(i)) for i in range(40)])
    for digest in made[1::2]:
        store.remove(digest)
    stop, errors = threading.Event(), []

    def read():
        with AdapterStore(store.path) as mine:
            while not stop.is_set():
                for digest in made[::2]:
                    try:
                        mine.open(digest, verify=True)
                    except BaseException as error:
                        errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        store.gc(waste=0.0)
        for digest in store.add_many([NewAdapter(*weights(i)) for i in range(100, 104)])[:2]:
            store.remove(digest)
    stop.set()
    reader.join()
    assert errors == []
    clean(store)


def test_killed_while_writing(tmp_path):
    told = rounds(tmp_path / "store", 12, seed=1)
    assert told["kills"] == 12
    assert told["acknowledged"] > 0
    assert told["problems"] == []


def test_killed_while_the_store_is_made(tmp_path):
    assert made_and_killed(tmp_path, 8, seed=3) == 8


def test_the_check_of_killed_writers_can_fail(tmp_path):
    """A store that loses what was acknowledged is told."""
    with pytest.raises(AssertionError, match="lost"):
        rounds(tmp_path / "store", 30, seed=1, lose=True)
