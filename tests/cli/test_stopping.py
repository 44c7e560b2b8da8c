# SPDX-License-Identifier: Apache-2.0
"""Runs that end early, each in a process of its own: one line, a status, and the report."""

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import start


def report():
    return json.loads(Path("headrace-report.json").read_text())


def endless(model, *extra, **options):
    args = ("stream", "--model", model, "--tokens", "1G", "--chunk", "64", *extra)
    return start(*args, **options)


def wait_for_row(process):
    """Until the first progress row, for which some must have been read."""
    for line in process.stdout:
        if line.split()[:1] == [b"sinks-window"]:
            return
    raise AssertionError(process.communicate()[1].decode())


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signal(model, number, status, word):
    process = endless(model, fresh=number == signal.SIGINT)
    wait_for_row(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    err = err.decode()
    assert err.startswith(f"headrace stream: {word}, after ")
    assert err.count("\n") == 1
    assert b"Traceback" not in out
    made = report()
    assert made["stopped"] == word
    assert made["tokens"] > 0
    assert made["policies"][0]["perplexity"] > 1
    assert made["policies"][0]["tokens"] >= made["tokens"]
    assert Path("headrace-report.png").exists()


def test_signal_while_standard_input_is_silent(model):
    process = start("stream", "-", "--model", model, "--no-plot", stdin=subprocess.PIPE)
    process.stdin.write(b"some text, and then nothing for long")
    process.stdin.flush()
    assert process.stdout.readline()  # the title: it reads now
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130  # standard input still open
    assert process.stderr.read().decode().startswith("headrace stream: interrupted, after ")
    assert report()["stopped"] == "interrupted"


def test_reader_goes_away(model):
    process = endless(model, "--no-plot")
    wait_for_row(process)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    err = process.stderr.read().decode()
    assert err.startswith("headrace stream: nobody reads the output, after ")
    assert err.count("\n") == 1
    assert report()["stopped"] == "broken pipe"
    assert report()["tokens"] > 0


def test_binary_part_of_standard_input(model):
    """What came before it was read and is reported."""
    process = start("stream", "-", "--model", model, "--no-plot", stdin=subprocess.PIPE)
    process.stdin.write(b"plain text " * 50)
    process.stdin.flush()
    assert process.stdout.readline()
    for line in process.stdout:
        if b"policy" in line:
            break
    time.sleep(1)
    process.stdin.write(b"\0\1\2")
    process.stdin.close()
    process.stdin = None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "zero bytes in standard input; --binary" in err.decode()
    assert err.count(b"\n") == 1
    assert report()["tokens"] == 550


def test_standard_input(model):
    process = start("stream", "-", "--model", model, "--no-plot", stdin=subprocess.PIPE)
    out, err = process.communicate(b"all of it " * 30, timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert report()["tokens"] == 300
    assert b"report: headrace-report.json" in out


def test_empty_standard_input(model):
    process = start("stream", "-", "--model", model, stdin=subprocess.DEVNULL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "expected text, got nothing from standard input" in err.decode()
    assert err.count(b"\n") == 1


def test_report_that_cannot_be_written_at_the_end(model, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    process = endless(model, "--report", folder / "r.json", "--no-plot")
    wait_for_row(process)
    folder.rmdir()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "cannot write" in err.decode()
    assert "interrupted" in err.decode()
    assert err.count(b"\n") == 1


def test_live_table_on_a_terminal(model, text):
    mine, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = start(
        "stream",
        text,
        "--model",
        model,
        "--compare",
        "--no-plot",
        "--dense-limit",
        "500",
        "--samples",
        "30",
        stdout=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        shown += part
    os.close(mine)
    assert process.wait(timeout=60) == 0, process.stderr.read().decode()
    for words in ("sinks-window", "recompute", "windows", "4,000 of 4,000", "KiB"):
        assert words.encode() in shown
    assert b"\x1b[" in shown  # drawn in place
    assert report()["stopped"] == "at the end"
