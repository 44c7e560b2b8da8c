# SPDX-License-Identifier: Apache-2.0
"""Figures are taken once, whole, and only from what is committed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from headrace import ops

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import record  # noqa: E402
import results  # noqa: E402


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Commands that write a file each, but for those of `bad`, which write one and fail."""
    told = SimpleNamespace(ran=[], bad=set(), written=0, target=tmp_path / "bench/results/here")
    told.target.mkdir(parents=True)
    (told.target / "bench-linear.json").write_text("{}")
    (told.target / "quick.json").write_text(json.dumps({"host": record.report.machine()}))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "MACHINE", "here")
    monkeypatch.setattr(record.report, "commit", lambda: "0123456789ab")

    def run(words, folder):
        told.ran.append(" ".join(words))
        (folder / words[-1]).write_text(json.dumps({"file": words[-1]}))
        return words[1] not in told.bad

    def pages(arguments):
        assert arguments == []
        told.written += 1

    monkeypatch.setattr(record, "run", run)
    monkeypatch.setattr(results, "main", pages)
    return told


def test_every_op_and_the_quick_shapes_are_taken(bench, capsys):
    record.main([])
    assert len(bench.ran) == len(ops.specs()) + 1
    assert "bench linear --peers --json bench-linear.json" in bench.ran
    assert bench.ran[-1] == "bench --quick --json quick.json"
    assert {f.name for f in bench.target.iterdir()} == {line.split()[-1] for line in bench.ran}
    assert (bench.target / "bench-linear.json").read_text() == '{"file": "bench-linear.json"}'
    assert bench.written == 1


def test_a_run_goes_on_where_it_was(bench, capsys):
    bench.bad = {"select"}
    with pytest.raises(SystemExit, match="record: select failed; nothing was written"):
        record.main(["linear", "select", "append", "--budget", "2"])
    assert bench.ran[0] == "bench linear --peers --budget 2 --json bench-linear.json"
    assert len(bench.ran) == 3
    assert (bench.target / "bench-linear.json").read_text() == "{}"
    assert not bench.written
    bench.bad = set()
    record.main(["linear", "select", "append"])
    assert len(bench.ran) == 4  # only what was not there
    assert "linear: there already" in capsys.readouterr().out
    assert (bench.target / "bench-linear.json").read_text() == '{"file": "bench-linear.json"}'
    record.main(["linear"])
    assert len(bench.ran) == 4


@pytest.mark.parametrize(("what", "other"), [("cpu", "Another (R) 9"), ("processors", 96)])
def test_another_machine_has_a_folder_of_its_own(bench, monkeypatch, what, other):
    here = record.report.machine()
    monkeypatch.setattr(record.report, "machine", lambda: {**here, "cpu": "A", what: other})
    record.main(["linear"])
    assert (bench.target / "bench-linear.json").read_text() == "{}"
    name = "another-r-9-" if what == "cpu" else "a-96-"
    (made,) = (f for f in bench.target.parent.iterdir() if f.name.startswith(name))
    assert (made / "bench-linear.json").read_text() == '{"file": "bench-linear.json"}'
    assert (made / "notes.md").read_text().startswith("# A")
    (made / "append.json").write_text(json.dumps({"host": record.report.machine()}))
    assert record.machine_folder() == made


@pytest.mark.parametrize("commit", [None, "0123456789ab+"])
def test_only_what_is_committed(bench, commit, monkeypatch):
    monkeypatch.setattr(record.report, "commit", lambda: commit)
    with pytest.raises(SystemExit, match="commit first"):
        record.main([])
    assert not bench.ran


def test_figures_of_another_commit_do_not_count(bench, monkeypatch):
    record.main(["linear"])
    monkeypatch.setattr(record.report, "commit", lambda: "another")
    record.main(["linear"])
    assert len(bench.ran) == 2


def test_an_unknown_op(bench):
    with pytest.raises(SystemExit, match=r"record\(OP\): expected some of .*, got 'lineal'"):
        record.main(["lineal"])


def test_the_command_is_that_of_the_file(tmp_path, monkeypatch):
    """As recorded it can be typed again."""
    words = record.command("compact_inplace", 1e-3)
    words.insert(2, "--quick")
    assert record.run(words, tmp_path)
    made = json.loads((tmp_path / "bench-compact_inplace.json").read_text())
    assert made["command"] == ["headrace", *words]
    assert made["rows"][0]["beside"][2]["calls"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert not record.run(words, tmp_path)
