# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: tells each test's begin and outcome at once, a line of JSON each, on a pipe.

A test that fails on the device leaves its process without one, so the process ends there: the tests
after it would fail for no reason of their own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .processes import TOLD


def _tell(**told: Any) -> None:
    os.write(int(os.environ[TOLD]), (json.dumps(told) + "\n").encode())


def _why(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return f"{crash.message} ({os.path.basename(crash.path)}:{crash.lineno})"
    text = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.strip()[-600:]


class Main:
    """Of the process that the script started."""

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed or report.skipped:
            outcome = "ERROR" if report.failed else "SKIPPED"
            _tell(test=report.nodeid, outcome=outcome, why=_why(report)[:600])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _tell(began=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome.upper()
            why = "" if report.passed else _why(report)[:600]
            _tell(test=report.nodeid, outcome=outcome, why=why)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        _tell(ended=int(exitstatus))


class Device:
    """Of every process that runs tests."""

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        torch = sys.modules.get("torch")
        if self.failed and torch is not None and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except Exception:
                os._exit(3)
        self.failed = False

    failed = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed


def pytest_configure(config: Any) -> None:
    workers = getattr(config.option, "numprocesses", None)
    inside = hasattr(config, "workerinput")
    if not inside:
        config.pluginmanager.register(Main(), "headrace-told")
    if inside or not workers:
        config.pluginmanager.register(Device(), "headrace-device")
