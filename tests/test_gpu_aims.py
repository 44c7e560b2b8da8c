# SPDX-License-Identifier: Apache-2.0
"""The table of what is aimed for on a GPU: every bar is timed by a job, and told as it was seen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from gpu_aims import AIMS, DECODE, aims_table  # noqa: E402

from bench.gpu.jobs import jobs  # noqa: E402
from bench.gpu.measure import Bench  # noqa: E402


class Labels(Bench):
    """Takes down what would be timed."""

    def __init__(self):
        super().__init__(dry=True)
        self.dtype = torch.bfloat16

    def add(self, op, what, *_, **__):
        self.rows.append((op, what))

    def measure(self, work, **_):
        self.rows.append((work.op, work.what))


@pytest.fixture(scope="module")
def labels():
    bench = Labels()
    for job in jobs("quick"):
        job.run(bench)
    assert len(set(bench.rows)) == len(bench.rows)
    return bench.rows


def report_of(rows, **units):
    units = {"bench x": {"state": "ok", "rows": rows}, **units}
    floors = {"matrix_flops_per_s": 1e12}
    return {"device": "A Card", "date": "2026-01-02", "units": units, "floors": floors}


def row(op, what, us, floor_us=1.0, **more):
    given = {"op": op, "what": what, "us": {"triton": us}, "correct": {"triton": True},
             "floor_us": floor_us, "flops": 1e6, "bytes": 1.0}  # fmt: skip
    return given | more


def told(report):
    lines = aims_table({"a": report}).splitlines()
    return {line.split(" | ")[1]: line for line in lines if line.startswith("| ")}


def test_every_aim_is_timed_by_a_job(labels):
    """Each row that a quick run makes, one at a time, quick enough to meet anything."""
    stages = {"tests x": {"state": "ok"}, "sanitize x": {"state": "ok"},
              "replays": {"state": "ok", "told": "3 of 3", "count": 100_000}}  # fmt: skip
    rows = [row(*label, 1e-3, flops=1e12, nodes={"triton": 1}) for label in labels]
    for each in rows:
        each["us"]["vLLM"] = 1.0
    found = told(report_of(rows, **stages))
    for aim in AIMS:
        assert found[aim.what].endswith("| met |"), found[aim.what]
    assert "unproved" in told(report_of([]))[AIMS[0].what]
    assert sum("unproved" in line for line in told(report_of([])).values()) == len(AIMS)


def test_a_bar_is_met_short_or_unproved():
    what = next(aim.what for aim in AIMS if aim.bar == "8 us")
    given = ("paged_attention", DECODE.format(1))
    for us, end in ((8.0, "| 8.0 us (A Card) | met |"), (8.1, "| 8.1 us (A Card) | short |")):
        assert told(report_of([row(*given, us)]))[what].endswith(end)
    wrong = row(*given, 1.0, correct={"triton": False})
    assert "unproved" in told(report_of([wrong]))[what]  # a wrong result has no figure
    share = next(aim.what for aim in AIMS if aim.bar.startswith("85%"))
    batch = ("paged_attention", DECODE.format(64))
    assert told(report_of([row(*batch, 10.0, 8.6)]))[share].endswith(
        "86%, 10.0 us (A Card) | met |"
    )
    assert told(report_of([row(*batch, 10.0, 8.4)]))[share].endswith("| short |")


def test_peers_nodes_and_replays_count():
    names = {aim.bar: aim.what for aim in AIMS}
    mixed = [row("lora", "a", 1.0), row("lora_rows", "b", 2.0)]
    mixed[0]["us"]["vLLM"], mixed[1]["us"]["vLLM"] = 4.0, 2.0
    assert "2.00x (1.00 to 4.00, 2 shapes)" in told(report_of(mixed))[names["1.2x, geometric mean"]]
    mixed[0]["us"]["vLLM"] = "its result is another"
    assert told(report_of(mixed))[names["1.2x, geometric mean"]].endswith("| short |")
    site = row("site", "1 rows, one adapter of rank 16, 4096 wide", 1.0, nodes={"triton": 2})
    one = names["1 node of a graph at most"]
    assert told(report_of([site]))[one].endswith("2 (triton) (A Card) | short |")
    few = {"state": "ok", "told": "3 of 3 graphs, 20 each", "count": 20}
    assert told(report_of([], replays=few))[names["100,000 replays"]].endswith("| short |")
