# SPDX-License-Identifier: Apache-2.0
"""A case that takes no time, and what the command prints of one."""

import re

import torch

from headrace import bench
from headrace.bench.case import Case
from headrace.cli import main


def of(op, index=0):
    return list(bench.cases(op, quick=True))[index]


def toy(**changes):
    x = torch.randn(64)
    case = Case("linear", "a shape", lambda: x * 2, lambda: (0.0, 1e-6), 1e3, 1e3,
                lambda: x * 2, "right",
                rivals={"wrong": lambda: x * 2.1, "cut short": lambda: x[:3]})  # fmt: skip
    for name, value in changes.items():
        setattr(case, name, value)
    return case


def shown(case, monkeypatch, capsys):
    monkeypatch.setattr(bench, "cases", lambda *_: [case])
    status = main(["bench", "linear", "--quick", "--peers", "--json", "p.json"])
    return status, capsys.readouterr().out


def line(out, name):
    (found,) = [line for line in out.splitlines() if f"  {name}  " in line]
    return found


def ratios(line):
    return re.findall(r"[0-9]x", line)
