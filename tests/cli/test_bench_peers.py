# SPDX-License-Identifier: Apache-2.0
"""Every peer computes what ours computes, and one that does not is given no ratio."""

import json
from pathlib import Path

import pytest
import torch

from headrace import bench, ops
from headrace.bench import beside, peers, prefixes
from headrace.bench.case import Case, rms_error
from headrace.cli import main
from headrace.memory import PagePool
from tests.cli.toy import line, of, ratios, shown, toy

SLOW = ("paged_attention", "hstu_attention", "attention", "attention_mass", "block_score")
"""Their quick shapes take seconds in torch; one shape of each is enough."""


@pytest.mark.parametrize("op", sorted(ops.specs()))
def test_every_peer_computes_the_same(op):
    torch.manual_seed(0)
    for case in bench.cases(op, quick=True):
        told = beside.compared(case)
        assert not told.failed, (case.shape, told.failed)
        assert case.peer_name in told.errors
        for name, error in told.errors.items():
            assert error <= beside.ALIKE, (case.shape, name, error)
        if op in SLOW:
            break


@pytest.mark.parametrize("op", ["append", "append_absorb", "lora", "segment_reduce", "select",
                                "gated_delta_rule", "compact_inplace", "linear"])  # fmt: skip
def test_a_peer_that_computes_something_else_is_found(op):
    case = of(op)
    case.results.pop(case.peer_name, None)
    case.peer = lambda: case.state[0] if case.state else torch.zeros_like(case.ours())
    told = beside.compared(case)
    assert told.failed or told.errors[case.peer_name] > beside.ALIKE


def test_results_are_compared_from_the_same_state():
    """Ours and a peer both add to a state: neither may see what the other added."""
    state = torch.ones(4)
    case = Case("linear", "a shape", lambda: state.mul_(3), lambda: (0.0, 1.0), 64.0, 1.0,
                lambda: state.mul_(3), "another", state=(state,))  # fmt: skip
    assert beside.compared(case).errors == {"another": 0.0}
    assert torch.equal(state, torch.ones(4))


def test_a_prefix_in_common_moves_once_and_is_copied_for_the_peer():
    torch.manual_seed(0)
    case = prefixes.shared(3, 128, 70)
    row, q = 2 * 8 * 128 * 2, 3 * 32 * 128 * 2
    assert case.bytes == (128 + 3 * 70) * row + 2 * q
    told = beside.compared(case)
    assert told.errors.pop("ours, nothing shared") == 0.0  # what is shared shows in no bit
    assert len(told.errors) >= 3
    assert all(0 < error <= beside.ALIKE for error in told.errors.values())
    error, tolerance = case.check()
    assert error <= tolerance
    pool, entries = PagePool(1, 3, 2, 16, 16), torch.tensor([[2, 0], [1, 5], [2, 7]])
    pool.k.normal_(), pool.v.normal_()
    k, v, moved = prefixes.copied(pool, entries)
    assert sorted(moved[:, 0].tolist()) == [0, 1, 2]
    assert torch.equal(moved[:, 1:], entries[:, 1:])
    assert torch.equal(k[moved[:, 0]], pool.k[0][[2, 1, 2]])
    assert torch.equal(v[moved[:, 0]], pool.v[0][[2, 1, 2]])


def test_no_ratio_to_a_peer_that_computes_something_else(monkeypatch, capsys):
    status, out = shown(toy(), monkeypatch, capsys)
    assert status == 0
    assert len(ratios(line(out, "right"))) == 2
    assert "\N{BALLOT X} 5.0e-02" in line(out, "wrong")
    assert "\N{BALLOT X} inf" in line(out, "cut short")
    (row,) = json.loads(Path("p.json").read_text())["rows"]
    assert [b["ok"] for b in row["beside"]] == [True, True, True, False, False]
    assert row["beside"][-1]["error"] is None
    assert not ratios(line(out, "wrong"))
    assert "at " in line(out, "floor")


def test_no_ratio_where_ours_is_wrong(monkeypatch, capsys):
    status, out = shown(toy(check=lambda: (1.0, 1e-6)), monkeypatch, capsys)
    assert status == 1
    assert not ratios(line(out, "right"))
    assert "at " not in line(out, "floor")


def test_a_peer_that_fails_leaves_the_rest(monkeypatch, capsys):
    def none():
        raise RuntimeError("not on this machine\nand more")

    def unmade(compile):
        raise ImportError("no such package")

    for more, name, told in (
        (lambda compile: {"lost": none}, "lost", "RuntimeError: not on this machine"),
        (unmade, "some peers", "ImportError: no such package"),
    ):
        status, out = shown(toy(more=more), monkeypatch, capsys)
        assert status == 0
        assert told in line(out, name)
        assert "and more" not in out
        assert ratios(line(out, "right"))


def test_peers_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    told = "\n".join(peers.missing())
    for name in ("transformers, stock caches: pip install", "peft, ", "C++ compiler", "FlashInfer"):
        assert name in told
    assert peers.compiled(lambda: None) == {}
    x = torch.randn(2, 8)
    assert peers.peft_rows(x, x, x, x, x, x) == {}
    assert peers.caches(lambda: (x, x), 8) == {}


def test_the_first_peer_alone_is_compared_too(monkeypatch, capsys):
    """Without --peers nothing else stands beside it, and it still has to compute the same."""
    x = torch.randn(64)
    for peer, many in ((lambda: x * 2, 1), (lambda: x * 2.1, 0)):
        monkeypatch.setattr(bench, "cases", lambda *_, peer=peer: [toy(ours=lambda: x * 2,
                                                                       peer=peer)])  # fmt: skip
        assert main(["bench", "linear", "--quick", "--json", "p.json"]) == 0
        assert len(ratios(line(capsys.readouterr().out, "right"))) == many
        (row,) = json.loads(Path("p.json").read_text())["rows"]
        assert (row["speedup"] is not None) == row["peer_ok"] == bool(many)
        assert row["beside"] == []


def test_the_command_says_what_goes_on(monkeypatch):
    said = []
    monkeypatch.setattr(bench, "cases", lambda *_: [toy()])
    bench.run("linear", True, said.append, peers=True, budget=1e-3)
    assert [line.removeprefix("linear 1: a shape: ") for line in said] == [
        "right, its result", "wrong, its result", "cut short, its result", "its result",
        "in turns with every peer and the floor",
    ]  # fmt: skip


def test_the_peers_of_other_packages_are_taken_where_they_are(monkeypatch):
    """Neither a package that is not there nor one that would fetch a kernel."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.of_transformers("torch_chunk_gated_delta_rule") is None
    assert peers.fla_chunks() is None
    monkeypatch.undo()
    pytest.importorskip("transformers")
    rule = peers.of_transformers("torch_chunk_gated_delta_rule")
    assert not hasattr(rule, "__wrapped__")
    assert peers.of_transformers("no such rule") is None
    (case,) = [c for c in bench.cases("gated_delta_rule", quick=True)]
    told = beside.compared(case)
    assert told.errors["transformers, chunks of 64"] <= 1e-4
    (case,) = [c for c in bench.cases("causal_conv", quick=True)]
    assert beside.compared(case).errors["transformers, conv1d"] <= beside.ALIKE


def test_what_codes_stand_for():
    from headrace.adapters import quantize_rows
    from headrace.bench.adapters import restored

    weights = torch.randn(6, 128)
    for bits, bound in ((8, 0.01), (4, 0.15)):
        error = rms_error(restored(*quantize_rows(weights, bits), bits), weights)
        assert bound / 20 < error < bound


@pytest.mark.parametrize(("length", "heads"), [(300, None), (256, 2)])
def test_a_block_mask_is_the_one_that_torch_makes(length, heads):
    from torch.nn.attention.flex_attention import create_block_mask

    from headrace.bench.flex import block_mask

    chosen = torch.rand(2, 5, 5) < 0.4

    def seen(b, h, t, j):
        whole = (t - j < 150) | (j < 4)
        return (j <= t) & (chosen[h, t // 64, j // 64] | (t > 200) if heads else whole)

    got = block_mask(seen, heads, length, 64)
    want = create_block_mask(
        seen, 1 if heads else None, heads, length, length, device="cpu", BLOCK_SIZE=64
    )
    assert torch.equal(got.to_dense(), want.to_dense())
    assert got.shape == want.shape
    for part in ("", "full_"):
        counts = getattr(got, f"{part}kv_num_blocks")
        assert counts.sum()
        assert torch.equal(counts, getattr(want, f"{part}kv_num_blocks"))
        mine, theirs = (getattr(x, f"{part}kv_indices") for x in (got, want))
        used = torch.arange(mine.shape[-1]) < counts[..., None]
        assert torch.equal(mine[used], theirs[used])
