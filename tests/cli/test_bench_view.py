# SPDX-License-Identifier: Apache-2.0
"""Tables of the bench: nothing is lost, drawn on a terminal of any width or as plain text."""

import io
import os
import re
import sys
from collections import Counter
from dataclasses import replace

import pytest

from headrace import bench
from headrace.bench import beside, compare, tables
from headrace.bench.beside import Beside
from headrace.cli import bench_view, gather, main

LONG = "base layer fp32 64 rows, none with an adapter, 1024 wide and deep"
MARK = tables.SLOWER


def row(op, shape, ours, peer, ok=True, **changes):
    return bench.Row(op, shape, ours, "a peer of many words", peer, 1e-4, 2e-3, 1e-2, ok,
                     changes.pop("notes", {}), **changes)  # fmt: skip


def one(name, seconds, **changes):
    half = (0.9 * seconds, 1.1 * seconds)
    return Beside(name, seconds, half, 2 * seconds, half, **({"calls": (200, 105)} | changes))


@pytest.fixture
def rows():
    return [
        row("linear", "fp32 [1, 2]", 2e-4, 1e-3),
        row("linear", LONG, 1.5, 1.0, notes={"time over the op by itself": 0.89}),
        row("select", "top 7", 2.5e-6, 1e-5, ok=False),
    ]


@pytest.fixture
def against(rows):
    """The same with what stands beside them."""
    base = one("ours", 1e-3), one("floor", 5e-4)
    quick = replace(one("quicker when warm", 0.5e-3, error=1e-3), cold_s=4e-3)
    lost = Beside("lost", ok=False, why="ImportError: none of this is here at all")
    return [
        replace(rows[0], beside=[*base, quick, one("slow", 3e-3, error=0.5, ok=False)]),
        replace(rows[1], beside=[*base, lost]),
    ]


def drawn(table, width, colour=None):
    from rich.console import Console

    file = io.StringIO()
    console = Console(width=width, file=file, force_terminal=True, color_system=colour)
    bench_view.draw(table, console)
    return plain(file.getvalue()) if colour is None else file.getvalue()


def plain(text):
    """Without what makes it bold or dim."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def words(text):
    return re.findall(r"[^\s\u2500]+", text)


def of_change(scale):
    now = {"op": "linear", "shape": LONG, "ok": True, "ours_s": scale, "floor_s": 1.0,
           "peer_name": "", "peer_s": None}  # fmt: skip
    return compare.table(compare.changes([now], [now | {"ours_s": 1.0}]))


@pytest.mark.parametrize("width", [72, 80, 100, 120, 200])
def test_nothing_is_lost_at_any_width(rows, against, width):
    for table in (bench.table(rows), beside.table(against, ["another: no"]), of_change(1.5)):
        text = drawn(table, width)
        assert max(map(len, text.splitlines())) <= width
        heads = [column.name for column in table.columns[table.by :] if column.name != "notes"]
        cells = [cell for line in table.lines for cell in line.cells[table.by :]]
        names = [cell for name, _ in table.groups() for cell in name]
        wanted = Counter(words(" ".join([*heads, *cells, *names, *table.below])))
        assert not wanted - Counter(words(text))
        assert ("notes" in text) == (width == 200 and table.notes)


def test_a_terminal_too_narrow_for_it_shows_the_text(rows, against, capsys):
    for table in (bench.table(rows), beside.table(against)):
        assert drawn(table, 40) == ""
        assert capsys.readouterr().out == f"{table}\n"


def test_shapes_stand_below_their_op_and_peers_below_their_shape(rows, against):
    lines = [line.rstrip() for line in drawn(bench.table(rows), 200).splitlines()]
    at = [lines.index("linear"), lines.index("select")]
    assert at == [2, 5]
    assert lines[3].startswith("  fp32 [1, 2]")
    assert lines[4].startswith(f"  {LONG}  ")
    assert lines[4].endswith("  time over the op by itself 0.89")
    lines = [line.rstrip() for line in drawn(beside.table(against), 120).splitlines()]
    first, second = lines.index("linear  fp32 [1, 2]"), lines.index(f"linear  {LONG}")
    names = ("ours", "floor", "quicker when warm", "slow")
    assert [x.strip().split("  ")[0] for x in lines[first + 1 : second]] == [*names]
    assert [x.strip().split("  ")[0] for x in lines[second + 1 : second + 4]] == [
        *names[:2],
        "lost",
    ]


def test_notes_go_below_where_there_is_no_room(rows, against):
    lines = drawn(bench.table(rows), 140).splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith(f"  {LONG}")]
    assert lines[at + 1].strip() == "time over the op by itself 0.89"
    assert "ImportError" in drawn(beside.table(against), 80)


def test_numbers_stand_to_the_right_with_their_unit_in_the_head(rows):
    table = bench.table(rows)
    for text, begin in ((str(table), 2), (drawn(table, 120), 0)):
        lines = [
            line for line in text.splitlines()[begin:] if re.search("[0-9] +[\u2713\u2717]", line)
        ]
        ends = {re.search("([0-9,.]+) +[\u2713\u2717]", line).end(1) for line in lines}
        assert len(lines) == 3
        assert len(ends) == 1
        assert [re.search("([0-9,.]+) +[\u2713\u2717]", x)[1] for x in lines] == [
            "200",
            "1,500,000",
            "2.5",
        ]
        assert "ours, us" in text
        assert " us " not in text.replace("ours, us ", "")


@pytest.mark.parametrize("colour", [None, "truecolor"])
def test_what_is_slower_is_marked_with_and_without_colour(rows, colour):
    table = bench.table(rows)
    for text in (str(table), drawn(table, 200, colour)):
        marked = [line for line in text.splitlines() if MARK in line]
        assert len(marked) == 2
        assert f"{MARK} 0.67x" in marked[0]
        assert LONG in marked[0]
        assert f"{MARK} slower than the peer: 1 of 3 shapes, at the worst 0.67x" in marked[1]
        assert "5.00x" in text
        assert "wrong results: 1 of 3 shapes" in text
    red = [line for line in text.splitlines() if "\x1b[1;31m" in line]
    assert len(red) == (4 if colour else 0)  # the two of it, the wrong result and its line


def test_a_ratio_that_is_shown_as_one_is_not_slower():
    assert [tables.ratio(x) for x in (0.994, 0.996, 1.0, None)] == [f"{MARK} 0.99x", "1.00x",
                                                                    "1.00x", ""]  # fmt: skip


def test_a_peer_is_marked_where_it_is_quicker(against):
    lines = str(beside.table(against)).splitlines()
    (quick,) = [line for line in lines if "quicker when warm" in line]
    assert re.search(f"{MARK} 0.50x +4,000 +2.00x", quick)
    assert lines[-1] == f"{MARK} slower than the peer: 1 of 3 peers"
    assert sum(MARK in line for line in lines) == 2  # not the floor
    assert f"\x1b[1;31m{MARK} 0.50x" in drawn(beside.table(against), 120, "standard")


@pytest.mark.parametrize(("scale", "style"), [(1.5, "\x1b[1;31mslower"), (0.5, "\x1b[32mfaster"),
                                              (1.0, "\x1b[2mnoise")])  # fmt: skip
def test_changes_are_told_by_word_and_colour(scale, style):
    assert style in drawn(of_change(scale), 120, "standard")


def run(monkeypatch, capsys, rows, *arguments):
    monkeypatch.setattr(bench, "each", lambda *_: rows)
    assert main(["bench", *arguments]) in (0, 1)
    told, seen = re.subn(r"An empty call: .*\n\n", "", capsys.readouterr().out)
    assert seen == 1
    return told


def test_plain_text_where_nobody_looks(monkeypatch, capsys, rows):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(monkeypatch, capsys, rows) == f"{bench.table(rows)}\n"


def test_the_command_draws_on_a_terminal(monkeypatch, capsys, rows, against):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "xterm")
    for made, extra in ((rows, ()), (against, ("--peers",))):
        out = plain(run(monkeypatch, capsys, made, *extra))
        assert "\u2500" * 80 in out
        assert any(line.startswith("linear") for line in out.splitlines())


def test_without_rich(monkeypatch, capsys, rows):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    for name in [n for n in sys.modules if n.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    first, rest = run(monkeypatch, capsys, rows).split("\n", 1)
    assert first == "rich is not installed, so this shows plain text; pip install 'headrace[cli]'"
    assert rest == f"{bench.table(rows)}\n"


def test_the_line_of_progress_ends_where_the_terminal_does(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(gather.os, "get_terminal_size", lambda _: os.terminal_size((50, 24)))
    clock = iter(range(100))
    monkeypatch.setattr(gather.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    gather.progress()(f"linear 3: {LONG}")
    shown = capsys.readouterr().err
    assert shown == f"\r   1 s  {f'linear 3: {LONG}'[:41]}\x1b[K\r"
