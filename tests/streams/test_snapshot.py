# SPDX-License-Identifier: Apache-2.0
"""What was saved goes on elsewhere in every bit; what does not fit is told, and takes nothing."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from headrace import AdapterBank, Archive, Lane, Sink, Window, wrap
from headrace.streams import Every, HeadSum, OnQuery, PerLane, resume, snapshot
from tests import warm

from ..adapters.bank_weights import adapter
from .tiny import TinyDecoder, tokens

MODEL = TinyDecoder()
TEXT = tokens(300)
MEMORY = Sink(4) + Window(40)
ROOT = Path(__file__).resolve().parents[2]


def engine(model=MODEL, memory=MEMORY, **options):
    return wrap(model, memory=memory, **{"page_size": 16, "pool_pages": 40, **options})


def saved(path, count=100, **options):
    """A file of a stream that has read `count` tokens; what it goes on with."""
    with engine(**options) as e:
        e.pool.k.view(torch.uint8).fill_(0xFF)  # nan, where nothing is written
        e.pool.v.view(torch.uint8).fill_(0xFF)
        e.open().feed(TEXT[:37])  # somebody else's pages
        stream = e.open(history=True)
        stream.feed(TEXT[:count])
        snapshot(stream, path)
        return stream.feed(TEXT[count:], logits=True).logits, list(stream.say(max_new=5))


@pytest.mark.parametrize("memory", [MEMORY, Window(None), Window(16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("count", [0, 1, 3, 63, 100])
def test_the_same_bits_go_on(count, dtype, memory, tmp_path):
    want, said = saved(tmp_path / "s", count, dtype=dtype, memory=memory)
    with engine(dtype=dtype, memory=memory, pool_pages=64) as e:
        e.pool.k.view(torch.uint8).fill_(0xFF)
        stream = resume(e, tmp_path / "s").stream
        assert stream.tokens == count
        assert stream._history.tokens() == TEXT[:count].tolist()
        got = stream.feed(TEXT[count:], logits=True).logits
        assert torch.equal(got, want)
        assert list(stream.say(max_new=5)) == said
        stream.close()
        assert e.pool.live_pages == 0


def test_the_first_word_needs_no_step(tmp_path):
    with engine() as e:
        stream = e.open()
        stream.feed(TEXT[:50])
        size = snapshot(stream, tmp_path / "s")
        want = list(stream.say(max_new=8))
    assert (tmp_path / "s").stat().st_size == size
    with engine() as e:
        assert list(resume(e, tmp_path / "s").stream.say(max_new=8)) == want


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tests.streams.test_snapshot import engine, resume, TEXT
with engine() as e:
    stream = resume(e, sys.argv[2]).stream
    torch.save(stream.feed(TEXT[100:], logits=True).logits, sys.argv[3])
"""


def test_another_process_goes_on(tmp_path):
    want, _ = saved(tmp_path / "s")
    paths = (ROOT, tmp_path / "s", tmp_path / "got")
    subprocess.run([*warm.python(*warm.COMMANDS), "-c", CHILD, *paths], check=True)
    assert torch.equal(torch.load(tmp_path / "got"), want)


def test_lanes_go_on(tmp_path):
    lanes = (Lane("in"), Lane("out", reads=("in",), memory=Window(20)))
    options = {"lanes": lanes, "positions": PerLane({"out": 7})}
    with engine(**options) as e:
        stream = e.open_lanes()
        stream.feed({"in": TEXT[:70], "out": TEXT[:1]})
        stream.feed({"out": TEXT[:30]})
        snapshot(stream, tmp_path / "s", gate=Every(3, seen=2), now=4.5)
        more = {"in": TEXT[70:90], "out": TEXT[90:99]}
        want = {name: r.logits for name, r in stream.feed(more, logits=True).items()}
        with pytest.raises(ValueError, match=r"^snapshot\(stream\): expected all lanes"):
            snapshot(stream["in"], tmp_path / "s")
    with engine(**options) as e:
        back = resume(e, tmp_path / "s")
        assert (back.gate, back.now) == (Every(3, seen=2), 4.5)
        got = back.stream.feed(more, logits=True)
        assert all(torch.equal(got[name].logits, want[name]) for name in want)


def test_a_gate_remembers(tmp_path):
    gate = HeadSum(2.0, sums=[0.5, 1.25])
    with engine() as e:
        stream = e.open()
        stream.feed(TEXT[:5])
        snapshot(stream, tmp_path / "s", gate=gate, now=1 / 3)
        back = resume(e, tmp_path / "s")
        assert (back.gate, back.now) == (gate, 1 / 3)

        class Own(OnQuery):
            pass

        with pytest.raises(TypeError, match=r"^snapshot\(gate\): expected a gate of headrace"):
            snapshot(stream, tmp_path / "s", gate=Own())
        with pytest.raises(ValueError, match=r"^snapshot\(now\): expected seconds, got nan"):
            snapshot(stream, tmp_path / "s", now=float("nan"))


def test_nothing_of_others_is_in_the_file(tmp_path):
    """A fork's file has none of what its parent read after, though they share a page."""
    with engine() as e:
        e.pool.k.fill_(7.0)
        e.pool.v.fill_(7.0)
        parent = e.open()
        parent.feed(TEXT[:14])
        fork = parent.fork()
        parent.feed(TEXT[14:30])
        snapshot(fork, tmp_path / "s")
    with safe_open(tmp_path / "s", "pt") as file:
        k, v = file.get_tensor(".k"), file.get_tensor(".v")
    assert k.shape[1] == 2  # one of sinks, one of the window
    assert not k[:, 0, ..., 4:].any()
    assert not v[:, 0, :, 4:].any()
    assert not (k == 7.0).any()
    assert int((k[0, :, 0, 0] != 0).sum()) == 14


def refused(path, told, **options):
    with engine(**options) as e:
        with pytest.raises(ValueError, match=r"^resume\(") as caught:
            resume(e, path)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
        assert e.pool.live_pages == 0
        assert not e._streams


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with engine() as e:
        for path, error, why in (
            (tmp_path / "none", FileNotFoundError, "No such file or directory"),
            (tmp_path, IsADirectoryError, "Is a directory"),
        ):
            said = f"resume(path): expected a file of a stream, got {path}: {why}"
            with pytest.raises(error, match=f"^{re.escape(said)}$"):
                resume(e, path)


def test_every_truncation_and_corruption_is_refused(tmp_path):
    saved(tmp_path / "s", 20)
    whole = (tmp_path / "s").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, header, header + 8, len(whole) - 1]
    for size in cuts:
        (tmp_path / "t").write_bytes(whole[:size])
        refused(tmp_path / "t", "expected a whole stream (headrace.stream.4), got")
    made = torch.Generator().manual_seed(0)
    places = [*range(16), *torch.randint(len(whole), (60,), generator=made).tolist()]
    for at in [*places, whole.index(b"sha256") + 12, len(whole) - 1]:
        harmed = bytearray(whole)
        harmed[at] ^= 0x10
        (tmp_path / "t").write_bytes(harmed)
        refused(tmp_path / "t", "expected a whole stream (headrace.stream.4), got")
    (tmp_path / "t").write_bytes(whole + b"\0")
    refused(tmp_path / "t", "expected a whole stream")


def test_another_engine_is_refused(tmp_path):
    saved(tmp_path / "s")
    other = TinyDecoder()
    other.embedding.data[5, 5] += 1e-3
    refused(tmp_path / "s", "resume(engine): expected the weights ", model=other)
    refused(tmp_path / "s", "expected vocab 256, got 99", model=TinyDecoder(vocab=99))
    refused(tmp_path / "s", "resume(engine): expected memory ", memory=Sink(4) + Window(41))
    refused(tmp_path / "s", "resume(engine): expected dtype float32", dtype=torch.bfloat16)
    refused(tmp_path / "s", "resume(engine): expected shape [", page_size=32)
    refused(tmp_path / "s", "resume(engine): expected exact True, got False", exact=False)
    refused(tmp_path / "s", "resume(pool_pages): expected 5 free pages, got 2 of 2", pool_pages=2)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.streams.test_snapshot import engine, snapshot, TEXT
with engine() as e:
    stream = e.open()
    stream.feed(TEXT[:60])
    setattr(os, sys.argv[3], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    snapshot(stream, sys.argv[2])
"""


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_killed_while_writing_leaves_the_old_file(where, tmp_path):
    want, _ = saved(tmp_path / "s")
    before = (tmp_path / "s").read_bytes()
    command = [*warm.python(*warm.COMMANDS), "-c", KILLED, ROOT, tmp_path / "s", where]
    run = subprocess.run(command, check=False)
    assert run.returncode == -9
    assert (tmp_path / "s").read_bytes() == before
    with engine() as e:
        got = resume(e, tmp_path / "s").stream.feed(TEXT[100:], logits=True).logits
    assert torch.equal(got, want)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    saved(tmp_path / "s")
    before = (tmp_path / "s").read_bytes()

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with engine() as e, pytest.raises(OSError, match="No space left"):
        snapshot(e.open(), tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (tmp_path / "s").read_bytes() == before


def test_what_can_be_saved(tmp_path):
    with pytest.raises(TypeError, match=r"^snapshot\(stream\): expected a stream, got int"):
        snapshot(3, tmp_path / "s")
    with engine() as e:
        stream = e.open()
        stream.close()
        with pytest.raises(ValueError, match=r"^snapshot\(stream\): expected an open stream"):
            snapshot(stream, tmp_path / "s")
    with (
        engine(memory=Window(32) >> Archive("mean")) as e,
        pytest.raises(NotImplementedError, match=r"^snapshot\(stream\): .* without an Archive"),
    ):
        snapshot(e.open(), tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_metadata_is_plain(tmp_path):
    saved(tmp_path / "s", 20)
    with safe_open(tmp_path / "s", "pt") as file:
        meta = json.loads(file.metadata()["stream"])
    assert meta["streams"][""]["end"] == 20


def test_an_adapter_comes_back_at_its_revision_or_not_at_all(tmp_path):
    def with_bank(*seeds):
        bank = AdapterBank.of(MODEL, "tiny", slots=4, max_rank=16)
        for seed in seeds:
            bank.load_tensors(*adapter(seed), name="mine")
        return engine(adapters=bank)

    with with_bank(1) as e:
        stream = e.open(adapter="mine")
        stream.feed(TEXT[:50])
        revision = stream.adapter
        snapshot(stream, tmp_path / "s")
        want = stream.feed(TEXT[50:], logits=True).logits
    with with_bank(1) as e:
        stream = resume(e, tmp_path / "s").stream
        assert stream.adapter == revision
        assert torch.equal(stream.feed(TEXT[50:], logits=True).logits, want)
    for e in (with_bank(2), engine()):
        with e, pytest.raises(ValueError, match=r"^resume\(adapter\): expected a bank") as caught:
            resume(e, tmp_path / "s")
        assert revision[:12] in str(caught.value)
        assert e.pool.live_pages == 0
