# SPDX-License-Identifier: Apache-2.0
"""The pages of the docs that are written from the code say what the code says."""

import re
import sys
from pathlib import Path

import pytest

from headrace import ops, presets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import docs  # noqa: E402


def test_pages_are_those_of_the_code():
    for path, text in docs.written().items():
        assert path.read_text("utf-8") == text, f"{path}: run python tools/docs.py"


@pytest.mark.parametrize("name", sorted(ops.specs()))
def test_an_op_tells_what_it_takes(name):
    section, text = docs._op(ops.specs()[name]), getattr(ops, name).__doc__
    for arg in ops.specs()[name].args:
        assert f"| `{arg.name}`" in section
        assert re.search(rf"\b{arg.name}\b", text), f"{name}: {arg.name} is not explained"


def test_every_preset_has_a_section_that_is_its_own():
    page = docs.preset_page()
    for name in presets.names():
        assert f"\n## {name}\n" in page
    told = [docs._module(presets.get(name)).__name__ for name in presets.names()]
    assert len(set(told)) == len(told)
