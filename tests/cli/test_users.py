# SPDX-License-Identifier: Apache-2.0
"""`headrace stream --adapters`: many users, each with an adapter of its own."""

import json
import math
from pathlib import Path

import pytest
import torch

from headrace import models, wrap
from headrace.adapters import AdapterConfig, AdapterStore
from headrace.adapters.blob import Adapter
from headrace.adapters.packing import pack
from headrace.adapters.peft_files import write
from headrace.cli import main
from headrace.cli.users_text import PACKAGED, blend
from headrace.memory import Sink, Window

PARTS = ("query", "value", "down")


def made(model, seed, rank=3):
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, p in models.load(model).named_parameters():
        if name.rpartition(".")[2] in PARTS:
            tensors[f"{name}.a"] = torch.randn(rank, p.shape[1], generator=g) * p.shape[1] ** -0.5
            tensors[f"{name}.b"] = torch.randn(p.shape[0], rank, generator=g) * 0.3
    config = AdapterConfig.of("small", tensors, alpha=2.0 * rank)
    digest, blob = pack("made", config, tensors)
    return Adapter("made", blob, digest.hex())


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """Three adapters as the peft package writes them."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("ann", "bob", "cleo")):
        write("test", folder / name, made(model, seed, 1 + seed), None)
    return folder


def run(*args, status=0):
    assert main(["stream", "--threads", "1", *map(str, args)]) == status
    return json.loads(Path("headrace-report.json").read_text())


def small(model, text, folders, *args, **options):
    return run(
        text, "--model", model, "--adapters", folders, "--chunk", 16, "--tokens", 1500, *args,
        **options,
    )  # fmt: skip


def test_users_beyond_the_slots_and_what_the_report_says(model, text, folders, capsys):
    found = small(model, text, folders, "--users", 12, "--slots", 3, "--batch", 5, "--zipf", 0.7)
    assert found["format"] == "headrace.adapters-report.1"
    assert found["stopped"] == "at the end"
    assert found["tokens"] == found["steps"] * 5 * 16 >= 1500
    assert found["adapters"]["folders"] == 3
    assert found["adapters"]["blends"] == 9
    assert found["bank"]["evictions"] > 0
    assert 0 < found["bank"]["hit_rate"] < 1
    assert found["bank"]["hits"] + found["bank"]["misses"] == found["steps"] * 5
    assert sum(k["tokens"] for k in found["kinds"]) == found["tokens"]
    assert [k["adapter"] for k in found["kinds"]] == ["ann", "bob", "cleo"]
    assert found["first_token_ms"]["cold"]["count"] >= sum(k["users"] for k in found["kinds"])
    shown = capsys.readouterr().out
    assert "12 users of small, Zipf 0.7" in shown
    assert "hit rate" in shown


def test_one_user_reads_what_a_stream_of_that_adapter_reads(model, text, folders):
    found = small(model, text, folders / "bob", "--users", 1)
    base = models.load(model)
    weights = dict(base.named_parameters())
    adapter = made(model, 1, 2)
    with torch.no_grad():
        for m in adapter.config.modules:
            weights[m.name] += adapter.scale(m.name) * (adapter.b(m.name) @ adapter.a(m.name))
    data = Path(text).read_bytes()[: found["tokens"]]
    want = []
    for one in (base, models.load(model)):
        with wrap(one, memory=Sink(4) + Window(28)) as engine:
            want.append(math.exp(engine.open().feed(data).nll[1:].double().mean()))
    (kind,) = found["kinds"]
    assert kind["perplexity"] == pytest.approx(want[0], rel=1e-3)
    assert kind["perplexity_without_adapter"] == pytest.approx(want[1], rel=1e-3)
    assert abs(want[0] - want[1]) > 0.05 * want[1]


def test_a_store_gives_every_user_its_own(model, text, folders, tmp_path):
    shapes = {n: tuple(p.shape) for n, p in models.load(model).named_parameters() if p.dim() == 2}
    with AdapterStore(tmp_path / "store") as store:
        store.add_base("small", shapes)
        for i in range(6):
            one = made(model, i, 1 + i % 3)
            store.add(one.config, one.tensors(), name=f"user-{i}")
    found = small(model, text, tmp_path / "store", "--users", 6, "--batch", 3)
    assert found["adapters"]["names"] == 6
    assert found["adapters"]["blends"] == 0
    assert found["kinds"][0]["adapter"] == "of the store"


def test_a_blend_is_the_sum_in_its_shares(model):
    one, other = made(model, 1, 2), made(model, 2, 3)
    config, tensors = blend(one, other, 0.75)
    name = "blocks.1.down"
    want = sum(
        part * a.scale(name) * (a.b(name) @ a.a(name)) for a, part in ((one, 0.75), (other, 0.25))
    )
    got = config.scale(name) * (tensors[f"{name}.b"].float() @ tensors[f"{name}.a"].float())
    assert (got - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--users", "3"], "stream(--users): expected --adapters with it, got none"),
        (["--adapters", "nowhere"], "stream(--adapters): expected a store, or a folder of"),
        (["--adapters", "--policy", "window"], "stream(--policy): expected none with --adapters"),
        (["--adapters", "--zipf", "nan"], "argument --zipf: expected a number, 0 or more"),
        (["--adapters", "--users", "0"], "argument --users: expected 1 or more, got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(args, text, capsys):
    try:
        status = main(["stream", *args])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


def test_an_adapter_of_another_base_is_refused(model, text, capsys):
    assert main(["stream", text, "--model", model, "--adapters"]) == 1
    assert "expected small, got bytes-stream" in capsys.readouterr().err


@pytest.mark.parametrize("folder", sorted(PACKAGED.iterdir()), ids=lambda p: p.name)
def test_packaged_adapters_serve_the_packaged_model(folder):
    from headrace import AdapterBank

    bank = AdapterBank.of(models.load("bytes-stream"), "bytes-stream", slots=1)
    bank.load_peft(folder)
    card = (folder / "README.md").read_text("utf-8")
    for word in ("**Data**", "**Command**", "**Cost**", "**Loss on held-out text**"):
        assert word in card


def test_packaged_adapters_are_small():
    sizes = [p.stat().st_size for p in PACKAGED.rglob("*") if p.is_file()]
    assert len(list(PACKAGED.iterdir())) >= 3
    assert sum(sizes) < 1_000_000
