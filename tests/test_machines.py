# SPDX-License-Identifier: Apache-2.0
"""The pages of figures hold every machine, be there one or several."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import aims  # noqa: E402
import front  # noqa: E402
import machines  # noqa: E402
import results  # noqa: E402
import speed  # noqa: E402


def made_up(tmp_path, *isas):
    """Machines with two records each, of which the last has one alone; the first is the main."""
    for nth, isa in enumerate(isas):
        folder = tmp_path / (f"cpu-{nth}" if nth else machines.MAIN)
        folder.mkdir()
        (folder / "notes.md").write_text("# Notes")
        host = {"host": {"cpu": f"Maker(R) {nth} @ 2.50GHz", "isa": isa, "model": "",
                         "processors": 2, "threads": 2}}  # fmt: skip
        one = {"warm_s": 1e-3, "cold_s": 2e-3, "ok": True, "name": "ours", "calls": [200, 9]}
        peer = one | {"name": "a peer", "warm_s": (nth + 2) * 1e-3}
        row = {"op": "linear", "ok": True, "shape": "fp32", "peer_name": "a peer",
               "speedup": 0.5 if nth else 2.0, "beside": [one | {"name": "floor"}, one, peer],
               "product": "fp32", "rates": [1e9, (nth + 1) * 1e9]}  # fmt: skip
        (folder / "bench-linear.json").write_text(json.dumps({"rows": [row], **host}))
        if nth == 0 or nth + 1 < len(isas):
            series = {"name": "sinks and a window", "at": [10, 1000], "seconds": [1e-3] * 2,
                      "slope": 0.01 + nth, "slope_error": 0.0}  # fmt: skip
            work = {"name": "length", "title": "a title", "axis": "tokens", "of": "a token",
                    "series": [series]}  # fmt: skip
            (folder / "scale-length.json").write_text(json.dumps({"scaling": [work], **host}))
    (tmp_path / "a GPU").mkdir()  # without notes
    return machines.machines(tmp_path)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


LINEAR, LENGTH = "`linear`, every shape and peer, warm", "the exponent"


@pytest.mark.parametrize("many", [1, 2, 3])
def test_every_machine_has_a_column_of_aims(tmp_path, many):
    every = made_up(tmp_path, *("avx512_bf16", "avx512", "avx2")[:many])
    text = results.aims(every)
    heads = cells(_line(text, "| what |"))
    names = ["Maker 0, avx512_bf16", "Maker 1, avx512", "Maker 2, avx2"][:many]
    assert heads == ["", "what", "bar", *names, "recorded in"]
    assert len(cells(_line(text, "|---|"))) == len(heads)
    assert cells(_line(text, LINEAR))[3:-1] == ["2x, met", "3x, met", "4x, met"][:many]
    told = {1: ["0.01, met"], 2: ["0.01, met", ""], 3: ["0.01, met", "1.01, **short**", ""]}
    assert cells(_line(text, LENGTH))[3:-1] == told[many]
    assert cells(_line(text, "1080p RGB"))[3:-1] == ["not recorded yet", *[""] * (many - 1)]
    for one in every:
        assert f"`bench/results/{one.folder}`" in text


def test_a_reason_is_that_of_its_machine(tmp_path):
    every = made_up(tmp_path, "avx512", "avx2")
    aim = aims.Aim("a", "b", "bench-linear.json", aims.mean("fp32"), least=3.0, why="at all")
    assert cells(_line(results.aims(every, [aim]), "| b |"))[3:5] == [
        "2x, **short**: at all", "0.5x, **short**: at all",
    ]  # fmt: skip
    aim = replace(aim, why={"cpu-1": lambda record: f"here, {record['rows'][0]['shape']}"})
    assert cells(_line(results.aims(every, [aim]), "| b |"))[3:5] == [
        "2x, **short**", "0.5x, **short**: here, fp32",
    ]  # fmt: skip


def test_what_was_taken_at_another_level_or_on_fewer_threads_is_told(tmp_path):
    (one,) = made_up(tmp_path, "avx512_bf16")
    assert "Taken" not in speed.speed_page([one])
    one.found["scale-length.json"]["host"] |= {"isa": "avx512", "threads": 1}
    assert "\nTaken at avx512 with 1 thread: length.\n" in speed.speed_page([one])
    assert (one.level("scale-length.json"), one.level("bench-linear.json")) == ("avx512", "")


@pytest.mark.parametrize("many", [1, 2, 3])
def test_every_machine_has_a_part_of_the_page_of_speed(tmp_path, many):
    every = made_up(tmp_path, *("avx512_bf16", "avx512", "avx2")[:many])
    text = speed.speed_page(every)
    peers, loops, scales = re.split("^## (?:Every op|Loops|Cost as).*", text, flags=re.M)[1:]
    assert speed.NONE in loops
    ratios = re.findall("a peer . 1 . ([0-9.]+)x", peers)
    assert ratios == ["2.00", "3.00", "4.00"][:many]
    heads = [f"### {one.name}" for one in every] if many > 1 else []
    assert re.findall("^### .*", peers, re.M) == heads
    assert re.findall("^### .*", scales, re.M) == heads[: max(1, many - 1)]
    assert re.findall("[+-][0-9][.][0-9]+", scales) == ["+0.01", "+1.01"][: max(1, many - 1)]
    assert scales.count("(scaling.png)") == 1
    rates = ["fp32 1", "Maker 0, avx512_bf16: fp32 1; Maker 1, avx512: fp32 2"][many > 1]
    assert f"in GFLOP/s: {rates}{'; Maker 2, avx2: fp32 3' if many > 2 else ''}." in text


@pytest.mark.parametrize("many", [1, 2, 3])
def test_the_front_page_says_where_other_machines_are(tmp_path, monkeypatch, many):
    for name in ("README.md", "docs/pruning.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"))
    known, recorded = tmp_path / "bench/results", ROOT / "bench/results"
    known.mkdir(parents=True)
    for name in (machines.MAIN, "compilers"):
        (known / name).symlink_to(recorded / name)
    taken = json.loads((recorded / machines.MAIN / "quick.json").read_text())
    untold = {key: value for key, value in taken["host"].items() if key != "model"}
    for name in ("Intel(R) Xeon(R)", "A B")[: many - 1]:
        host = untold | {"cpu": name, "isa": "avx2"}
        made = machines.new_folder(known, host)
        (made / "quick.json").write_text(json.dumps(taken | {"host": host}))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    texts = results.written()
    block = texts[tmp_path / "README.md"].split(results.BEGIN)[2].split(results.END)[0]
    assert front.front(machines.load(known / machines.MAIN)) in block
    said = {
        1: "",
        2: "this one: Intel Xeon, avx2 (`bench/results/cpu-2-cores-intel-xeon-avx2`).",
        3: "this one: A B, avx2 (`bench/results/cpu-2-cores-a-b-avx2`), Intel Xeon, avx2"
        " (`bench/results/cpu-2-cores-intel-xeon-avx2`).",
    }[many]
    assert said in " ".join(block.split())
    assert ("other machines" in block) == (many > 1)
    pages = [path.parent for path in texts if path.parent.parent == known]
    assert len(pages) == many


def test_machines_that_would_be_called_the_same_are_called_by_their_folders(tmp_path):
    made_up(tmp_path, "avx512", "avx512")
    for path in tmp_path.glob("*/*.json"):
        path.write_text(path.read_text().replace("Maker(R) 1 @ 2.50", "Maker(R) 0 @ 2.20"))
    names = [one.name for one in machines.machines(tmp_path)]
    assert names == [machines.MAIN, "cpu-1"]


def _line(text, what):
    (line,) = [line for line in text.splitlines() if what in line]
    return line
