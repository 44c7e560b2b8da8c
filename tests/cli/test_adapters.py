# SPDX-License-Identifier: Apache-2.0
"""`headrace adapters`: a life of an adapter, and the mistakes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from headrace.cli import main

WIDTH = 48


def _folder(path, seed, module="blocks.0.query"):
    path.mkdir()
    g = torch.Generator().manual_seed(seed)
    tensors = {
        f"base_model.model.{module}.lora_A.weight": torch.randn(2, WIDTH, generator=g),
        f"base_model.model.{module}.lora_B.weight": torch.randn(64, 2, generator=g),
    }
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def run(capsys):
    def run(*args, status=0):
        assert main(["adapters", *map(str, args), "--store", "s"]) == status
        told = capsys.readouterr()
        return (told.err if status else told.out).strip()

    return run


def test_a_merge(run, model, tmp_path):
    run("base", "small", model)
    for i, name in enumerate("ab"):
        run("add", _folder(tmp_path / name, i), "--base", "small", "--name", name)
    nbytes = 4 * 2 * (WIDTH + 64)
    assert run("measure", "a", "b") == f"read {2 * nbytes:,} bytes"
    digest, told = run("merge", "a", "b", "--name", "both").split("\n")
    assert told.startswith(
        f"read {2 * nbytes:,} of {2 * nbytes:,} bytes, 2 of 2 modules; norm left"
    )
    shown = json.loads(run("show", "both", "--json"))
    assert (shown["digest"], shown["rank"]) == (digest, 4)
    assert [w for _, w in shown["data"]["merge"]] == [0.5, 0.5]
    options = ["--weights", 1, -0.1, "--io-budget", nbytes, "--rank", 1]
    _, told = run("merge", "a", "b", *options).split("\n")
    assert f"read {nbytes:,} of {2 * nbytes:,} bytes, 1 of 2 modules" in told
    assert "expected 2, one for each name, got 1" in run(
        "merge", "a", "b", "--weights", 1, status=1
    )


def test_a_life(run, model, tmp_path):
    assert run("base", "small", model).startswith("small: ")
    one = run("add", _folder(tmp_path / "a", 1), "--base", "small", "--name", "n", "--owner", "me")
    two = run("add", _folder(tmp_path / "b", 2), "--base", "small", "--parent", "n")
    run("evaluate", one, "accuracy", 0.5)
    run("evaluate", two, "accuracy", 0.4, "--data", "held out")
    rule = ["--metric", "accuracy", "--better"]
    assert "expected accuracy > 0.5 of the one in place" in run(
        "promote", "n", two, *rule, status=1
    )
    assert run("promote", "n", two[:8], "--metric", "accuracy", "--at-least", 0.3) == two
    shown = json.loads(run("show", "n", "--json"))
    assert (shown["digest"], shown["parents"]) == (two, [one])
    assert "n: promote" in run("show", two)
    assert run("rollback", "n", *rule) == one
    listed = json.loads(run("list", "--metric", "accuracy", "--json"))
    assert [r["digest"] for r in listed] == [one, two]
    assert one[:12] in run("list", "--owner", "me")
    assert two[:12] not in run("list", "--owner", "me")
    run("export", two, tmp_path / "out")
    assert run("add", tmp_path / "out", "--base", "small") == two
    assert "n; forget it" not in run("show", two)
    run("remove", two)
    assert "would give back 1,152 bytes" in run("gc", "--dry-run")
    assert "gave back 1,152 bytes: 1 files removed" in run("gc")
    assert run("verify").endswith(": 0 problems, 0 unused files")
    run("forget", "n")
    assert "expected a name or digest" in run("show", "n", status=1)


def test_damage_has_a_status(run, model, tmp_path, capsys):
    run("base", "small", model)
    run("add", _folder(tmp_path / "a", 1), "--base", "small")
    (path,) = tmp_path.glob("s/segments/*/*.blobs")
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert main(["adapters", "verify", "--store", "s"]) == 1
    assert "1 problems" in capsys.readouterr().out


def test_the_packaged_model_is_a_base(run):
    assert run("base", "bytes", "bytes-stream").startswith("bytes: ")


def test_mistakes(run, model, tmp_path):
    assert "expected a store, got s without one" in run("list", status=1)
    run("base", "small", model)
    folder = _folder(tmp_path / "a", 1)
    other = _folder(tmp_path / "b", 1, "nothing.here")
    for args, line in (
        (["add", folder], "expected the name of a base, got none in the folder"),
        (["add", folder, "--base", "big"], "expected a known base (small), got big"),
        (["add", other, "--base", "small"], "it would apply to no module"),
        (["add", folder, folder, "--base", "small", "--name", "n"], "one folder to name"),
        (["add", tmp_path / "c", "--base", "small"], "No such file"),
        (["promote", "n", "m", "--better"], "expected the rule's metric"),
        (["rollback", "n"], "a name of this store"),
        (["base", "x", tmp_path / "c"], "a whole safetensors file"),
    ):
        told = run(*args, status=1)
        assert told.startswith("headrace adapters: ")
        assert line in told
        assert "\n" not in told
