# SPDX-License-Identifier: Apache-2.0
"""`headrace doctor`: the findings of headrace.doctor."""

from __future__ import annotations

import argparse

from .. import doctor


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    doctor.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what is missing and how to get it; 1 when what everything needs is broken."""
    return doctor.run(args)
