# SPDX-License-Identifier: Apache-2.0
"""`headrace bench`: the ops beside a peer and the floor of this machine, all in one run."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from .fail import Fail, one_line_errors, reason


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    one_line_errors(parser)
    parser.add_argument("op", nargs="?", metavar="OP", help="one op (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few shapes, under 30 seconds")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 when a result does not match its reference, 2 for an unknown op."""
    from .. import bench, ops
    from . import report

    try:
        if args.op is not None and args.op not in ops.specs():
            raise Fail(f"bench(OP): expected one of {', '.join(ops.specs())}, got {args.op!r}")
        if args.json:
            report.check_target("bench(--json)", args.json)
        rows = bench.run(args.op, args.quick, _progress if sys.stderr.isatty() else None)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a check mark must not end it all
        print(bench.table(rows), flush=True)
        if args.json:
            report.write(report.taken() | bench.to_json(rows), args.json)
    except Fail as fail:
        print(f"headrace {fail}", file=sys.stderr)
        return fail.status
    except (ValueError, RuntimeError, MemoryError) as error:
        print(f"headrace bench: {reason(error)}", file=sys.stderr)
        return 1
    return 0 if all(row.ok for row in rows) else 1


def _progress(row: object) -> None:
    print(f"\r{row.op} {row.shape}\x1b[K", end="\r", file=sys.stderr, flush=True)  # type: ignore[attr-defined]
