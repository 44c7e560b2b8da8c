# SPDX-License-Identifier: Apache-2.0
"""The `headrace` command. A subcommand is a module here: `add(parser)`, `run(args) -> int`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

# Imported only when called, so that one broken part does not take the others along.
COMMANDS = {
    "stream": "read text without end through a model; report perplexity, memory and time",
    "adapters": "keep personal adapters: register, find, promote, roll back, verify",
    "check": "prove on this machine that what is fast is also exact",
    "bench": "time the ops beside a peer and the floor of this machine",
    "doctor": "what is missing here, for which feature, and how to get it",
    "info": "what is installed, what this machine has, and what is off and why",
}

# A user's mistake: told in one line, without a traceback.
MISTAKES = (ImportError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; gives the exit status: 0, 1 for an error, 2 for usage, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        parser = _top()
        parser.parse_args(arguments)  # leaves for --help, --version and unknown commands
        parser.print_help(sys.stderr)
        return 2
    name = arguments[0]
    parser = argparse.ArgumentParser(prog=f"headrace {name}", description=COMMANDS[name])
    try:
        command = import_module(f"headrace.cli.{name}")
        command.add(parser)
        status: int = command.run(parser.parse_args(arguments[1:]))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader left; point stdout elsewhere so that the flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"headrace {name}: interrupted", file=sys.stderr)
        return 130
    except MISTAKES as error:
        if os.environ.get("HEADRACE_TRACEBACK"):
            raise
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"headrace {name}: {line}", file=sys.stderr)
        return 1


def _top() -> argparse.ArgumentParser:
    from ..info import version

    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Streaming inference at constant memory and time per step.",
        epilog="`headrace COMMAND --help` has the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"headrace {version('headrace')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser
