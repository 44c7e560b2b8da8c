# SPDX-License-Identifier: Apache-2.0
"""How the script for a GPU times and judges: floors, tolerances, peers and the tuner's cases."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch
from headrace.kernels.common import tuned

from bench.gpu import adapters, chains, peers, stages, suite, tune
from bench.gpu.jobs import jobs, products
from bench.gpu.measure import Bench
from bench.gpu.work import Work, near
from headrace.bench.case import MODELS

from .test_gpu_suite import WITHOUT, Report


def bench_of(**floors):
    bench = Bench(dry=True)
    bench.floors = floors
    return bench


def linear(bench, wrong=0.0, **more):
    x, w = torch.randn(40, 64), torch.randn(30, 64)
    check = lambda s, out: [(out + wrong, s["x"].double() @ s["weight"].double().T)]  # noqa: E731
    bench.add("linear", "", lambda: dict(x=x, weight=w, bias=None), more.get("peers", {}), check,
              more.get("proofs"))  # fmt: skip
    return bench.rows[-1]


def test_the_floor_is_the_slowest_of_bytes_products_and_a_node():
    work = Work("", "", dict, {}, {}, lambda s, out: True, 1 << 15, 1e6, lambda dtype: 0.0)
    rates = {"read_bytes_per_s_of_2^15": 2.0**20, "copy_bytes_per_s_of_2^15": 2.0**18}
    rates |= {"matrix_flops_per_s": 1e9, "graph_node_s": 1e-3}
    assert bench_of(**rates).floor(work) == 2.0**15 / 2.0**20  # the quicker of reading and copying
    assert bench_of(**rates | {"matrix_flops_per_s": 1e6}).floor(work) == 1.0
    assert bench_of(**rates | {"graph_node_s": 3.0}).floor(work) == 3.0
    small = dataclasses.replace(work, bytes=1 << 14, flops=0.0)
    there = {f"{kind}_bytes_per_s_of_2^14": 2.0**10 for kind in ("read", "copy")}
    assert bench_of(**rates, **there).floor(small) == 2.0**4  # at the size in question


def test_bytes_and_flops_are_the_contracts():
    row = linear(Bench(dry=True))
    assert row["bytes"] == 4 * (40 * 64 + 30 * 64 + 40 * 30)
    assert row["flops"] == 2 * 40 * 30 * 64


def test_a_result_is_held_to_the_contract():
    assert linear(Bench(dry=True))["correct"] == {"reference": True}
    assert linear(Bench(dry=True), wrong=1e-3)["correct"] == {"reference": False}
    got, want = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]).double()
    assert near(got, want, 0.0)
    assert not near(got * torch.nan, want, 1.0)
    assert not near(torch.tensor([1, 2]), torch.tensor([1, 3]), 1.0)
    assert not near(torch.zeros(2), torch.full((2,), 1e-3), 0.1)
    assert near(torch.zeros(2), torch.full((2,), 1e-3), 0.1, 1.0)


def test_a_peer_of_another_result_is_not_timed():
    right = lambda s, out: [(out, s["x"].double() @ s["weight"].double().T)]  # noqa: E731
    ways = {
        "same": lambda s: torch.nn.functional.linear(s["x"], s["weight"]),
        "another": lambda s: torch.nn.functional.linear(s["x"], s["weight"]) + 1,
        "not the same": lambda s: s["x"],
    }
    proofs = {"same": right, "another": right}
    us = linear(Bench(dry=True), peers=ways, proofs=proofs)["us"]
    assert us["another"] == "its result is another"
    assert isinstance(us["same"], float)
    assert isinstance(us["not the same"], float)  # and says so in its name


@dataclasses.dataclass
class Meta:
    """The metadata of vLLM's LoRA kernels, as it documents them."""

    slots: torch.Tensor
    newer: bool

    def prepare_tensors(self, mapping):
        assert mapping.dtype == torch.int32
        self.order = mapping.sort(stable=True).indices
        self.ids, self.counts = mapping.unique(return_counts=True)
        self.starts = torch.cat([torch.zeros(1).long(), self.counts.cumsum(0)])
        self.slots = mapping

    def args(self, tokens):
        idle = torch.tensor([False])
        found = (self.slots[:tokens], self.order[:tokens], self.counts, self.starts, self.ids, idle)
        return (*found, torch.tensor([len(self.ids)])) if self.newer else found


def vllm(newer, wrong):
    """Its two functions in torch, over groups of rows as the metadata has them."""

    class Known(Meta):
        if newer:
            meta_args = lambda self, tokens, specialize: self.args(tokens)  # noqa: E731
        else:
            meta_args = lambda self, tokens: self.args(tokens)  # noqa: E731

        @staticmethod
        def make(max_loras, max_num_tokens, device):
            assert max_num_tokens >= max_loras > 0
            return Known(torch.empty(max_num_tokens), newer)

    def groups(told):
        assert len(told) == (7 if newer else 6)
        _, order, counts, starts, ids, idle = told[:6]
        assert not idle
        for i, n, first in zip(ids.tolist(), counts.tolist(), starts.tolist(), strict=False):
            yield i, order[first : first + n]

    def shrink(x, a, down, *told):
        *told, scaling = told
        assert down.dtype == torch.float32
        assert down.shape == (1, len(x), a[0].shape[1])
        for i, rows in groups(told):
            down[0, rows] = scaling * (x[rows] @ a[0][i].T)

    def expand(down, b, y, *told, offset_start=0, add_inputs=False):
        assert add_inputs
        assert b[0].is_contiguous()
        for i, rows in groups(told):
            y[rows] += down[0, rows] @ b[0][i].T * (2 if wrong else 1)

    return types.SimpleNamespace(LoRAKernelMeta=Known, lora_shrink=shrink, lora_expand=expand)


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("case", [adapters.lora, adapters.lora_rows])
def test_the_lora_kernels_of_vllm_are_called_as_it_documents(case, newer, wrong, monkeypatch):
    monkeypatch.setattr(peers, "found", lambda name: vllm(newer, wrong) if "lora" in name else None)
    bench = Bench(dry=True)
    case(bench, 7, 3, 4, 64)
    us = bench.rows[-1]["us"]
    assert (us["vLLM"] == "its result is another") if wrong else isinstance(us["vLLM"], float)
    monkeypatch.setattr(peers, "found", lambda name: None)
    case(bench, 7, 3, 4, 64)
    assert "vLLM" not in bench.rows[-1]["us"]


def test_the_tuner_has_a_case_for_every_key_that_models_ask():
    made = tune.cases(dry=False)
    asked = {kernel: [case[1] for name, case in made.items() if tune.kernel_of(name) == kernel]
             for kernel in tuned.CANDIDATES}  # fmt: skip
    assert all(asked.values())
    names = [tune.kernel_of(name) for name in made]
    assert set(names[:4]) == set(asked)  # each kernel's most wanted key first
    for kernel in ("attention", "paged_attention"):
        dims = {x.dim for given in asked[kernel] for x in given if hasattr(x, "dim")}
        assert dims >= {64, 80, 96, 128} | {d.dim for d in MODELS.values()}
    shapes = {given[1:3] for given in asked["linear"]}
    assert shapes == {shape for d in MODELS.values() for shape in products(d)}
    widths = {(given[3], given[4]) for given in asked["lora"]}
    assert widths >= {(d.hidden, bits) for d in MODELS.values() for bits in (None, 4, 8)}


@pytest.mark.parametrize("kernel", sorted(tuned.CANDIDATES))
def test_a_case_asks_its_kernel_for_one_key(kernel):
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    from tests.gpu_compile import recording

    (name,) = (n for n in tune.cases(dry=True) if tune.kernel_of(n) == kernel)
    bench = Bench(dry=True)
    bench.backends = ["triton"]
    told = []
    with recording.recorder() as record:
        record(lambda: told.append(tune.timed(bench, name, None)))
    assert tuned.KEYS[kernel].match(told[0]["key"]), told
    assert bench.rows == []


def test_a_choice_that_was_not_set_beside_the_default_is_not_kept(monkeypatch):
    answers = iter([None, {"us": 1.0, "correct": True, "key": "k"}])
    workers = types.SimpleNamespace(ask=lambda line: next(answers), why="exit 9")
    monkeypatch.setattr(stages, "choices", lambda kernel, size: [None, {"rows": 16}])
    report = Report()
    stages._tuned(report, workers, "dry", "linear 3 64 48")
    unit = report.data["units"]["tune linear 3 64 48"]
    assert unit["best"] == {}
    assert unit["lost"] == {"null": "exit 9"}


def test_a_fetch_that_brings_other_blocks_is_wrong(monkeypatch):
    bench = Bench(dry=True)
    chains.fetch(bench, 3)
    assert bench.rows[-1]["correct"] == {"tiers": True}
    real = chains.Tiers.fetch

    def turned(self, blocks, layer):
        return real(self, blocks[::-1], layer)

    monkeypatch.setattr(chains.Tiers, "fetch", turned)
    chains.fetch(bench, 3)
    assert bench.rows[-1]["correct"] == {"tiers": False}


def test_a_stage_leaves_time_for_those_after_it(monkeypatch):
    monkeypatch.setattr(suite.shutil, "which", lambda name: "/bin/" + name)
    report = Report()
    assert stages.left("sanitize", report, "dry")
    assert stages.left("bench", report, "dry")
    for unit in [*suite.sanitize_units(), *(f"bench {job.name}" for job in jobs("dry"))]:
        report.keep(unit, state="ok")
    assert not stages.left("sanitize", report, "dry")
    assert not stages.left("bench", report, "dry")
    assert stages.left("tests", report, "dry")
    report.keep("sanitize memcheck cuda", state="unfinished")
    assert stages.left("sanitize", report, "dry")


def test_the_budget_without_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(stages.ROOT / "scripts"))
    gpu_check = __import__("gpu_check")
    assert set(gpu_check.SHARES) < set(gpu_check.STAGES)
    assert sum(gpu_check.SHARES.values()) < 0.7  # the rest is for building and tests
    report = gpu_check.Report(tmp_path, None, {}, gpu_check.time.monotonic() + 100)
    assert 95 < report.left <= 100
    report.kept = 40
    assert 55 < report.left <= 60
    del sys.modules["gpu_check"]


WRAPS = """
import pytest
def test_one_through_wraps(request):
    assert request.config.getoption("--replays") == {count}
{more}
"""
OPTION = 'def pytest_addoption(parser): parser.addoption("--replays", type=int, default=None)'


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ("", "ok"),
        ("def test_two_through_wraps(): assert False, 'told'", "failed"),
        ("def test_two_through_wraps():\n    import time; time.sleep(600)", "unfinished"),
        ("pytest.skip('no device', allow_module_level=True)", "absent"),
    ],
)
def test_graphs_are_replayed_as_often_as_is_claimed(more, state, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "TESTS", tmp_path)
    monkeypatch.setattr(suite, "A_TOOL", 0.0)
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--rootdir={tmp_path} {WITHOUT}")
    (tmp_path / "conftest.py").write_text(OPTION)
    (tmp_path / "test_x.py").write_text(WRAPS.format(count=suite.REPLAYS, more=more))
    report = Report(seconds=suite.LEAST + 9 if state == "unfinished" else 120.0)
    suite.replays(report, "quick", None)
    unit = report.data["units"]["replays"]
    assert unit["state"] == state, unit
    if state == "ok":
        assert unit["count"] == 100_000
        assert "1 of 1 graphs, 100000 each" in unit["told"]
    if state == "failed":
        assert "told" in str(unit["wrong"]) or "failed" in str(unit["wrong"])
    if state == "absent":
        assert "no device" in unit["why"]
