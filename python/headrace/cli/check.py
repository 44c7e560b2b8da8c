# SPDX-License-Identifier: Apache-2.0
"""`headrace check`: on this machine, what is fast is also exact. A line per claim."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator

from .fail import Fail, one_line_errors

FIELDS = ("claim", "figure", "bound")


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    one_line_errors(parser)
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="a preset, or one of ops, positions, models (default: everything)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, one object per claim")


def run(args: argparse.Namespace) -> int:
    """Prints every claim with its figure and bound; 1 when one does not hold."""
    from . import proofs

    parts: dict[str, Callable[[], Iterator[proofs.Check]]] = proofs.parts()
    if args.what is not None and args.what not in parts:
        fail = Fail(f"check(WHAT): expected one of {', '.join(parts)}, got {args.what!r}")
        print(f"headrace {fail}", file=sys.stderr)
        return fail.status
    good, bad = _marks()
    failed = count = 0
    began = time.perf_counter()
    for part in [args.what] if args.what else parts:
        if not args.json:
            print(f"{part}", flush=True)
        for check in parts[part]():
            count += 1
            failed += not check.passed
            if args.json:
                row = dict(zip(FIELDS, (check.name, check.figure, check.bound), strict=True))
                print(json.dumps({"part": part, **row, "holds": check.passed}), flush=True)
            else:
                mark = good if check.passed else bad
                print(
                    f"  {mark} {check.name:<78} {check.figure:9.3g}  of {check.bound:.3g}",
                    flush=True,
                )
    if not args.json:
        seconds = time.perf_counter() - began
        verdict = "all hold" if not failed else f"{failed} do not hold"
        print(f"{count} claims, {verdict}; {seconds:.0f} s")
    return 1 if failed else 0


def _marks() -> tuple[str, str]:
    """What stands for yes and no on this terminal."""
    try:
        "\N{CHECK MARK}\N{BALLOT X}".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok  ", "FAIL"
    return "\N{CHECK MARK}", "\N{BALLOT X}"
