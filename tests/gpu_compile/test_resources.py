# SPDX-License-Identifier: Apache-2.0
"""What the compilers were seen to make of the GPU kernels is of the kernels as they are, and no
kernel spills more registers than is known."""

from __future__ import annotations

import json
from pathlib import Path

from bench.gpu.built import kernels

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "bench/results/compilers/report.json").read_text())
SPILLS = {
    "append_absorb_kernel": (152, 0),
    "assign_kernel": (16, 0),
    "attention_kernel": (32, 32),
    "block_attention_kernel": (0, 44),
    "gated_delta_rule_kernel": (16, 0),
    "hstu_kernel": (0, 16),
    "paged_kernel": (0, 56),
}
"""Bytes a thread that any form of a kernel spills, on sm_80 and sm_90: fewer are welcome. Products
of fp32 operands and heads of 256 do not fit otherwise."""


def changed(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Sources that are new, gone or other."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def test_the_table_is_of_these_kernels():
    differ = changed(REPORT["kernels"], kernels())
    how = "python scripts/gpu_check.py OUT --stages resources --budget 30m"
    told = f"{', '.join(differ)} changed: `{how}`, OUT/report.json to bench/results/compilers"
    assert differ == [], f"{told}, then `python tools/results.py`"


def test_what_changed_is_named():
    now = kernels()
    assert "kernels/select/triton.py" in now
    assert "kernels/lora/decode.cu" in now
    other = now | {"kernels/select/triton.py": "another", "kernels/x/triton.py": "new"}
    assert changed(now, other) == ["kernels/select/triton.py", "kernels/x/triton.py"]
    assert changed(now, dict(now)) == []


def test_no_kernel_spills_more_than_is_known():
    units = REPORT["units"]
    assert {name: unit["state"] for name, unit in units.items()} == {
        "resources cuda": "ok", "resources triton": "ok"
    }  # fmt: skip
    seen: dict[str, tuple[int, int]] = {}
    for form in (form for unit in units.values() for form in unit["kernels"]):
        old = seen.get(form["kernel"], (0, 0))
        at = 0 if form["arch"] == "80" else 1
        most = max(old[at], form["spills"])
        seen[form["kernel"]] = (most, old[1]) if at == 0 else (old[0], most)
    allowed = {name: SPILLS.get(name, (0, 0)) for name in seen}
    more = [n for n, (a, b) in seen.items() if a > allowed[n][0] or b > allowed[n][1]]
    assert more == []
