# SPDX-License-Identifier: Apache-2.0
"""Whole runs: what the report says is what the library gives."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from headrace import _C, models
from headrace.cli import main, stream
from headrace.memory import Sink, Window
from headrace.streams import Absolute, InCache, recompute, wrap

WINDOW, SINKS = 28, 4
PNG = b"\x89PNG\r\n\x1a\n"


def run(*args):
    assert main(["stream", "--threads", "1", "--samples", "40", *map(str, args)]) == 0
    return json.loads(Path("headrace-report.json").read_text())


def by_policy(report):
    return {p["policy"]: p for p in report["policies"]}


@pytest.fixture(scope="module")
def compared(model, tmp_path_factory):
    """One comparison that several tests look at, and the text it read."""
    folder = tmp_path_factory.mktemp("compared")
    content = (b"Rivers run to the sea; the sea does not fill. " * 200)[:6000]
    (folder / "text").write_bytes(content)
    path = folder / "r.json"
    status = main(
        [
            "stream",
            "--threads",
            "1",
            str(folder / "text"),
            "--model",
            model,
            "--compare",
            "--chunk",
            "48",
            "--tokens",
            "7000",
            "--dense-limit",
            "1k",
            "--samples",
            "150",
            "--report",
            str(path),
        ]
    )
    assert status == 0
    text = (content + b"\0" + content)[:7000]
    return json.loads(path.read_text()), path, torch.tensor(list(text)), models.load(model)


def nll_of(model, text, **options):
    with wrap(model, **options) as engine:
        return engine.open().feed(text).nll[1:].double()


def test_perplexity_is_that_of_the_stream(compared):
    report, _, text, model = compared
    runs = by_policy(report)
    memories = {"sinks-window": Sink(SINKS) + Window(WINDOW), "window": Window(SINKS + WINDOW)}
    for name, memory in memories.items():
        want = nll_of(model, text, memory=memory, positions=InCache()).mean().exp()
        assert runs[name]["perplexity"] == pytest.approx(float(want), rel=1e-4)
        assert runs[name]["tokens"] == 7000
        assert runs[name]["scored_tokens"] == 6999
    want = nll_of(model, text[:1000], memory=Window(None), positions=Absolute()).mean().exp()
    assert runs["dense"]["perplexity"] == pytest.approx(float(want), rel=1e-4)
    # The policies differ here, or the comparison would show nothing.
    assert len({round(r["perplexity"], 3) for r in runs.values()}) == 4


def test_recompute_is_the_baseline(compared):
    """Positions are drawn again with the same seed; the nll there is that of re-encoding."""
    from headrace.cli.policies import Samples

    report, _, text, model = compared
    samples, at = Samples(150, 7000, 0), []
    for start in range(0, 7000, 8 * 48):
        at += samples.take(start, min(8 * 48, 7000 - start))
    logits = recompute(model, text, Window(WINDOW + SINKS), at=[p - 1 for p in at])
    nll = torch.nn.functional.cross_entropy(logits, text[at], reduction="none").double()
    pair = report["versus_recompute"]["all"]["sinks-window"]
    assert pair["positions"] == len(at) > 100
    assert pair["nll_recompute"] == pytest.approx(float(nll.mean()), abs=1e-4)
    ours = nll_of(model, text, memory=Sink(SINKS) + Window(WINDOW), positions=InCache())
    gap = ours[torch.tensor(at) - 1] - nll
    assert pair["difference"] == pytest.approx(float(gap.mean()), abs=1e-4)
    error = float(gap.std() / len(at) ** 0.5)
    assert pair["standard_error"] == pytest.approx(error, rel=1e-2)


def test_memory_is_bounded_and_dense_is_not(compared):
    runs = by_policy(compared[0])
    for name in ("sinks-window", "window"):
        kv = runs[name]["series"]["kv_bytes"]
        assert kv[-1] == kv[2] == runs[name]["kv_bytes_at_end"] <= runs[name]["kv_bytes_peak"]
        assert runs[name]["tokens_kept"] == WINDOW + SINKS - 1  # the next query is the last one
        assert runs[name]["evicted_tokens"] == 7000 - runs[name]["tokens_kept"]
        assert runs[name]["evicted_windows"] > 200
    dense = runs["dense"]
    assert "1,000 tokens" in dense["ended"]
    assert dense["tokens"] == 1000
    assert dense["evicted_tokens"] == 0
    page = 2 * 2 * 2 * 16 * 64 * 4  # k and v, layers, heads, dim, tokens, bytes
    assert dense["kv_bytes_at_end"] == math.ceil(1000 / 64) * page


def test_report_says_where_it_came_from(compared):
    report, path, _, _ = compared
    assert report["format"] == "headrace.stream-report.1"
    assert report["stopped"] == "at the end"
    assert report["text"]["passes"] == 2
    assert report["text"]["bytes"] == 6000
    assert report["model"]["name"] == "small.safetensors"
    assert report["model"]["training"] == {"sequence": 64}
    assert report["machine"]["isa"] in _C.available_isas()
    assert report["settings"]["window"] == WINDOW
    assert path.with_suffix(".png").read_bytes().startswith(PNG)
    assert path.with_suffix(".png").stat().st_size > 20_000
    for run in report["policies"]:
        assert run["seconds"] > 0
        assert run["step_ms_p50"] <= run["step_ms_p99"]
        assert run["first_100k"]["ms_per_token_p50"] > 0
        if run["policy"] in ("sinks-window", "window"):
            assert run["single_token_step_ms"] > 0


def test_chunks_do_not_show(model, text):
    seen = []
    for chunk in (1, 7, 300):
        args = (text, "--model", model, "--tokens", "700", "--chunk", chunk, "--no-plot")
        seen.append(by_policy(run(*args))["sinks-window"]["perplexity"])
    assert seen == pytest.approx([seen[0]] * 3, rel=1e-5)
    assert not Path("headrace-report.png").exists()


@pytest.mark.parametrize("policy", stream.POLICIES)
def test_every_policy_alone(policy, model, text):
    report = run(text, "--model", model, "--policy", policy, "--dense-limit", "500", "--seed", "5")
    (one,) = report["policies"]
    assert one["policy"] == policy
    assert one["perplexity"] > 1
    assert report["tokens"] == 4000
    assert report["versus_recompute"] == {"all": {}, "last_100k": {}}
    assert Path("headrace-report.png").read_bytes().startswith(PNG)


def test_without_sinks_window_is_left_out(model, text, capsys):
    report = run(text, "--model", model, "--compare", "--sinks", "0", "--dense-limit", "200")
    assert list(by_policy(report)) == ["sinks-window", "dense", "recompute"]
    assert "the same as sinks-window" in capsys.readouterr().out


def test_window_of_one(model, text):
    """The query sees itself and nothing else."""
    report = run(text, "--model", model, "--window", "1", "--sinks", "0", "--tokens", "300")
    assert report["policies"][0]["tokens_kept"] == 0


def test_built_in_text(model):
    report = run("--model", model, "--tokens", "3000", "--held-out", "--no-plot")
    assert report["tokens"] == 3000
    assert report["text"]["seen_in_training"].startswith("held out")


def test_demo_options_yield_to_what_is_given(model, text):
    args = (text, "--model", model, "--demo", "--tokens", "900", "--samples", "30", "--no-plot")
    report = run(*args)
    assert len(report["policies"]) == 4
    assert report["settings"]["tokens"] == 900
    assert report["settings"]["samples"] == 30
    assert report["settings"]["dense_limit"] == stream.DEMO["dense_limit"]


def test_without_matplotlib(model, text, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(text, "--model", model, "--tokens", "300")
    out = capsys.readouterr().out
    assert "no plot, matplotlib is not installed: pip install 'headrace[cli]'" in out
    assert not Path("headrace-report.png").exists()


def test_without_rich(model, text, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    for name in [n for n in sys.modules if n.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    run(text, "--model", model, "--tokens", "300", "--no-plot")
    out = capsys.readouterr().out
    assert "rich is not installed" in out
    assert "sinks-window" in out
