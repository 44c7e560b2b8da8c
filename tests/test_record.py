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

import machines  # noqa: E402
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


XEON = "Intel(R) Xeon(R) Processor @ 2.50GHz"


@pytest.mark.parametrize(
    ("what", "other", "name"),
    [
        ("cpu", XEON, "cpu-2-cores-intel-xeon-avx512"),
        ("cpu", "AMD EPYC 9654 96-Core Processor", "cpu-2-cores-amd-epyc-9654-avx512"),
        ("processors", 96, "cpu-96-cores-a-avx512"),
        ("isa", "avx512_bf16", "cpu-2-cores-a-avx512-bf16"),
    ],
)
def test_another_machine_has_a_folder_of_its_own(bench, monkeypatch, what, other, name):
    here = record.report.machine() | {"cpu": "A", "processors": 2, "isa": "avx512"}
    (bench.target / "quick.json").write_text(json.dumps({"host": here}))
    here = here | {what: other}
    monkeypatch.setattr(record.report, "machine", lambda: here)
    record.main(["linear"])
    assert (bench.target / "bench-linear.json").read_text() == "{}"
    made = bench.target.parent / name
    assert (made / "bench-linear.json").read_text() == '{"file": "bench-linear.json"}'
    assert (made / "notes.md").read_text() == (
        f"# {machines.short_name(here)}, {here['processors']} processors\n"
    )
    (made / "append.json").write_text(json.dumps({"host": here}))
    assert record.machine_folder() == made


def test_machines_of_one_name_have_two_folders(bench, monkeypatch):
    """They differ by their clock alone, which no folder is named after."""
    (bench.target / "quick.json").write_text("{}")
    for clock, name in (("2.50", "cpu-2-cores-intel-xeon-avx512"),
                        ("2.20", "cpu-2-cores-intel-xeon-avx512-2")):  # fmt: skip
        host = record.report.machine() | {"cpu": XEON.replace("2.50", clock), "processors": 2}
        host["isa"] = "avx512"
        monkeypatch.setattr(record.report, "machine", lambda host=host: host)
        made = record.machine_folder()
        assert made.name == name
        (made / "quick.json").write_text(json.dumps({"host": host}))
        assert record.machine_folder() == made


def test_a_folder_is_of_the_highest_level_in_it(bench, monkeypatch):
    """Its older records may have been taken before there was that level."""
    host = record.report.machine() | {"isa": "avx512_bf16"}
    for name, isa in (("bench-append.json", "avx512"), ("quick.json", "avx512_bf16"),
                      ("soak.json", "avx512")):  # fmt: skip
        (bench.target / name).write_text(json.dumps({"host": host | {"isa": isa}}))
    monkeypatch.setattr(record.report, "machine", lambda: host)
    assert record.machine_folder() == bench.target
    monkeypatch.setattr(record.report, "machine", lambda: host | {"isa": "avx512"})
    assert record.machine_folder() != bench.target


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        (XEON, "Intel Xeon"),
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "Intel Xeon Platinum 8259CL"),
        ("AMD EPYC", "AMD EPYC"),
        ("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "AMD Ryzen 7 7840U"),
        ("13th Gen Intel(R) Core(TM) i7-1360P", "13th Gen Intel Core i7-1360P"),
    ],
)
def test_a_processor_is_called_by_its_makers_words(cpu, words):
    assert machines.brand(cpu) == words


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
