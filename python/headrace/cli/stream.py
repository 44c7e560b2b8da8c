# SPDX-License-Identifier: Apache-2.0
"""`headrace stream`: reads text without end through a model, and reports what it cost."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from importlib import import_module
from pathlib import Path

from . import video_options
from .fail import USAGE, Fail, one_line_errors, reason
from .interrupt import Guard, Interrupted

POLICIES = ("sinks-window", "window", "dense", "recompute")
MISTAKES = (ValueError, NotImplementedError, MemoryError, OSError, RuntimeError)
REPORT = Path("headrace-report.json")
DEFAULTS = {"tokens": None, "dense_limit": 32_000, "samples": 1000}
USERS = {"users": 32, "zipf": 1.1, "batch": 16, "slots": 16}
DEMO = {"tokens": 1_000_000, "dense_limit": 16_000, "samples": 500}
EPILOG = """
Without FILE it reads the sources of the CPython that runs it, 1M tokens unless --tokens says more.
With --adapters many users stream at once, each with its own adapter; FILE is then what they read.
Ctrl-C ends a run early; the report is written all the same. --demo is short for --compare --tokens
1M --dense-limit 16k --samples 500, about two minutes on two cores; what else is given wins.
"""


def count(text: str) -> int:
    """A number of tokens: 4000000, 4_000_000, 100k, 4M, 1.5M, 1G."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*([kKmMgG]?)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"expected a number such as 100k or 4M, got {text!r}")
    unit = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]
    value = float(match[1].replace("_", "")) * unit
    if value != int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number of tokens, got {text!r}")
    return int(value)


def positive(text: str) -> int:
    """A count of 1 or more."""
    value = count(text) if not text.startswith("-") else -1
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def exponent(text: str) -> float:
    """A finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text!r}")
    return value


def above(text: str) -> float:
    """A finite number above 0."""
    value = exponent(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def natural(text: str) -> int:
    """A count of 0 or more."""
    if text.startswith("-"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return count(text)


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.epilog = EPILOG
    one_line_errors(parser)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="text to read; - is standard input"
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="tokens to read, such as 100k or 4M; a text that is shorter starts again"
        " (default: the files once)",
    )
    parser.add_argument("--policy", choices=POLICIES, help="what is kept (default: sinks-window)")
    parser.add_argument("--compare", action="store_true", help="all policies on the same bytes")
    parser.add_argument(
        "--model", metavar="NAME|PATH", help="a packaged model or a file (default: bytes-stream)"
    )
    parser.add_argument(
        "--window", type=positive, metavar="N", help="newest tokens kept, with the query"
    )
    parser.add_argument("--sinks", type=natural, metavar="N", help="first tokens kept for ever")
    parser.add_argument("--chunk", type=positive, default=256, metavar="N", help="tokens of a step")
    parser.add_argument(
        "--held-out", action="store_true", help="of the built-in text, only files not trained on"
    )
    parser.add_argument("--binary", action="store_true", help="take files with zero bytes too")
    parser.add_argument(
        "--dense-limit",
        type=positive,
        metavar="N",
        help="where the dense policy, whose memory grows, stops (default: 32k tokens)",
    )
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="N",
        help="positions to recompute, chosen at random (default: 1000)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of those positions")
    parser.add_argument(
        "--pool-pages", type=positive, metavar="N", help="pages of 64 tokens in all"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="of the processor")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="PATH")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="default: the report's, as .png")
    parser.add_argument("--no-plot", action="store_true")
    users = parser.add_argument_group("many users")
    users.add_argument(
        "--adapters",
        nargs="?",
        const="",
        metavar="DIR",
        help="an adapter store, or a folder of peft's folders (default: those of the package)",
    )
    users.add_argument("--users", type=positive, metavar="N", help="default: 32")
    users.add_argument(
        "--zipf", type=exponent, metavar="S", help="how fast popularity falls (default: 1.1)"
    )
    users.add_argument("--batch", type=positive, metavar="N", help="streams a step (default: 16)")
    users.add_argument(
        "--slots", type=positive, metavar="N", help="adapters in memory at once (default: 16)"
    )
    video_options.add(parser, positive, above)
    parser.add_argument("--demo", action="store_true", help="a comparison of about two minutes")


def run(args: argparse.Namespace) -> int:
    """Streams, shows, reports; gives the exit status."""
    if args.video is not None:
        return _guarded("video", "Videos", args)
    for name in video_options.OPTIONS:
        if getattr(args, name) is not None:
            return _needs(name, "--video")
    args.model = args.model or "bytes-stream"
    if args.adapters is None:
        for name in USERS:
            if getattr(args, name) is not None:
                return _needs(name, "--adapters")
    else:
        for name, default in USERS.items():
            if getattr(args, name) is None:
                setattr(args, name, default)
        return _guarded("users", "Users", args)
    args.compare = args.compare or args.demo
    for name, value in (DEMO if args.demo else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return _guarded("session", "Session", args)


def _needs(name: str, other: str) -> int:
    option = "--" + name.replace("_", "-")
    print(f"headrace stream({option}): expected {other} with it, got none", file=sys.stderr)
    return USAGE


def _guarded(module: str, kind: str, args: argparse.Namespace) -> int:
    try:
        session = getattr(import_module(f"headrace.cli.{module}"), kind)
        with Guard() as guard:
            status: int = session(args, guard).run()
            return status
    except Fail as fail:
        print(f"headrace {fail}", file=sys.stderr)
        return fail.status
    except Interrupted as stop:
        print(f"headrace stream: {stop} before anything was read", file=sys.stderr)
        return stop.status
    except MISTAKES as error:
        if os.environ.get("HEADRACE_TRACEBACK"):
            raise
        print(f"headrace stream: {reason(error)}", file=sys.stderr)
        return 1
