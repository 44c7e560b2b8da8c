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

import jobs  # noqa: E402
import machines  # noqa: E402
import record  # noqa: E402
import results  # noqa: E402
import sources  # noqa: E402


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Commands that write a file each, but for those of `bad`, which write one and fail."""
    told = SimpleNamespace(ran=[], bad=set(), written=0, holds={})
    told.target = tmp_path / "bench/results/here"
    told.target.mkdir(parents=True)
    (told.target / "bench-linear.json").write_text("{}")
    (told.target / "quick.json").write_text(json.dumps({"host": record.report.machine()}))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(record.report, "commit", lambda: "0123456789ab")

    def run(job, path):
        told.ran.append(" ".join(job.words))
        path.write_text(json.dumps({"file": path.name, **told.holds}))
        return path.stem.removeprefix("bench-") not in told.bad

    def pages(arguments):
        assert arguments == []
        told.written += 1

    monkeypatch.setattr(record, "run", run)
    monkeypatch.setattr(results, "main", pages)
    return told


def taken(folder, name="bench-linear.json"):
    """What was written there, empty as long as nothing was."""
    return json.loads((folder / name).read_text()).get("file", "")


def test_every_op_and_the_quick_shapes_are_taken(bench, capsys):
    record.main([])
    assert len(bench.ran) == len(ops.specs()) + 1
    assert "headrace bench linear --peers --calls 3 --json bench-linear.json" in bench.ran
    assert bench.ran[-1] == "headrace bench --quick --json quick.json"
    assert {f.name for f in bench.target.iterdir()} == {line.split()[-1] for line in bench.ran}
    assert taken(bench.target) == "bench-linear.json"
    assert bench.written == 1


def test_a_run_goes_on_where_it_was(bench, capsys):
    bench.bad = {"select"}
    with pytest.raises(SystemExit, match="record: select failed; nothing was written"):
        record.main(["linear", "select", "append", "--budget", "2"])
    words = "headrace bench linear --peers --calls 3 --budget 2 --json bench-linear.json"
    assert bench.ran[0] == words
    assert len(bench.ran) == 3
    assert taken(bench.target) == ""
    assert not bench.written
    bench.bad = set()
    record.main(["linear", "select", "append"])
    assert len(bench.ran) == 4  # only what was not there
    assert "linear: there already" in capsys.readouterr().out
    assert taken(bench.target) == "bench-linear.json"
    record.main(["linear"])
    assert len(bench.ran) == 4


def test_a_file_says_how_long_it_took_and_what_it_rests_on(bench):
    record.main(["linear", "loop-rings"])
    made = json.loads((bench.target / "bench-linear.json").read_text())
    assert made["wall_seconds"] >= 0
    assert made["sources"] == sources.digests("bench-linear.json")
    assert set(made["sources"]) == {"kernels", "bench"}
    made = json.loads((bench.target / "loop-rings.json").read_text())
    assert set(made["sources"]) == {"kernels", "package"}
    bench.holds = {"wall_seconds": 77.0}  # a command that says so itself knows better
    record.main(["quick"])
    assert json.loads((bench.target / "quick.json").read_text())["wall_seconds"] == 77.0


def test_a_side_with_few_calls_is_not_taken(bench, capsys):
    side = {"name": "ours", "calls": [3, 3]}
    row = {"op": "linear", "shape": "few", "beside": [side, {"name": "none", "calls": []}]}
    bench.holds = {"rows": [row]}
    record.main(["linear"])
    assert bench.written == 1
    row["beside"].append({"name": "a peer", "calls": [200, 2]})
    with pytest.raises(SystemExit, match="record: select failed; nothing was written"):
        record.main(["select"])
    assert "fewer than 3 calls of a side of linear few" in capsys.readouterr().out
    assert not (bench.target.parents[2] / "build/records/0123456789ab/bench-select.json").exists()
    alone = {"op": "linear", "shape": "one", "beside": [], "half": [1.0, 1.0]}
    assert record.thin({"rows": [alone, alone | {"half": [1.0, 1.1]}]}) == ["linear one"]
    assert record.thin({"rows": [{"streams": 1}]}) == []  # of another kind


def test_groups_are_many_and_every_recorded_file_has_a_name(bench):
    record.main(["loops", "archive"])
    assert bench.ran[0].startswith("headrace bench --loops ")
    assert bench.ran[-1] == "bench/archive.py archive.json --folder ."
    known = {jobs.file_of(name) for group in jobs.groups().values() for name in group}
    for one in machines.machines(ROOT / "bench/results"):
        assert set(one.found) <= known
    assert {jobs.file_of(name) for name in jobs.chosen(["all"])} == known


@pytest.mark.parametrize("name", list(jobs.chosen(["all"])))
def test_a_job_names_its_file_and_a_command_that_is_there(name):
    job = jobs.chosen([name])[name]
    assert job.printed or jobs.file_of(name) in job.words
    program = record.program(job.words)
    assert program[0] == sys.executable
    assert program[1] in ("-c", "-m") or Path(program[1]).is_file()
    if program[1] == "-m":
        assert (ROOT / f"{program[2].replace('.', '/')}.py").is_file()


def test_what_is_printed_is_kept(tmp_path, monkeypatch):
    printed = [{"claim": "a", "holds": True}, {"claim": "b", "holds": False}]

    def run(words, **options):
        assert words[-3:] == [record.HEADRACE, "check", "--json"]
        return SimpleNamespace(returncode=status, stdout="\n".join(map(json.dumps, printed)))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(record.report, "taken", lambda: {"commit": "here"})
    job, status = jobs.chosen(["check"])["check"], 1
    assert not record.run(job, tmp_path / "check.json")
    assert not (tmp_path / "check.json").exists()
    status = 0
    assert record.run(job, tmp_path / "check.json")
    made = json.loads((tmp_path / "check.json").read_text())
    assert made["command"] == ["headrace", "check", "--json"]
    assert (made["claims"], made["commit"]) == (printed, "here")


def test_a_record_is_old_when_its_kernels_change(tmp_path, monkeypatch):
    """Those of its family and of what it includes, and no others."""
    record_ = {"sources": sources.digests("bench-linear.json"), "commit": "0"}
    assert sources.changed("bench-linear.json", record_) == []
    listed = {p.relative_to(ROOT).as_posix() for p in sources.compiled("linear")}
    assert {"kernels/linear/columns.inl.h", "csrc/linear.cpp", "csrc/bind/linear.cpp",
            "csrc/common/parallel.h", "csrc/common/isa.cpp"} <= listed  # fmt: skip
    assert not any(path.startswith(("kernels/select", "kernels/prune")) for path in listed)
    assert "csrc/similarity.cpp" in {p.relative_to(ROOT).as_posix()
                                     for p in sources.compiled("prune")}  # fmt: skip
    read, edited = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + b"\n" * (p.name in edited))
    for name, parts in (("columns.inl.h", ["kernels"]), ("timing.py", ["bench"]),
                        ("triton.py", []), ("select.cpp", [])):  # fmt: skip
        edited[:] = [name]
        assert sources.changed("bench-linear.json", record_) == parts


def test_old_records_of_this_machine_are_taken_again(bench, monkeypatch):
    host = {"host": record.report.machine(), "sources": {"kernels": "another"}}
    (bench.target / "bench-select.json").write_text(json.dumps(host))
    fresh = {"sources": sources.digests("bench-linear.json")}
    (bench.target / "bench-linear.json").write_text(json.dumps(fresh))
    quick = host | {"sources": sources.digests("quick.json")}
    (bench.target / "quick.json").write_text(json.dumps(quick))
    record.main(["--stale"])
    assert [line.split()[2] for line in bench.ran] == ["select"]
    record.main(["--list"])
    assert len(bench.ran) == 1


def test_what_has_no_digest_is_asked_of_git(monkeypatch):
    asked = []

    def run(words, **options):
        asked.append(words)
        return SimpleNamespace(returncode=len(asked) % 2)

    monkeypatch.setattr(sources.subprocess, "run", run)
    assert sources.changed("bench-linear.json", {"commit": "0123+"}) == ["kernels"]
    assert asked[0][:6] == ["git", "-C", str(ROOT), "diff", "--quiet", "0123"]


XEON = "Intel(R) Xeon(R) Processor @ 2.50GHz"


UNTOLD = record.report.machine() | {"model": "not told", "processors": 2, "isa": "avx512"}


@pytest.mark.parametrize(
    ("what", "other", "name"),
    [
        ("model", "family 25, model 17", "cpu-2-cores-a-zen-4-avx512"),
        ("cpu", XEON, "cpu-2-cores-intel-xeon-avx512"),
        ("cpu", "AMD EPYC 9654 96-Core Processor", "cpu-2-cores-amd-epyc-9654-avx512"),
        ("processors", 96, "cpu-96-cores-a-avx512"),
        ("isa", "avx512_bf16", "cpu-2-cores-a-avx512-bf16"),
    ],
)
def test_another_machine_has_a_folder_of_its_own(bench, monkeypatch, what, other, name):
    here = UNTOLD | {"cpu": "A"}
    (bench.target / "quick.json").write_text(json.dumps({"host": here}))
    here = here | {what: other}
    monkeypatch.setattr(record.report, "machine", lambda: here)
    record.main(["linear"])
    assert taken(bench.target) == ""
    made = bench.target.parent / name
    assert taken(made) == "bench-linear.json"
    assert (made / "notes.md").read_text() == (
        f"# {machines.short_name(here)}, {here['processors']} processors\n"
    )
    (made / "append.json").write_text(json.dumps({"host": here}))
    assert record.machine_folder() == made


def test_generations_of_one_name_have_two_folders(bench, monkeypatch):
    """Also where the records of the first were taken before hosts told their model."""
    host = UNTOLD | {"cpu": "AMD EPYC", "isa": "avx512_bf16"}
    then = {key: value for key, value in host.items() if key != "model"}
    monkeypatch.setattr(machines, "UNTOLD", {bench.target.name: "family 26"})
    (bench.target / "quick.json").write_text(json.dumps({"host": then}))
    own = "cpu-2-cores-amd-epyc-zen-4-avx512-bf16"
    for model, name in (("family 26, model 2", bench.target.name), ("family 25, model 17", own)):
        monkeypatch.setattr(record.report, "machine", lambda m=model: host | {"model": m})
        assert record.machine_folder().name == name


@pytest.mark.parametrize(
    ("model", "level", "name"),
    [
        ("family 25, model 17", "avx512_bf16", "Zen 4"),
        ("family 25, model 1", "avx2", "Zen 3"),
        ("family 26", "avx512_bf16", "Zen 5"),
        ("family 6, model 85", "avx512", "Skylake"),
        ("family 6, model 85", "avx512_vnni", "Cascade Lake"),
        ("family 6, model 143", "avx512_bf16", "Sapphire Rapids"),
        ("family 6, model 999", "avx2", ""),
        ("implementer 0x41, part 0xd0c", "scalar", ""),
        ("not told", "scalar", ""),
        ("", "avx2", ""),
    ],
)
def test_a_generation_is_known_by_its_numbers(model, level, name):
    assert machines.generation(model, level) == name


def test_machines_of_one_name_have_two_folders(bench, monkeypatch):
    """They differ by their clock alone, which no folder is named after."""
    (bench.target / "quick.json").write_text("{}")
    for clock, name in (("2.50", "cpu-2-cores-intel-xeon-avx512"),
                        ("2.20", "cpu-2-cores-intel-xeon-avx512-2")):  # fmt: skip
        host = UNTOLD | {"cpu": XEON.replace("2.50", clock)}
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
    with pytest.raises(SystemExit, match=r"record\(NAME\): expected one of --list, got 'lineal'"):
        record.main(["lineal"])


def test_the_command_is_that_of_the_file(tmp_path, monkeypatch):
    """As recorded it can be typed again."""
    words = ["headrace", "bench", "compact_inplace", "--quick", "--peers", "--calls", "3",
             "--budget", "0.001", "--json", "b.json"]  # fmt: skip
    assert record.run(jobs.Job(tuple(words), 1), tmp_path / "b.json")
    made = json.loads((tmp_path / "b.json").read_text())
    assert made["command"] == words
    assert made["rows"][0]["beside"][2]["calls"]
    assert record.thin(made) == []
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert not record.run(jobs.Job(tuple(words), 1), tmp_path / "b.json")
