# SPDX-License-Identifier: Apache-2.0
"""The tables of figures say what was recorded, and the aims tell met from short."""

import copy
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import aims  # noqa: E402
import aims_speed  # noqa: E402
import front  # noqa: E402
import gpu  # noqa: E402
import machines  # noqa: E402
import results  # noqa: E402
import speed  # noqa: E402
from record import machine_folder, report  # noqa: E402

MACHINES = machines.machines(ROOT / "bench/results")
HOST = {"cpu", "processors", "threads", "isa", "platform", "python"}


@pytest.fixture(scope="module")
def found():
    """The records of the main machine."""
    return MACHINES[0].found


@pytest.fixture(params=MACHINES, ids=lambda one: one.folder)
def machine(request):
    """Each in turn: what holds for the records of one holds for all."""
    return request.param


def alone(found):
    """A single machine with these records."""
    return [machines.Machine(machines.MAIN, found, "A CPU, avx512")]


def test_every_table_is_that_of_the_recorded_files():
    for path, text in results.written().items():
        assert path.read_text("utf-8") == text, f"{path}: run python tools/results.py"


def test_every_plot_is_that_of_the_recorded_files(found, tmp_path):
    for name, (mark, draw) in speed.plots(found).items():
        path = ROOT / "docs" / name
        assert speed.mark_of(path) == mark, f"{path}: run python tools/results.py"
        draw(tmp_path / name)
        assert speed.mark_of(tmp_path / name) == mark
    assert speed.mark_of(tmp_path / "none.png") == ""


def test_every_record_says_where_it_comes_from(machine):
    hosts = []
    for name, record in machine.found.items():
        assert record["command"], name
        assert record.get("taken") or record["started"], name
        assert len(record["commit"]) >= 7, name
        assert not record["commit"].endswith("+"), f"{name}: taken from files not committed"
        assert "/" not in "".join(record["command"]).replace("bench/", ""), name
        hosts.append(record.get("host") or record["machine"])
        assert set(hosts[-1]) >= HOST, name
        assert all(hosts[-1].values()), name
        assert hosts[-1]["isa"] in machines.LEVELS, name
    assert len({(host["cpu"], host["processors"]) for host in hosts}) == 1


def test_the_machine_of_a_folder_finds_it_again(machine, monkeypatch):
    monkeypatch.setattr(report, "machine", lambda: machines.host_of(machine.found))
    assert machine_folder() == ROOT / "bench/results" / machine.folder


def test_no_ratio_is_shown_of_a_wrong_result(machine):
    for name, record in machine.found.items():
        assert all(row.get("ok", True) for row in record.get("rows", [])), name


def test_no_share_of_a_floor_is_above_what_noise_explains(machine):
    """Of the rows whose floor goes by the dtype of their products."""
    for name, record in machine.found.items():
        for row in record.get("rows", []):
            if isinstance(row, dict) and row.get("product") and row["of_floor"] is not None:
                assert row["of_floor"] <= 1.05, (name, row["shape"], row["of_floor"])


def test_another_figure_gives_another_table(found):
    changed = copy.deepcopy(found)
    changed["bench-linear.json"]["rows"][0]["speedup"] *= 10
    assert front.front(changed) != front.front(found)
    assert front.prose(changed) == front.prose(found)
    changed["bench-paged_attention.json"]["rows"][0]["speedup"] = 0.5
    assert "**short**" in _line(results.aims(alone(changed)), "the same, worst shape")
    assert "met" in _line(results.aims(alone(found)), "the same, worst shape")


@pytest.mark.parametrize(
    ("file", "shape", "note", "sentence"),
    [
        ("bench-append.json", "bf16 256 tokens", None, "appending 1, 256 and 4,096 tokens is"),
        ("bench-append.json", "bf16 4096 tokens", None, "appending 1, 256 and 4,096 tokens is"),
        *(("bench-attention.json", f"prefill {dtype} 4k window 512 sinks 4",
           "share of matmul rate", "Prefill in fp32 runs at") for dtype in ("fp32", "bf16")),
        *(("bench-paged_attention.json", f"decode bf16 B2 {many} cached",
           "time over re-indexing off", "Re-indexing costs decode") for many in ("1k", "16k")),
    ],
)  # fmt: skip
def test_what_the_front_page_says_is_what_was_recorded(found, file, shape, note, sentence):
    changed = copy.deepcopy(found)
    (row,) = [row for row in changed[file]["rows"] if row["shape"] == shape]
    if note:
        row["notes"][note] = 77.0
    else:
        row["speedup"] = 77.0
    told = " ".join(front.prose(changed).split()).split(". ")
    (said,) = [one for one in told if sentence in one]
    assert "77.0" in said or "7600%" in said


def test_the_page_of_speed_gives_the_rates_of_its_floors():
    row = {"product": "bf16", "rates": [1e10, 9.4e11]}
    rows = [row, row | {"rates": [1e10, 9e11]}, row | {"product": "fp32"}]
    assert "in GFLOP/s: bf16 940, fp32 940." in speed.speed_page(alone({"a.json": {"rows": rows}}))


def test_the_page_of_speed_says_what_was_recorded():
    one = {"warm_s": 1e-3, "cold_s": 2e-3, "ok": True, "name": "ours", "calls": [200, 9]}
    peer = one | {"name": "a peer", "warm_s": 3e-3, "cold_s": 4e-3, "calls": [3]}
    wrong = one | {"name": "a wrong peer", "ok": False}
    row = {"ok": True, "beside": [one | {"name": "floor", "warm_s": 5e-4}, one, peer, wrong]}
    found = {"bench-linear.json": {"rows": [row, row | {"ok": False}]}}
    text = speed.speed_page(alone(found))
    assert "| `linear` | a peer | 1 | 3.00x | 2.00x | 3 | 50%, 100% |" in text
    assert "a wrong peer" not in text
    assert text.count(speed.NONE) == 2  # neither loops nor scaling
    assert speed.plots(found) == {}
    side = {"throughput": 80.0, "lag_p50": 1e-3, "lag_p99": 2e-3, "bytes": 2048}
    gain = {"median": 22.5, "least": 21.0, "most": 23.0}
    point = {"at": 4096, "ok": True, "sides": {"ours": side, "recomputation": side},
             "speedup": {"recomputation": gain}, "notes": {}}  # fmt: skip
    loop = {"name": "streaming", "title": "a title", "equals": "it", "axis": "window",
            "unit": "tokens/s", "points": [point]}  # fmt: skip
    series = {"name": "sinks and a window", "at": [10, 100, 1000], "seconds": [1e-3] * 3,
              "half": [[1e-3, 1e-3]] * 3, "slope": 0.0123, "slope_error": 0.001}  # fmt: skip
    work = {"name": "length", "title": "a title", "axis": "tokens", "of": "a token",
            "ideal": 0.0, "series": [series]}  # fmt: skip
    found |= {"loop-streaming.json": {"loops": [loop]}, "scale-length.json": {"scaling": [work]}}
    text = speed.speed_page(alone(found))
    told = "| recomputation | 80.0 | 1.00, 2.00 ms | 2 KiB | 22.50x (21.00 to 23.00) |"
    assert told in text
    told = "10 to 1,000 tokens | a token: 1000 us to 1000 us | +0.01 \N{PLUS-MINUS SIGN} 0.00 |"
    assert told in text
    assert speed.NONE not in text
    marks = {name: mark for name, (mark, _) in speed.plots(found).items()}
    gain["median"] = 2.0
    changed = {name: mark for name, (mark, _) in speed.plots(found).items()}
    assert marks["loops.png"] != changed["loops.png"]
    assert marks["scaling.png"] == changed["scaling.png"]
    told = results.aims(alone({name: found[name] for name in found if name != "bench-linear.json"}))
    assert "**short**" in _line(told, "sinks and a window of 4,096")
    assert ", met |" in _line(told, "the exponent")


def test_no_op_may_be_slower_than_its_peer():
    (aim,) = [aim for aim in aims.AIMS if aim.what.startswith("`linear`, every shape")]
    linear = {"op": "linear", "peer_name": "torch"}
    rows = [linear | {"speedup": 1.4}, linear | {"speedup": 0.4, "peer_name": "ours, bf16"}]
    assert aim.met(aim.measure({"rows": rows}))
    assert not aim.met(aim.measure({"rows": [*rows, linear | {"speedup": 0.99}]}))


def test_an_aim_without_its_record_says_so(found):
    without = {k: v for k, v in found.items() if k != "bench-lora_rows.json"}
    assert "not recorded yet" in _line(results.aims(alone(without)), "256 int4 adapters")


def test_small_shapes_are_no_slower_either(found):
    rows = [
        {"op": op, "peer_name": "torch", "speedup": 1 + i}
        for i, op in enumerate(["linear", "lora"])
    ]
    told = results.aims(alone(found | {"quick.json": {"rows": rows}}))
    assert "| 1x, met |" in _line(told, "`linear`, quick shapes")
    assert "| 2x, met |" in _line(told, "`lora`, quick shapes")
    assert "not recorded yet" in _line(told, "`select`, quick shapes")
    rows[0]["speedup"] = 0.99
    told = results.aims(alone(found | {"quick.json": {"rows": rows}}))
    assert "**short**" in _line(told, "`linear`, quick shapes")
    assert "**short**" not in _line(told, "`append`, every shape")


@pytest.mark.parametrize("aim", aims.AIMS, ids=lambda aim: aim.what)
def test_an_aim_bounds_one_side_and_measures(aim):
    assert (aim.least is None) != (aim.most is None)
    bar = aim.least if aim.least is not None else aim.most
    up = aim.least is not None
    assert aim.met(bar)
    assert aim.met(bar * 1.01) is up
    assert aim.met(bar * 0.99) is not up
    for found in (one.found for one in MACHINES if aim.file in one.found):
        assert math.isfinite(aim.measure(found[aim.file]))  # a slope or a loss may be below 0


def test_an_aim_of_no_shape_is_an_error(found):
    with pytest.raises(ValueError, match="no shape begins with 'decode bf17'"):
        aims.mean("decode bf17")(found["bench-paged_attention.json"])


def test_a_record_is_one_that_the_bench_writes(machine):
    for name, record in machine.found.items():
        if name.startswith("bench-"):
            assert json.dumps(record, allow_nan=False)
            assert {row["op"] for row in record["rows"]} == {name[6:-5]}, name


def _line(text, what):
    (line,) = [line for line in text.splitlines() if what in line]
    return line


def test_the_page_of_gpus_says_what_has_been_seen(tmp_path):
    kernel = {"kernel": "a_kernel", "registers": 9, "shared": 2048, "spills": 0, "arch": "80"}
    forms = [kernel | {"case": "x float32", "spills": 7}, kernel | {"case": "x bfloat16"}]
    forms += [form | {"arch": "90a", "registers": 11} for form in forms]
    report = {"device": "none", "date": "2026-01-02T03:04", "commit": "abcdefghij"}
    report["units"] = {"resources triton": {"state": "ok", "kernels": forms}}
    (tmp_path / "compilers").mkdir()
    (tmp_path / "compilers/report.json").write_text(json.dumps(report))
    text = gpu.gpu_page(tmp_path)
    assert "seen running on a GPU yet" in text
    assert "| `a_kernel`, Triton | 2 | 9, 11 | 2, 2 | 0, 0 | 7, 7 |" in text
    assert "`append`" in text.split("CUDA C++, results")[1].splitlines()[0]
    assert "- compute-sanitizer" in text
    assert "- engines and streams" in text
    assert "- tiers" in text
    assert "the Triton LoRA kernels of vLLM" in text
    assert "2 of the 4 forms on both architectures spill registers, 7 bytes a thread" in text
    (tmp_path / "card").mkdir()
    rows = [{"op": "append", "correct": {"cuda": True, "triton": False}}]
    units = {"tests x": {"state": "ok"}, "bench x": {"state": "failed", "rows": rows}}
    seen = {**report, "device": "A Card", "units": units}
    (tmp_path / "card/report.json").write_text(json.dumps(seen))
    text = gpu.gpu_page(tmp_path)
    assert "seen running on a GPU yet" not in text
    assert "A Card, 2026-01-02, commit abcdefg: 1 failed, 1 ok" in text
    told = {line[:8]: line for line in text.split("What is unproved")[1].splitlines()}
    assert "`append`" in told["- Triton"]
    assert "`append`" not in told["- CUDA C"]
    assert "- engines and streams" in text  # of what was run there, not of these
    assert "- tests o" not in told
    assert "- compute-sanitizer" in text


def test_a_peer_that_computed_something_else_is_no_worst_case():
    (aim,) = (a for a in aims_speed.shapes() if a.what.startswith("`select`, every"))
    row = {"op": "select", "peer_name": "torch", "speedup": 3.0, "peer_ok": True}
    other = row | {"speedup": None, "peer_ok": False}
    assert aim.measure({"rows": [row, other, row | {"speedup": 2.0}]}) == 2.0
    assert aim.measure({"rows": [other]}) is None
    with pytest.raises(TypeError):
        aim.measure({"rows": [row | {"speedup": None}]})
