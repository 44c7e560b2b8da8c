# SPDX-License-Identifier: Apache-2.0
"""The proofs can fail, cover every op, and the benchmark shows no ratio of a wrong result."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace import _C, bench, models, ops, presets
from headrace.cli import main, proof_cases, proofs
from headrace.models.training import data


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_op_has_cases():
    assert set(proof_cases.CASES) == set(ops.specs())


def test_ops_hold(capsys):
    assert main(["check", "ops", "--json"]) == 0
    rows = lines(capsys)
    assert len(rows) == len(ops.specs()) * len(_C.available_isas())
    for row in rows:  # a mask or a choice is right or wrong; all else has some rounding
        right = ("block_mask", "select", "assign", "compact", "scatter")
        least = -1 if any(name in row["claim"] for name in right) else 0
        assert row["holds"], row
        assert least < row["figure"] <= row["bound"], row


@pytest.mark.parametrize("name", sorted(proof_cases.CASES))
def test_a_wrong_op_is_found(name, capsys, monkeypatch):
    """A kernel that is off by a part in a thousand, beside one that is right."""
    few = {each: proof_cases.CASES[each] for each in (name, "append", "linear")}
    monkeypatch.setattr(proofs, "CASES", few)
    spec = ops.specs()[name]
    truth = spec.reference

    def off(**bound):
        out = truth(**bound)
        for changed in filter(lambda name: bound[name] is not None, spec.mutates):
            x = bound[changed]
            x.mul_(1.001) if x.is_floating_point() else x.add_(1)
        if out is None:
            return None
        return tuple(o * 1.001 for o in out) if isinstance(out, tuple) else out * 1.001

    object.__setattr__(spec, "reference", off)
    try:
        assert main(["check", "ops"]) == 1
    finally:
        object.__setattr__(spec, "reference", truth)
    out = capsys.readouterr().out
    assert f"{len(_C.available_isas())} do not hold" in out
    assert all(name in line for line in out.splitlines() if "\N{BALLOT X}" in line)


def test_positions_hold(capsys):
    assert main(["check", "positions", "--json"]) == 0
    assert all(row["figure"] <= 1.5 for row in lines(capsys))


def test_angles_from_absolute_positions_would_be_found():
    """Queries turned by fp32 angles of their absolute position, as is usual elsewhere."""
    error = {}
    for at in (proofs.NEAR, proof_cases.FAR):
        case = proof_cases.paged(seed=5, base=at)
        off = case["q_pos"].float()[:, None] * case["inv_freq"].float()  # what such code computes
        slip = off.double() - case["q_pos"].double()[:, None] * case["inv_freq"]
        half = slip.shape[1]
        a, b = case["q"][..., :half], case["q"][..., half:]
        cos, sin = slip.cos().float()[:, None], slip.sin().float()[:, None]
        turned = case | {"q": torch.cat([a * cos - b * sin, b * cos + a * sin], -1)}
        got, _ = torch.ops.headrace.paged_attention(**turned)
        want, _ = torch.ops.headrace.paged_attention(**case)
        error[at] = float((got - want).norm())
    assert error[proof_cases.FAR] > 100 * error[proofs.NEAR]


def test_pages_do_not_show():
    (check,) = proofs._pages(
        proofs.random_model(), proofs.Sink(4) + proofs.Window(28), proofs.random_bytes(160)
    )
    assert check.figure == 0


def test_random_model_depends_on_its_context():
    model, text = proofs.random_model(), proofs.random_bytes(40)
    other = text.clone()
    other[0] += 1 if text[0] < 255 else -1
    with proofs.wrap(model, memory=proofs.Window(None)) as engine:
        a, b = (engine.open().feed(t, logits=True).logits[-1] for t in (text, other))
    assert float((a - b).abs().max()) > 0.01


def test_unknown_part(capsys):
    assert main(["check", "everything"]) == 2
    err = capsys.readouterr().err
    known = ", ".join(["ops", "positions", *presets.names(), "models"])
    assert err == f"headrace check(WHAT): expected one of {known}, got 'everything'\n"


def test_bench_of_some_shapes_of_an_op():
    names = [case.shape for case in bench.cases("compact", quick=True)]
    rows = bench.run("compact", quick=True, budget=1e-3, only={names[1]})
    assert [row.shape for row in rows] == [names[1]] != names


def test_bench_of_one_op(capsys):
    assert main(["bench", "merge_states", "--quick", "--json", "b.json"]) == 0
    assert "merge_states" in capsys.readouterr().out
    made = json.loads(Path("b.json").read_text())
    assert {row["op"] for row in made["rows"]} == {"merge_states"}
    assert made["host"]["threads"] == torch.get_num_threads()


def test_bench_of_a_wrong_op(capsys, monkeypatch):
    row = bench.Row("linear", "a shape", 1e-3, "torch", 5e-3, 5e-4, 1.0, 1e-6, ok=False)
    monkeypatch.setattr(bench, "each", lambda *_: [row])
    assert main(["bench", "linear"]) == 1
    out = capsys.readouterr().out
    assert "a shape" in out
    assert "5.00x" not in out


def test_bench_of_an_unknown_op(capsys):
    assert main(["bench", "lineal"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("headrace bench(OP): expected one of ")
    assert err.count("\n") == 1


@pytest.fixture
def measured():
    """A row as it is measured, and one that is wrong."""
    rates = (1e10, 1e11)
    right = bench.Row(
        "linear", "a shape", 1e-3, "torch", 5e-3, 5e-4, 0.0, 1e-6, True, {}, 5e6, 1e7,
        (0.98e-3, 1.02e-3), rates,
    )  # fmt: skip
    wrong = bench.Row("append", "another", 1e-3, "torch", 5e-3, 5e-4, 1.0, 1e-6, ok=False)
    return [right, wrong]


def test_bench_draws_rooflines(measured, monkeypatch, capsys):
    monkeypatch.setattr(bench, "each", lambda *_: measured)
    assert main(["bench", "--plot", "roof.png"]) == 1  # for the wrong row
    assert Path("roof.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(bench, "each", lambda *_: measured[1:])
    assert main(["bench", "--plot", "none.png"]) == 1
    assert "expected a shape with FLOPs and bytes" in capsys.readouterr().err
    assert not Path("none.png").exists()


def test_bench_tells_a_change_from_noise(measured, monkeypatch, capsys):
    def run(scale, floor=1.0):
        row = replace(measured[0], ours_s=1e-3 * scale, floor_s=5e-4 * floor)
        row = replace(row, half=(0.98e-3 * scale, 1.02e-3 * scale))
        monkeypatch.setattr(bench, "each", lambda *_: [row])
        return row

    run(1.0)
    assert main(["bench", "--json", "then.json"]) == 0
    for scale, floor, verdict in (
        (1.5, 1.0, "slower"),
        (0.5, 1.0, "faster"),
        (1.5, 1.5, "noise"),  # the machine is slower today
        (1.0, 0.5, "noise"),
        (1.04, 1.0, "noise"),  # within the spread
    ):
        run(scale, floor)
        capsys.readouterr()
        assert main(["bench", "--compare", "then.json"]) == 0
        line, last = capsys.readouterr().out.splitlines()[-2:]
        assert line.startswith("linear")
        assert line.endswith(verdict), (scale, floor)
        assert last == f"of 1 shapes: 1 {verdict}"


def test_bench_compares_with_what_it_wrote_only(capsys):
    Path("other.json").write_text('{"rows": [{"op": "linear"}]}')
    for path, text in (
        ("none.json", "cannot read"),
        ("other.json", "expected what --json writes now"),
    ):
        assert main(["bench", "linear", "--quick", "--compare", path]) == 2
        err = capsys.readouterr().err
        assert text in err
        assert err.count("\n") == 1


@pytest.fixture
def stopped(measured, monkeypatch):
    """A run that ends after one shape."""

    def by(error, at=1):
        def each(*_):
            yield from measured[:at]
            raise error

        monkeypatch.setattr(bench, "each", each)

    return by


def test_what_was_measured_before_ctrl_c_is_shown_and_written(stopped, capsys):
    stopped(KeyboardInterrupt())
    assert main(["bench", "--json", "b.json", "--plot", "b.png"]) == 130
    out, err = capsys.readouterr()
    assert "5.00x" in out
    assert err == "headrace bench: interrupted, after 1 shapes\n"
    made = json.loads(Path("b.json").read_text())
    assert made["stopped"] == "bench: interrupted, after 1 shapes"
    assert [row["shape"] for row in made["rows"]] == ["a shape"]
    assert Path("b.png").read_bytes().startswith(b"\x89PNG")


def test_an_error_half_way_loses_nothing(stopped, capsys):
    stopped(MemoryError("no room for\nthis shape"))
    assert main(["bench", "--json", "b.json"]) == 1
    out, err = capsys.readouterr()
    assert "5.00x" in out
    assert err == "headrace bench: no room for this shape; after 1 shapes\n"
    assert len(json.loads(Path("b.json").read_text())["rows"]) == 1


def test_ctrl_c_before_the_first_shape(stopped, capsys):
    stopped(KeyboardInterrupt(), at=0)
    assert main(["bench", "--json", "b.json"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "headrace bench: interrupted, after 0 shapes\n")
    assert not Path("b.json").exists()


def test_a_full_disk_leaves_what_was_there(measured, monkeypatch, capsys):
    monkeypatch.setattr(bench, "each", lambda *_: measured[:1])
    for name, option in (("b.json", "--json"), ("b.png", "--plot")):
        Path(name).write_text("before")

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("os.replace", full)
            assert main(["bench", option, name]) == 1
        out, err = capsys.readouterr()
        assert "5.00x" in out  # what was measured is told before
        assert "No space left on device" in err
        assert err.count("\n") == 1
        assert Path(name).read_text() == "before"
    assert {f.name for f in Path().iterdir()} == {"b.json", "b.png"}


def test_bench_compares_on_one_machine_only(measured, monkeypatch, capsys):
    monkeypatch.setattr(bench, "each", lambda *_: measured[:1])
    assert main(["bench", "--json", "then.json"]) == 0
    then = json.loads(Path("then.json").read_text())
    for what, other in (("cpu", "Another"), ("processors", 96)):
        there = then | {"host": then["host"] | {what: other}}
        Path("there.json").write_text(json.dumps(there))
        capsys.readouterr()
        assert main(["bench", "--compare", "there.json"]) == 2
        out, err = capsys.readouterr()
        assert out == ""  # nothing is measured before
        assert "bench(--compare): expected figures of this machine, got those of " in err
        assert str(other) in err
        assert err.count("\n") == 1
    there = then | {"host": then["host"] | {"isa": "neon"}, "versions": {"torch": "1.0"}}
    Path("there.json").write_text(json.dumps(there))
    assert main(["bench", "--compare", "there.json"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("then: isa neon, now ") for line in told)
    assert any(line.startswith("then: torch 1.0, now ") for line in told)
    assert not any("threads" in line for line in told)


def test_models_hold(capsys, monkeypatch):
    """On two and a half windows of the text, which takes less time than four."""
    trained, held_out = data.split()
    monkeypatch.setattr(data, "split", lambda: (trained, held_out[: 5 * 128]))
    assert main(["check", "models", "--json"]) == 0
    rows = lines(capsys)
    assert all(row["holds"] for row in rows)
    assert {row["claim"].split(",")[0] for row in rows} >= set(models.names())
