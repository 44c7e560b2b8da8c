# SPDX-License-Identifier: Apache-2.0
"""`headrace bench`: ops beside peers and the floor of this machine, loops, and work that grows."""

from __future__ import annotations

import argparse
import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .fail import Fail, one_line_errors, reason
from .gather import ERRORS, gather, progress
from .stream import positive


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    one_line_errors(parser)
    parser.add_argument("op", nargs="?", metavar="OP", help="one op (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few shapes, under 30 seconds")
    parser.add_argument(
        "--shapes", metavar="MODEL", help="the shapes of a model, such as llama-3-8b"
    )
    parser.add_argument(
        "--peers", action="store_true",
        help="beside every peer that is there, with warm and with cold caches",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS",
        help="for the calls of each side of a shape (default: 1, with --quick 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--calls", type=positive, metavar="N",
        help="so many of each side of a shape at least, however long they take",
    )  # fmt: skip
    for name, what in (("loops", "whole loops"), ("scaling", "cost as work grows")):
        parser.add_argument(
            f"--{name}", nargs="?", const="all", metavar="NAME", help=f"{what}, one or all"
        )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the rooflines there")
    parser.add_argument(
        "--compare", type=Path, metavar="PATH", help="tell what changed since the figures in PATH"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 when a result does not match its reference, 2 for an unknown op, 130
    after Ctrl-C, when what was done by then is shown and written all the same."""
    from .. import bench, ops
    from ..bench import beside, compare, peers, rates
    from ..bench.timing import at_least
    from . import bench_loops, bench_view, report

    try:
        for option in ("json", "plot"):
            if getattr(args, option):
                report.check_target(f"bench(--{option})", getattr(args, option))
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a check mark must not end it all
        if args.loops or args.scaling:
            return bench_loops.run(args)
        if args.op is not None and args.op not in ops.specs():
            raise Fail(f"bench(OP): expected one of {', '.join(ops.specs())}, got {args.op!r}")
        then = _recorded(args.compare) if args.compare else {}
        told, machine = progress(), rates.measured()
        coming = bench.each(args.op, args.quick, told, args.shapes, args.peers, args.budget)
        with at_least(args.calls):
            rows, ended = gather(coming, "shapes")
        show = bench_view.shower()
        print(rates.line(machine), end="\n\n")
        show(beside.table(rows, peers.missing()) if args.peers else bench.table(rows))
        if args.json:
            found = {"rates": machine} | bench.to_json(rows)
            report.write(report.taken(ended) | found, args.json)
        if args.compare:
            changed = compare.changes(bench.to_json(rows)["rows"], then["rows"])
            if ended is None:  # each takes as long as it took
                changed = compare.confirmed(changed, then["rows"], partial(_again, args, told))
            print(f"\nsince {args.compare.name}:")
            show(compare.table(changed))
            for line in compare.other(then, report.taken()):
                print(f"then: {line}")
        if args.plot:
            from ..bench import roofline  # which knows of whole loops, and so of every preset

            roofline.plot(rows, args.plot)
        if ended is not None:
            raise ended
    except Fail as fail:
        print(f"headrace {fail}", file=sys.stderr)
        return fail.status
    except ERRORS as error:
        print(f"headrace bench: {reason(error)}", file=sys.stderr)
        return 1
    return 0 if all(row.ok for row in rows) else 1


def _again(args: argparse.Namespace, told: Any, op: str, shapes: set[str]) -> Any:
    """Rows of some shapes, measured anew, without the other peers."""
    from .. import bench

    coming = bench.each(op, args.quick, told, args.shapes, False, args.budget, shapes)
    return bench.to_json(gather(coming, "shapes")[0])["rows"]


def _recorded(path: Path) -> dict[str, Any]:
    """What an earlier run wrote with --json, on this machine."""
    from . import report

    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for row in found["rows"]:
            row["op"], row["shape"], row["ok"], float(row["ours_s"]), float(row["floor_s"])
            row["product"]  # before floors went by it they were others
        there, here = found["host"], report.machine()
        for what in ("cpu", "processors"):
            if there[what] != here[what]:
                got = f"those of {there['cpu']}, {there['processors']} processors"
                hint = "times of two machines do not tell a change"
                raise Fail(f"bench(--compare): expected figures of this machine, got {got}; {hint}")
    except OSError as error:
        raise Fail(f"bench(--compare): cannot read {path}: {reason(error)}") from None
    except (ValueError, KeyError, TypeError):
        raise Fail(f"bench(--compare): expected what --json writes now, got {path}") from None
    return found
