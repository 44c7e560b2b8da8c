# SPDX-License-Identifier: Apache-2.0
"""`headrace info`: the report of headrace.info."""

from __future__ import annotations

import argparse

from .. import info


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    info.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the report; 0 also when a part is broken, for that is what it is there to tell."""
    return info.run(args)
