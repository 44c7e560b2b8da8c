# SPDX-License-Identifier: Apache-2.0
"""The script for a GPU, as far as it runs without one."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from headrace.kernels.common import tuned

from bench.gpu import built, peers, stages
from bench.gpu.jobs import SEQUENCES, jobs
from bench.gpu.measure import Bench
from bench.gpu.stages import RUN
from bench.gpu.table import table
from headrace import ops
from tests import warm

from .test_gpu_suite import Report

ROOT = Path(__file__).parents[1]


def command(out, *arguments, fresh=False):
    begun = [sys.executable] if fresh else warm.python(*warm.TORCH)
    return [*begun, str(ROOT / "scripts/gpu_check.py"), str(out), *map(str, arguments)]


def check(*given, **options):
    return subprocess.run(command(*given, **options), capture_output=True, text=True)


def test_a_dry_run_resumes_and_leaves_nothing_out(tmp_path):
    given = ("--dry-run", "--commit", "abc", "--stages", "bench", "--only")
    first = check(tmp_path / "a", *given, "linear", "--budget", "60s", fresh=True)
    assert first.returncode == 0, first.stdout + first.stderr
    again = check(tmp_path / "b", *given, "linear,append", "--resume", tmp_path / "a")
    assert again.returncode == 0, again.stdout + again.stderr
    old, new = (json.loads((tmp_path / n / "report.json").read_text()) for n in "ab")
    assert {name.split(":")[0] for name in new["units"]} == {"bench linear", "bench append"}
    for name, unit in old["units"].items():
        assert new["units"][name] == unit  # taken over, not timed again
    assert new["earlier"] == [old["date"]]
    new["sources"] = "others"
    (tmp_path / "b/report.json").write_text(json.dumps(new))
    other = check(tmp_path / "c", "--dry-run", "--stages", "sanitize", "--resume", tmp_path / "b")
    assert "begun anew" in other.stdout
    assert set(json.loads((tmp_path / "c/report.json").read_text())["units"]) == {"sanitize"}
    assert "| linear |" in (tmp_path / "b/report.md").read_text()


def test_the_budget_is_kept(tmp_path):
    begun = time.monotonic()
    done = check(tmp_path, "--dry-run", "--budget", "12s", "--stages", "bench,tune")
    assert done.returncode in (0, 1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["units"]) < len(jobs("dry"))
    assert time.monotonic() - begun < 40  # the interpreter's start, on a busy machine, comes on top


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = check(tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert "found none" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_stage_that_does_not_exist_is_named(tmp_path):
    done = check(tmp_path, "--stages", "tests,fly")
    assert done.returncode == 2
    assert "got fly" in done.stderr


def test_every_op_with_a_gpu_backend_is_timed():
    on_gpu = {name for name, spec in ops.specs().items() if spec.gpu}
    for size in ("dry", "quick", "full"):
        made = jobs(size)
        assert {job.op for job in made} == on_gpu | set(SEQUENCES)
        assert {job.op for job in made[: len(on_gpu)]} == on_gpu
        assert tuple(job.op for job in made[len(on_gpu) :])[: len(SEQUENCES)] == SEQUENCES
        assert len({job.name for job in made}) == len(made)
        assert len({job.op for job in made[: len(on_gpu)]}) == len(on_gpu)  # each op's first shape
    assert set(RUN) == {"build", "tests", "bench", "replays", "sanitize", "tune", "resources"}


def test_a_wrong_result_has_no_ratio():
    row = {"op": "linear", "what": "1", "floor_us": 1.0, "us": {"triton": 2.0, "torch": 8.0}}
    head = {n: "" for n in ("device", "date", "commit", "sources", "command", "versions")} | {
        "floors": {}
    }
    for good, told in ((True, "(4.00x)"), (False, "WRONG")):
        unit = {"state": "ok", "rows": [row | {"correct": {"triton": good}}]}
        text = table({**head, "units": {"bench linear": unit}})
        assert told in text
        assert ("(4.00x)" in text) == good


def test_choices_come_from_the_table_of_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.table.cache_clear()
    told = {"linear": {"64 48 fp32": {"rows": 16}}}
    (tmp_path / "some-card-80gb.json").write_text(json.dumps(told))
    assert tuned.file_name("Some Card (80GB)") == "some-card-80gb.json"
    assert tuned.table("Some Card (80GB)") == told
    assert tuned.table("Another") == {}
    x, default = torch.zeros(1), {"rows": 1}
    assert tuned.choice("linear", "64 48 fp32", x, default) == default  # not on a GPU
    with tuned.trial("linear", {"rows": 4}) as asked:
        assert tuned.choice("linear", "k", x, default) == {"rows": 4}
    assert asked == ["k"]
    with tuned.trial("linear", None):
        assert tuned.choice("linear", "k", x, default) == default
    tuned.table.cache_clear()


def good_table():
    keys = {"attention": "128 16-bit", "paged_attention": "64 fp32", "linear": "4096 14336 16-bit",
            "lora": "4096 4 fp32"}  # fmt: skip
    return {kernel: {key: tuned.combinations(kernel)[1]} for kernel, key in keys.items()}


def test_shipped_tables_hold_candidates():
    assert set(good_table()) == set(tuned.CANDIDATES)
    assert tuned.problems(good_table()) == []
    for path in sorted(tuned.FOLDER.glob("*.json")):
        assert path.name == tuned.file_name(path.stem)
        assert tuned.problems(json.loads(path.read_text())) == [], path.name


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ([], "expected {kernel"),
        ({"linaer": {}}, "linaer: no such kernel"),
        ({"linear": {}}, "linear: expected {key"),
        ({"linear": {"4096 16-bit": "first"}}, "linear, 4096 16-bit: no key"),
        ({"linear": {"64 48 fp32": {"rows": 7}}}, "{'rows': 7} is no candidate"),
        ({"attention": {"128 fp64": "first"}}, "attention, 128 fp64: no key"),
    ],
)
def test_a_table_that_would_not_do_is_told(table, told):
    for keys in table.values() if isinstance(table, dict) else ():
        for key in [k for k, choice in keys.items() if choice == "first"]:
            keys[key] = tuned.combinations("linear" if "linear" in table else "attention")[0]
    assert told in "; ".join(tuned.problems(table))


def test_a_report_is_of_its_sources_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(built, "ROOT", tmp_path)
    table = tmp_path / "kernels/common/tuned/some-card.json"
    table.parent.mkdir(parents=True)
    (tmp_path / "kernels/common/a.cu").write_text("one")
    seen = {built.sources()}
    table.write_text("{}")
    seen.add(built.sources())
    table.write_text("{ }")
    seen.add(built.sources())
    (tmp_path / "kernels/common/a.cu").write_text("two")
    seen.add(built.sources())
    assert len(seen) == 4


@pytest.mark.parametrize("kind", ["same", "older", "lacking", "redirected", "absent"])
def test_only_the_headrace_of_the_tree_will_do(kind, tmp_path, monkeypatch):
    tree, site = tmp_path / "tree", tmp_path / "site"
    for folder in (tree / "python/headrace", site / "headrace"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    for folder in (tree / "kernels/linear", site / "headrace/kernels/linear"):
        folder.mkdir(parents=True)
        (folder / "triton.py").write_text("new")
    if kind == "older":
        (site / "headrace/kernels/linear/triton.py").write_text("old")
    if kind == "lacking":
        (tree / "kernels/linear/tuned.json").write_text("{}")
    parts = {"": tree / "python/headrace", "kernels": tree / "kernels"}
    monkeypatch.setattr(built, "ROOT", tree)
    monkeypatch.setattr(built, "PARTS", parts)
    at = tree / "python/headrace" if kind == "redirected" else site / "headrace"
    spec = importlib.machinery.ModuleSpec("headrace", None, origin=str(at / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None if kind == "absent" else spec)
    why, hidden = built.installed()
    told = {"older": "see kernels/linear/triton.py", "lacking": "see kernels/linear/tuned.json",
            "absent": "not installed"}  # fmt: skip
    assert (told[kind] in why) if kind in told else why == ""
    monkeypatch.setattr(sys, "path", [str(site)])
    assert built.installed()[1] == (kind != "redirected" or hidden)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # as when a hook of an import finds it
    if kind in ("older", "lacking"):
        assert not built.installed()[1]
        assert "pip uninstall" in built.install(tmp_path, time.monotonic(), "x")


def test_killed_at_any_time_it_goes_on(tmp_path):
    more = ["--dry-run", "--stages", "bench", "--only", "linear,merge_states,append"]
    process = subprocess.Popen(command(tmp_path / "a", *more), stdout=subprocess.PIPE)
    for line in process.stdout:
        if b"bench" in line:
            break
    process.kill()
    process.communicate()
    old = json.loads((tmp_path / "a/report.json").read_text())
    assert len(old["units"]) in (1, 2)
    again = check(tmp_path / "b", *more, "--resume", tmp_path / "a")
    assert again.returncode == 0, again.stdout + again.stderr
    new = json.loads((tmp_path / "b/report.json").read_text())
    assert len(new["units"]) == 3
    assert old["units"].items() <= new["units"].items()


def test_all_but_the_store_works_without_lmdb():
    """What a lent machine has is torch and what builds; the rest is not there."""
    script = """if True:
        import sys
        for name in ("lmdb", "rich", "matplotlib", "av", "transformers", "peft", "PIL"):
            sys.modules[name] = None
        import headrace
        import bench.gpu.stages, bench.gpu.worker
        assert headrace.load_error is None, headrace.load_error
        try:
            headrace.AdapterStore(sys.argv[1])
        except ImportError as error:
            assert "pip install lmdb" in str(error)
        else:
            raise AssertionError
    """
    told = [*warm.python(*warm.TORCH), "-c", script, "/nowhere/store"]
    done = subprocess.run(told, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_peer_that_is_broken_costs_its_own_line(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    flash = type(sys)("flash_attn")
    flash.flash_attn_with_kvcache = flash.flash_attn_func = broken
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    monkeypatch.setitem(sys.modules, "flashinfer", None)  # as if it were not installed
    assert set(peers.decode(64)) == {"flash-attention"}
    bench = Bench(dry=True)
    x, w = torch.ones(2, 16), torch.ones(3, 16)
    bench.add(
        "linear", "", lambda: dict(x=x, weight=w, bias=None),
        {"broken": broken, "broken and proved": broken}, lambda s, out: True,
        {"broken and proved": lambda s, out: True},
    )  # fmt: skip
    (row,) = bench.rows
    assert "no kernel image" in row["us"]["broken"]
    assert "no kernel image" in row["us"]["broken and proved"]


def test_what_compiles_ahead_times_nothing():
    bench = Bench(dry=True, warm=True)
    next(job for job in jobs("dry") if job.op == "linear").run(bench)
    assert bench.rows[0]["us"] == {"reference": 0.0, "torch linear": 0.0}
    assert bench.rows[0]["floor_us"] == 0.0
    assert bench.floors == {}


def test_the_table_of_a_device_holds_what_earlier_runs_found(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "choices", lambda kernel, size: [])
    shipped = {"linear": {"a": {"rows": 1}}, "lora": {"b": {"depth": 2}}}
    monkeypatch.setattr(tuned, "table", lambda device: shipped)
    told = {
        "tune linear 3 64": {"state": "ok", "best": {"c": {"rows": 3}}},
        "tune attention 96": {"state": "ok", "best": {"d": {"rows": 4}}},
    }
    report = Report()
    report.out, report.data = tmp_path, {"units": told, "floors": {}, "device": "Some Card"}
    stages.tune(report, "dry", None)
    found = json.loads((tmp_path / "some-card.json").read_text())
    assert found == {
        "linear": {"a": {"rows": 1}, "c": {"rows": 3}}, "lora": {"b": {"depth": 2}},
        "attention": {"d": {"rows": 4}},
    }  # fmt: skip
