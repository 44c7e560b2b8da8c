# SPDX-License-Identifier: Apache-2.0
"""Every peer computes what ours computes, and one that does not is given no ratio."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from headrace import bench, ops
from headrace.bench import beside, peers, prefixes, rates, timing
from headrace.bench.case import Case, rms_error
from headrace.cli import main
from headrace.memory import PagePool


def of(op, index=0):
    return list(bench.cases(op, quick=True))[index]


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


def toy(**changes):
    x = torch.randn(64)
    case = Case("linear", "a shape", lambda: x * 2, lambda: (0.0, 1e-6), 1e3, 1e3,
                lambda: x * 2, "right",
                rivals={"wrong": lambda: x * 2.1, "cut short": lambda: x[:3]})  # fmt: skip
    for name, value in changes.items():
        setattr(case, name, value)
    return case


def shown(case, monkeypatch, capsys):
    monkeypatch.setattr(bench, "cases", lambda *_: [case])
    status = main(["bench", "linear", "--quick", "--peers", "--json", "p.json"])
    return status, capsys.readouterr().out


def line(out, name):
    (found,) = [line for line in out.splitlines() if f"  {name}  " in line]
    return found


def ratios(line):
    return re.findall(r"[0-9]x", line)


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


def test_warm_and_cold_are_told_apart():
    """Warm: the three calls before are the same. Cold: something else was written in between."""
    called = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    taken = timing.by_cache(runs, 1.0, most=3)
    assert {kind: len(times["a"]) for kind, times in taken.items()} == {"warm": 3, "cold": 3}
    once = ["a", "b"]
    assert called == 2 * once + [*"aaaabbbb"] * 3 + once + once * 3
    assert taken["warm"]["a"] is not taken["cold"]["a"]
    assert timing.last_cache() >= 1 << 18


@pytest.fixture
def clock(monkeypatch):
    """A time of its own: what is called says how long it took, and each look takes 1 ms."""
    now = [0.0]

    def look():
        now[0] += 1e-3
        return now[0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", look)
    monkeypatch.setattr(timing, "last_cache", lambda: 8)
    return wait


def test_calls_in_a_row_are_warmed_once(clock):
    called = []

    def taking(name, seconds):
        return lambda: (called.append(name), clock(seconds))

    runs = {"a": taking("a", 0.009), "b": taking("b", 0.004)}
    told = timing.samples(runs, 0.068, before=lambda run: run(), warm=True, row=3)
    # Each turn of three takes a fourth, which is spent and not timed; the last ends when all is.
    assert "".join(called) == "aaaabbbbaaabbbbbbbbbb"
    assert {name: len(each) for name, each in told.items()} == {"a": 5, "b": 10}


def test_calls_that_were_timed_before_count(clock):
    runs = {"a": lambda: clock(0.09)}
    assert len(timing.samples(runs, 0.1, warm=True)["a"]) == 3
    assert len(timing.samples(runs, 0.1, warm=True, had=1)["a"]) == 2


def test_what_is_longer_than_the_cache_takes_is_timed_as_it_comes(clock, monkeypatch):
    """Of warm caches alone a third of that suffices, and three calls are warmed by none."""
    monkeypatch.setattr(timing, "_writing_seconds", lambda size: 0.01)
    called = []
    runs = {"long": lambda: (called.append(0), clock(0.06))}
    taken = timing.by_cache(runs, 0.07, cold=False)
    assert len(taken["warm"]["long"]) == len(called) == 3
    called.clear()
    taken = timing.by_cache(runs, 0.07)
    assert taken["warm"]["long"] is not taken["cold"]["long"]
    assert len(called) > len(taken["warm"]["long"]) + len(taken["cold"]["long"])


def test_what_takes_long_is_called_less(clock):
    called = []

    def taking(name, seconds):
        return lambda: (called.append(name), clock(seconds))

    runs = {"fast": taking("fast", 0.009), "middling": taking("middling", 0.4)}
    runs["slow"] = taking("slow", 8.0)
    taken = timing.samples(runs, 1.0)
    assert {name: len(each) for name, each in taken.items()} == {"fast": 100, "middling": 3,
                                                                 "slow": 1}  # fmt: skip
    assert taken["slow"] == [pytest.approx(8.001)]
    assert called[:6] == ["fast", "middling", "slow"] * 2  # the first time to warm up
    assert len(timing.samples(runs, 5.0, warm=True)["slow"]) == 2
    assert len(timing.samples(runs, 1.0, most=7)["fast"]) == 7


def test_so_many_calls_are_made_where_they_are_asked_for(clock):
    """However long they take; and no more than otherwise of what is quick."""
    runs = {"fast": lambda: clock(0.009), "slow": lambda: clock(8.0)}
    quick = len(timing.samples(runs, 0.5)["fast"])
    with timing.at_least(4):
        taken = timing.samples(runs, 0.5)
        assert len(taken["slow"]) == 4
        assert len(taken["fast"]) == pytest.approx(quick, abs=1)
        taken = timing.by_cache(runs, 0.5)
        assert len(timing.samples(runs, 0.5, most=2)["slow"]) == 2
    assert len(taken["warm"]["slow"]) == 4  # one of them before it was known to take long
    assert 4 < len(taken["warm"]["fast"]) < quick
    with timing.at_least(None):
        assert len(timing.samples(runs, 0.5)["slow"]) == 1
    with timing.at_least(5):
        pairs = []
        timing.over(lambda: clock(8.0), lambda: pairs.append(clock(4.0)), 0.5)
        assert len(pairs) == 1 + 5  # the first to warm up
    assert len(timing.samples({"slow": lambda: clock(8.0)}, 0.5)["slow"]) == 1


def test_the_command_passes_on_how_many_calls(monkeypatch, capsys):
    asked = []

    def each(*_):
        asked.append(timing._calls.get())
        yield from ()

    monkeypatch.setattr(bench, "each", each)
    assert main(["bench", "linear", "--calls", "3"]) == 0
    assert main(["bench", "linear"]) == 0
    assert asked == [3, 0]
    with pytest.raises(SystemExit):
        main(["bench", "linear", "--calls", "0"])
    assert "expected 1 or more, got 0" in capsys.readouterr().err
    assert main(["bench", "--loops", "rings", "--calls", "3"]) == 2


def test_a_variant_takes_turns_in_going_first(clock):
    """A machine that is slower and slower makes neither look slow."""
    called, slower = [], [1.0]

    def taking(name, seconds):
        def run():
            called.append(name)
            slower[0] *= 1.1
            clock(seconds * slower[0] - 0.001)

        return run

    ratio = timing.over(taking("ours", 0.03), taking("other", 0.02), 100.0, most=8)
    assert ratio == pytest.approx(1.5, rel=0.01)
    assert called == ["ours", "other"] + ["other", "ours", "ours", "other"] * 4
    called.clear()
    timing.over(taking("ours", 30.0), taking("other", 20.0), 1.0)
    assert len(called) == 2 + 2


def test_one_series_stands_for_both_caches_where_they_cannot_differ(clock):
    """12 times what it takes to write the buffer, which here is 1 ms."""
    runs = {name: lambda s=s: clock(s) for name, s in (("at", 0.01), ("beyond", 0.05))}
    taken = timing.by_cache(runs, 0.2)
    warm, cold = taken["warm"], taken["cold"]
    assert warm["beyond"] is cold["beyond"]
    assert warm["at"] is not cold["at"]
    assert len(warm["at"]) == 5  # each after three that are not timed
    assert len(cold["at"]) == 17
    assert len(warm["beyond"]) == 5
    assert list(timing.by_cache(runs, 0.2, cold=False)) == ["warm"]


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


def test_the_floor_goes_by_the_dtype_of_the_products(monkeypatch):
    """Twice the rate, half the floor, of as many products."""
    rates = {torch.float32: 1e4, torch.bfloat16: 2e4, torch.int8: 4e4}
    monkeypatch.setattr(timing.MultiplyAdds, "rate", lambda self, dtype: rates[dtype])
    made = [toy(product=dtype) for dtype in rates]
    monkeypatch.setattr(bench, "cases", lambda *_: made)
    rows = bench.run("linear", True, peers=True, budget=1e-3)
    assert [row.floor_s for row in rows] == [1e3 / rate for rate in rates.values()]
    assert [row.product for row in rows] == ["fp32", "bf16", "int8"]
    assert [row.beside[1].warm_s for row in rows] == [row.floor_s for row in rows]
    assert [row.beside[1].cold_s for row in rows] == [row.floor_s for row in rows]


STATES_IN_FP32 = ("append_absorb", "causal_conv", "frame_delta_rule", "gated_delta_rule",
                  "linear_attention")  # fmt: skip
PRODUCTS = ("attention", "attention_mass", "assign", "block_score", "hstu_attention", "linear",
            "lora", "lora_rows", "paged_attention")  # fmt: skip


@pytest.mark.parametrize("op", [*STATES_IN_FP32, *PRODUCTS])
def test_products_are_of_the_wider_of_two_inputs(op):
    """bf16 with a state or taps of fp32 is fp32; codes with bf16 are bf16, or whole numbers."""
    for case in bench.cases(op, quick=True):
        name = case.shape
        want = torch.bfloat16 if "fp32" not in name else torch.float32
        if op in STATES_IN_FP32 or name.startswith(("cos 576", "l2")):
            want = torch.float32
        if name.startswith(("hamming", "decode int8")):
            want = torch.int8
        if not name.startswith("bits"):
            assert case.product == want, (op, name)


def test_multiply_adds_are_counted_at_every_level_and_dtype():
    from headrace import _C

    best = timing.MultiplyAdds()
    try:
        for level in _C.available_isas():
            _C.force_isa(level)
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
                before = best.rate(dtype)
                assert before > 1e8
                assert best.rate(dtype) >= before  # the most that was seen
    finally:
        _C.force_isa("")


def test_the_floor_reads_what_a_kernel_would(monkeypatch):
    """All bytes, in the same memory again or in other memory for as many calls as the case has."""
    read = []
    monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=lambda *a: read.append(a)))
    size = 5 << 20
    for turns in (3, 1):
        run = timing.reader(size, turns)
        read.clear()
        for _ in range(2 * turns):
            run()
        starts = [at for at, *_ in read]
        assert starts == [starts[0] + i * size for i in range(turns)] * 2
        assert {told[1:] for told in read} == {(size // 4, 0, torch.get_num_threads())}


def test_what_is_written_in_place_takes_no_other_memory(monkeypatch):
    read = []
    monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=lambda *a: read.append(a)))
    size, again = 5 << 20, 2 << 20
    run = timing.reader(size, 2, again)
    read.clear()
    run(), run()
    (first, *told), (then, *same) = read
    assert then - first == size - again
    assert told == same == [(size - again) // 4, again // 4, torch.get_num_threads()]


def test_what_a_kernel_reads_is_read_where_it_lies(monkeypatch):
    """The rest, such as its result, beside it. What holds few of the bytes is not read."""
    read = []
    monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=lambda *a: read.append(a)))
    own, rest = torch.zeros(5 << 18), 1 << 20
    for size in (own.nbytes + rest, own.nbytes - 64, 2 * own.nbytes + 64):
        timing.reader(size, own=own)()
    (first, *told), (again, *less), (other, *_) = read
    assert first == again == own.data_ptr() != other
    threads = torch.get_num_threads()
    assert told == [own.nbytes // 4, rest // 4, threads]
    assert less == [own.nbytes // 4, 0, threads]


def test_the_floor_of_a_layer_reads_its_weights(monkeypatch):
    case = of("linear")
    taken = []
    monkeypatch.setattr(rates, "reader", lambda *a: taken.append(a) or (lambda: (1e-6, None)))
    bench.measure(case, 1e-3, 1e9, 1e9, beside.compared(case))
    assert [a[-1] is not None and a[-1].shape for a in taken] == [(2048, 2048)]


def test_few_bytes_are_read_by_one_thread_where_that_is_quicker(clock, monkeypatch):
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: 4)
    for slower in (1, 4):
        used = []

        def read(at, words, again, threads, slower=slower, used=used):
            used.append(threads)
            clock(0.002 if threads == slower else 0.001)

        monkeypatch.setattr(timing, "_C", SimpleNamespace(read_seconds=read))
        timing.reader(1 << 16)()
        assert used[-1] == 5 - slower
        assert {1, 4} == set(used)


def test_the_table_says_how_many_calls(monkeypatch, capsys):
    def sleep():
        time.sleep(0.35)
        return torch.zeros(3)

    monkeypatch.setattr(timing, "last_cache", lambda: 8)
    _, out = shown(toy(rivals={"slow": sleep}), monkeypatch, capsys)
    assert line(out, "slow").endswith("  1")
    assert "\N{PLUS-MINUS SIGN}" not in line(out, "slow")
    assert re.search("[0-9]+ [+] [0-9]+$", line(out, "right"))
    assert "\N{PLUS-MINUS SIGN}" in line(out, "right")
    (row,) = json.loads(Path("p.json").read_text())["rows"]
    assert [len(b["calls"]) for b in row["beside"]] == [2, 2, 2, 1]


def test_ours_and_the_floor_come_first_however_long_they_take(monkeypatch):
    def sleep():
        time.sleep(0.02)
        return torch.zeros(3)

    monkeypatch.setattr(timing, "last_cache", lambda: 8)
    monkeypatch.setattr(bench, "cases", lambda *_: [toy(ours=sleep)])
    (row,) = bench.run("linear", True, peers=True, budget=1e-3)
    assert [one.name for one in row.beside] == ["ours", "floor", "right", "wrong", "cut short"]


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_is_time(budget, capsys):
    assert main(["bench", "linear", "--quick", f"--budget={budget}"]) == 1
    assert "bench(budget): expected seconds, above 0" in capsys.readouterr().err


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
