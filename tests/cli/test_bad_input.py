# SPDX-License-Identifier: Apache-2.0
"""Every mistake: one line, a status that is not 0, and no report of a run that never began."""

import argparse
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.cli.stream import count

CASES = {
    "window 0": (["--window", "0"], 2, "--window: expected 1 or more, got 0"),
    "window -5": (["--window", "-5"], 2, "--window: expected 1 or more, got -5"),
    "sinks -1": (["--sinks", "-1"], 2, "--sinks: expected 0 or more, got -1"),
    "sinks two": (["--sinks", "two"], 2, "--sinks: expected a number such as"),
    "chunk 0": (["--chunk", "0"], 2, "--chunk: expected 1 or more"),
    "tokens 0": (["--tokens", "0"], 2, "--tokens: expected 1 or more"),
    "tokens 4Q": (
        ["--tokens", "4Q"],
        2,
        "--tokens: expected a number such as 100k or 4M, got '4Q'",
    ),
    "policy": (["--policy", "sink"], 2, "--policy: invalid choice: 'sink'"),
    "policy and compare": (["--policy", "dense", "--compare"], 2, "one of --policy and --compare"),
    "option": (["--windows", "3"], 2, "unrecognized arguments"),
    "missing file": (["no/such.txt"], 2, "cannot read no/such.txt: No such file"),
    "folder": (["."], 2, "expected a file, got the folder ."),
    "binary file": (["{model}"], 2, "zero bytes in"),
    "empty file": (["empty.txt"], 2, "empty.txt is empty"),
    "files and stdin": (["{text}", "-"], 2, "either files or one pipe"),
    "model name": (["--model", "bytes-streem"], 1, "expected one of bytes-stream"),
    "model file": (["--model", "{text}"], 1, "expected a whole safetensors file"),
    "report folder": (["--report", "."], 2, "expected a file name, got the folder"),
    "report nowhere": (["--report", "no/r.json"], 2, "cannot write no/r.json: No such file"),
    "one path twice": (["--report", "a.png"], 2, "expected another file than --report, got a.png"),
    "plot suffix": (["--plot", "p.xyz"], 2, "expected .png, .pdf or .svg, got p.xyz"),
    "plot nowhere": (["--plot", "no/p.png"], 2, "cannot write no/p.png: No such file"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, model, text, capsys):
    extra, status, words = CASES[name]
    Path("empty.txt").touch()
    extra = [a.format(model=model, text=text) for a in extra]
    args = ["stream", "--tokens", "200", "--model", model]
    if extra[0].startswith("--"):
        args.append(text)
    try:
        got = main(args + extra)
    except SystemExit as left:  # from the option parser
        got = left.code
    out, err = capsys.readouterr()
    assert got == status
    assert out == ""
    assert words in err
    assert err.startswith("headrace stream")
    assert err.count("\n") == 1
    assert not Path("headrace-report.json").exists()
    assert not list(Path().glob("**/*.part"))


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("4M", 4_000_000),
        ("100k", 100_000),
        ("1_000_000", 1_000_000),
        ("1.5M", 1_500_000),
        ("2G", 2_000_000_000),
        ("7", 7),
    ],
)
def test_count(told, meant):
    assert count(told) == meant


@pytest.mark.parametrize("told", ["", "M", "1.5", "4 MB", "1e6", "0x10", "-3"])
def test_not_a_count(told):
    with pytest.raises(argparse.ArgumentTypeError):
        count(told)


def test_pool_too_small(model, text, capsys):
    """Found out at the first step, so there is a report, of nothing."""
    assert main(["stream", text, "--model", model, "--pool-pages", "1"]) == 1
    err = capsys.readouterr().err
    assert "free pages" in err
    assert "after 0 tokens" in err
    assert err.count("\n") == 1
    assert Path("headrace-report.json").exists()
