# SPDX-License-Identifier: Apache-2.0
"""`headrace bench --loops` and `--scaling`: whole loops, and cost as work grows."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from . import report
from .fail import Fail

EXCLUDED = ("op", "shapes", "peers", "compare", "budget")


def run(args: argparse.Namespace) -> int:
    """Prints the tables; 1 where ours was wrong. Raises Fail, ValueError and OSError."""
    from ..bench import loops, pictures, scaling
    from ..bench.case import finite

    kind, known = ("loops", loops.LOOPS) if args.loops else ("scaling", scaling.WORKS)
    if args.loops and args.scaling:
        raise Fail("bench(--loops): expected none with --scaling, got one")
    for option in EXCLUDED:
        if getattr(args, option):
            name = "OP" if option == "op" else f"--{option}"
            raise Fail(f"bench({name}): expected none with --{kind}, got one")
    wanted = getattr(args, kind)
    if wanted not in ("all", *known):
        raise Fail(f"bench(--{kind}): expected one of {', '.join(known)}, got {wanted!r}")
    names = [] if wanted == "all" else [wanted]
    part: Any = loops if args.loops else scaling
    found = part.run(names, args.quick, progress())
    print(part.table(found), flush=True)
    if args.loops and not names:
        for name, how in loops.missing().items():
            print(f"not here: {name}, {how}")
    if args.json:
        report.write(report.taken() | {kind: finite(found)}, args.json)
    if args.plot:
        (pictures.loops if args.loops else pictures.scaling)(found, args.plot)
    right = all(point["ok"] for loop in found for point in loop.get("points", ()))
    return 0 if right else 1


def progress() -> Callable[[str], None] | None:
    """A line that is drawn again, ten times a second at most; None where nobody looks."""
    if not sys.stderr.isatty():
        return None
    began = last = time.perf_counter()

    def told(line: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last > 0.1:
            last = now
            print(f"\r{now - began:4.0f} s  {line}\x1b[K", end="\r", file=sys.stderr, flush=True)

    return told
