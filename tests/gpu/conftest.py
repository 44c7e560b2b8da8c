# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations


def pytest_addoption(parser):
    """`pytest tests/gpu --replays 100000` runs captured graphs that often; without it each test has
    a number of its own."""
    parser.addoption("--replays", type=int, default=None, help="replays of a captured graph")
