# SPDX-License-Identifier: Apache-2.0
"""What the compilers were seen to make of the GPU kernels is of the kernels as they are, and
none spills a register."""

from __future__ import annotations

import json
from pathlib import Path

from bench.gpu.built import kernels

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "bench/results/compilers/report.json").read_text())


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


def test_no_kernel_spills():
    units = REPORT["units"]
    assert {name: unit["state"] for name, unit in units.items()} == {
        "resources cuda": "ok", "resources triton": "ok"
    }  # fmt: skip
    forms = [form for unit in units.values() for form in unit["kernels"]]
    assert len(forms) > 600
    assert [form for form in forms if form["spills"]] == []
