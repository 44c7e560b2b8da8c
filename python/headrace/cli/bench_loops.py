# SPDX-License-Identifier: Apache-2.0
"""`headrace bench --loops` and `--scaling`: whole loops, and cost as work grows."""

from __future__ import annotations

import argparse
from typing import Any

from . import bench_view, report
from .fail import Fail
from .gather import gather, progress

EXCLUDED = ("op", "shapes", "peers", "compare", "budget", "calls")


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
    found, ended = gather(part.each(names, args.quick, progress()), kind)
    show = bench_view.shower()
    for nth, table in enumerate(part.tables(found)):
        print(end="\n" if nth else "")
        show(table)
    if args.loops and not names:
        for name, how in loops.missing().items():
            print(f"not here: {name}, {how}")
    if args.json:
        report.write(report.taken(ended) | {kind: finite(found)}, args.json)
    if args.plot:
        (pictures.loops if args.loops else pictures.scaling)(found, args.plot)
    if ended is not None:
        raise ended
    right = all(point["ok"] for loop in found for point in loop.get("points", ()))
    return 0 if right else 1
