# SPDX-License-Identifier: Apache-2.0
"""The pages of the docs that are written from the code say what the code says."""

import re
import sys
from pathlib import Path

import pytest

from headrace import ops, presets, recipes

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


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_recipe_tells_what_it_does_and_where_it_is_from(name):
    module = getattr(recipes, name)
    what, source = docs._told(module)
    assert what
    assert "\n" not in what
    assert re.search(r"\d{4}|github", source), f"{name}: a source with its number or year"
    assert len(source) < 120
    assert docs._functions(module)
    assert f"| [`{name}`](#{name}) | {what} | {source} |" in docs.recipe_page()


def test_every_recipe_is_listed():
    files = {f.stem for f in (ROOT / "python/headrace/recipes").glob("*.py")}
    assert set(recipes.__all__) == files - {"__init__", "common"}


def test_the_front_page_counts_presets_and_recipes():
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"| presets | {len(presets.names())}, in" in text
    assert f"; {len(recipes.__all__)} published rules of" in text
