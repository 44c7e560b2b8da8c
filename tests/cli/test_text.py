# SPDX-License-Identifier: Apache-2.0
"""What is read, and in what order."""

import hashlib
import os
import threading

import pytest

from headrace.cli import text
from headrace.cli.fail import Fail
from headrace.models.training import data


def write(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in files]


def drain(source, count, piece=7):
    out = b""
    while len(out) < count:
        part = source.read(min(piece, count - len(out)))
        if not len(part):
            break
        out += part.tobytes()
    return out


def test_files_are_joined_and_cycle(tmp_path):
    source = text.from_files(write(tmp_path, a=b"one", b=b"", c=b"three"), binary=False)
    once = b"one\0\0three"
    assert source.size == len(once)
    assert drain(source, 25) == (once + b"\0" + once + b"\0" + once)[:25]
    assert source.passes == 3
    assert not source.live


def test_blocks_do_not_show(tmp_path):
    content = os.urandom(3 * text.BLOCK + 5)
    source = text.from_files(write(tmp_path, a=content), binary=True)
    assert drain(source, len(content), 1000) == content
    assert source.passes == 1


@pytest.mark.parametrize("binary", [False, True])
def test_zero_bytes(tmp_path, binary):
    names = write(tmp_path, a=b"x" * text.BLOCK + b"\0")
    if binary:
        assert text.from_files(names, binary).size == text.BLOCK + 1
    else:
        with pytest.raises(Fail, match=r"zero bytes in .*a; --binary"):
            text.from_files(names, binary)


def test_pipe_gives_what_is_there(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    go = threading.Event()

    def send():
        with open(fifo, "wb", buffering=0) as out:
            out.write(b"soon")
            assert go.wait(10)
            out.write(b"late")

    sender = threading.Thread(target=send)
    sender.start()
    source = text.from_files([str(fifo)], binary=False)
    assert source.live
    assert source.size is None
    assert source.read(1000).tobytes() == b"soon"
    go.set()
    assert drain(source, 1000) == b"late"
    assert not len(source.read(10))
    sender.join()


def test_pipe_comes_alone(tmp_path):
    with pytest.raises(Fail, match="either files or one pipe"):
        text.from_files([*write(tmp_path, a=b"x"), "-"], binary=False)


def test_held_out_files_are_those_of_training():
    _, held_out = data.split()
    source = text.from_library(held_out=True)
    content = bytes(held_out.tolist())[:-1]  # training ends with a boundary too
    assert source.size == len(content)
    assert drain(source, len(content), 1 << 20) == content


def test_library_is_in_hash_order():
    source = text.from_library(held_out=False)
    files = data.files()
    order = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()[:8])
    start = b"\0".join(files[name].read_bytes() for name in order[:20])
    assert drain(source, len(start), 1 << 16) == start
    assert source.files == len(files)
