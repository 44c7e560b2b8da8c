# SPDX-License-Identifier: Apache-2.0
"""The tables of figures say what was recorded, and the aims tell met from short."""

import copy
import json
import math
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import aims  # noqa: E402
import aims_speed  # noqa: E402
import endless  # noqa: E402
import front  # noqa: E402
import gpu  # noqa: E402
import jobs  # noqa: E402
import machines  # noqa: E402
import plots  # noqa: E402
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


PLOTS = plots.plots(MACHINES)


@pytest.fixture
def rough(monkeypatch):
    """Plots are coarse and not arranged, which takes less time."""
    save = Figure.savefig

    def roughly(figure, *where, **options):
        figure.set_layout_engine("none")
        save(figure, *where, **(options | {"dpi": 20}))

    monkeypatch.setattr(Figure, "savefig", roughly)


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_that_of_the_recorded_files(name, tmp_path):
    mark, draw = PLOTS[name]
    assert plots.mark_of(ROOT / name) == mark, f"{name}: run python tools/results.py"
    draw(tmp_path / "drawn.png")
    assert plots.mark_of(tmp_path / "drawn.png") == mark
    assert plots.mark_of(tmp_path / "none.png") == ""


def test_every_committed_plot_is_drawn_from_a_record():
    there = {f.relative_to(ROOT).as_posix() for folder in ("docs", "bench/results")
             for f in (ROOT / folder).rglob("*.png")}  # fmt: skip
    assert there == {*PLOTS, "docs/video.png"}  # whose frames no record holds


def test_the_rooflines_are_linked_from_the_page_of_speed():
    for one in MACHINES:
        name = speed.plot_name("rooflines", one.folder)
        assert f"({name})" in (ROOT / "docs/speed.md").read_text("utf-8")
        assert f"docs/{name}" in PLOTS


def test_rows_without_the_dtype_of_their_products_are_under_no_roof(found):
    rows = speed.roofs(found)
    there = {"attention", "paged_attention", "lora", "gated_delta_rule"}
    assert {row["op"] for row in rows} >= there
    changed = copy.deepcopy(found)
    for row in changed["bench-gated_delta_rule.json"]["rows"]:
        del row["product"]  # as older records are
    assert {row["op"] for row in speed.roofs(changed)} & there == there - {"gated_delta_rule"}
    (name,) = [name for name in PLOTS if name == "docs/rooflines.png"]
    changed = copy.deepcopy(found)
    changed["bench-attention.json"]["rows"][0]["ours_s"] *= 2
    assert plots.plots([machines.Machine(machines.MAIN, changed, "")])[name][0] != PLOTS[name][0]


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


def test_the_page_of_speed_says_how_fast_bytes_move():
    rates = {"empty_call_s": {"extension": 2e-7, "op": 3e-6}, "read": [[9, 9], [1 << 26, 2e10]],
             "copy": [[9, 9], [1 << 26, 1.5e10]]}  # fmt: skip
    old = rates | {"read": [[1 << 26, 7e10]]}
    found = {"bench-linear.json": {"rows": [], "rates": rates, "taken": "2026-02"},
             "quick.json": {"rows": [], "rates": old, "taken": "2026-01"}}  # fmt: skip
    assert (
        "64 MiB are read at 20.0 GB/s and copied at 15.0, both counted; a call that does nothing"
        " takes 0.2 us of the extension, 3 us of an op." in speed.speed_page(alone(found))
    )
    found = {"archive.json": {"rates": {"disk": 1}}}
    assert "both counted" not in speed.speed_page(alone(found))


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
    assert plots.plots(alone(found)) == {}
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
    marks = {name: mark for name, (mark, _) in plots.plots(alone(found)).items()}
    gain["median"] = 2.0
    changed = {name: mark for name, (mark, _) in plots.plots(alone(found)).items()}
    assert marks["docs/loops.png"] != changed["docs/loops.png"]
    assert marks["docs/scaling.png"] == changed["docs/scaling.png"]
    told = results.aims(alone({name: found[name] for name in found if name != "bench-linear.json"}))
    assert "**short**" in _line(told, "sinks and a window of 4,096")
    assert ", met |" in _line(told, "the exponent")


def test_no_op_may_be_slower_than_its_peer():
    (aim,) = [
        aim for aim in aims.AIMS if aim.what.startswith("`linear`, every") and "warm" in aim.what
    ]
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
    assert "**short**" not in _line(told, "`append`, every shape and peer, warm")


@pytest.mark.parametrize("aim", aims.AIMS, ids=lambda aim: aim.what)
def test_an_aim_bounds_one_side_and_measures(aim):
    assert (aim.least is None) != (aim.most is None)
    bar = aim.least if aim.least is not None else aim.most
    up = aim.least is not None
    assert aim.met(bar)
    assert aim.met(bar * 1.01) is up
    assert aim.met(bar * 0.99) is not up
    for one in (one for one in MACHINES if aim.file in one.found):
        record = one.found[aim.file]
        value = aim.measure(record)
        if value is None:  # what older records do not hold
            assert "cold caches" in aim.what or aim.family == "commands"
            continue
        assert math.isfinite(value)  # a slope or a loss may be below 0
        said = [aim.reason(one.folder, record), *([aim.where(record, True)] if aim.where else [])]
        assert not any("|" in each or "\n" in each for each in said)


@pytest.mark.parametrize("aim", [aim for aim in aims.AIMS if aim.test], ids=lambda aim: aim.what)
def test_a_bar_that_a_test_asserts_names_a_test_that_is_there(aim):
    path, _, name = aim.test.partition("::")
    assert f"\ndef {name}(" in (ROOT / path).read_text("utf-8")


def test_a_bar_without_a_record_names_what_would_show_it(found):
    """Either tools/record.py makes the file, or a record is there already."""
    made = {jobs.file_of(name) for group in jobs.groups().values() for name in group}
    for aim in aims.AIMS:
        assert aim.file in made, aim.what


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
    (aim,) = (a for a in aims_speed.shapes() if a.what.startswith("`select`, every") and "warm" in
              a.what)  # fmt: skip
    row = {"op": "select", "peer_name": "torch", "speedup": 3.0, "peer_ok": True}
    other = row | {"speedup": None, "peer_ok": False}
    assert aim.measure({"rows": [row, other, row | {"speedup": 2.0}]}) == 2.0
    assert aim.measure({"rows": [other]}) is None
    with pytest.raises(TypeError):
        aim.measure({"rows": [row | {"speedup": None}]})


def beside(**times):
    """A row beside peers: seconds warm and cold of each, `ours` 2 and 4."""
    times = {"ours": (2, 4), "floor": (1, 1), **times}
    listed = [{"name": name, "warm_s": warm, "cold_s": cold, "ok": True, "calls": [9, 3],
               "warm_half": [warm, warm], "cold_half": [cold, cold]}
              for name, (warm, cold) in times.items()]  # fmt: skip
    return {"op": "select", "ok": True, "shape": "few", "beside": listed, "speedup": 99.0,
            "peer_name": "torch", "peer_ok": True}  # fmt: skip


def test_the_worst_peer_counts_and_not_the_first():
    warm, cold = aims_speed.Least("select"), aims_speed.Least("select", "cold")
    row = beside(torch=(6, 6), compiled=(3, 2))
    assert (warm({"rows": [row]}), cold({"rows": [row]})) == (1.5, 0.5)
    told = cold.where({"rows": [row]}, False)
    assert told == "few beside compiled, 4 s against 2 s; 1.5x or more beside every other peer"
    assert warm.where({"rows": [row]}, True) == ""
    wrong = beside(torch=(6, 6), compiled=(3, 2))
    wrong["beside"][-1]["ok"] = False
    assert cold({"rows": [wrong]}) == 1.5
    ours = beside(**{"torch": (6, 6), "ours, bf16 pages": (1, 1), "the base alone": (1, 1)})
    assert cold({"rows": [ours]}) == 1.5
    with pytest.raises(ValueError, match="a wrong result"):
        warm({"rows": [row | {"ok": False}]})


def test_few_calls_and_a_peer_alone_are_told():
    row = beside(torch=(6, 6))
    row["beside"][-1]["calls"] = [2, 9]
    warm, cold = aims_speed.Least("select"), aims_speed.Least("select", "cold")
    assert warm.where({"rows": [row]}, True) == "fewer than 3 calls of a side at a shape"
    assert cold.where({"rows": [row]}, True) == ""
    assert cold({"rows": [row | {"beside": []}]}) is None
    assert warm.where({"rows": [row | {"beside": []}]}, True) == "beside one peer alone"
    near = beside(torch=(1.9, 6))
    near["beside"][-1]["warm_half"] = [1.8, 2.1]
    assert "within the spread" in warm.where({"rows": [near]}, False)
    near["beside"][-1]["warm_half"] = [1.8, 1.95]
    assert "within the spread" not in warm.where({"rows": [near]}, False)


def test_a_reason_takes_its_figures_from_the_record(found):
    changed = copy.deepcopy(found)
    for row in changed["bench-paged_attention.json"]["rows"]:
        if row["shape"].startswith("decode bf16 B1 1k"):
            row["of_floor"] = 0.07
    what = "batch 1 to 8: share of the floor, mean"
    assert "short**: 7 to " in _line(results.aims(alone(changed)), what)
    assert "7 to" not in _line(results.aims(alone(found)), what)


def test_a_share_above_what_noise_explains_is_not_shown(found):
    changed = copy.deepcopy(found)
    for share in (1.05, 1.06, 9.9):
        changed["bench-linear.json"]["rows"][0]["of_floor"] = share
        assert ("to 105)" in front.front(changed)) == (share == 1.05)
        assert f"{100 * share:.0f})" not in front.front(changed) or share == 1.05


def test_the_level_of_a_record_is_told_where_the_machine_has_more(found):
    what = "sinks and a window of 4,096"
    assert "(at " not in results.aims(alone(found))
    changed = {name: copy.deepcopy(record) for name, record in found.items()}
    machines.host(changed["loop-streaming.json"])["isa"] = "avx512"
    assert "x (at avx512), met" in _line(results.aims(alone(changed)), what)
    assert "(at " not in _line(results.aims(alone(changed)), "the same, worst shape")
    for record in changed.values():
        machines.host(record)["isa"] = "avx512"
    assert "(at " not in results.aims(alone(changed))


def test_text_without_end_is_told_as_it_was_recorded(found):
    text = endless.endless(found)
    changed = copy.deepcopy(found)
    (run, *_) = changed["stream-4m.json"]["policies"]
    run["last_100k"]["perplexity"] = 7.77
    run["kv_bytes_at_end"] = 3 << 20
    assert "| 2.21, 7.77 | 768 KiB, 3 MiB |" in endless.endless(changed)
    assert "7.77" not in text
    pair = changed["stream-bytes-dense.json"]["versus_recompute"]["last_100k"]["window"]
    pair["difference"] = -0.5
    assert "within 0.500" in endless.endless(changed)
    assert endless.endless({}) == ""
