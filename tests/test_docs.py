# SPDX-License-Identifier: Apache-2.0
"""The pages of the docs that are written from the code say what the code says."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from headrace import ops, presets, recipes
from headrace.streams import policies, traces

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import preset_docs  # noqa: E402

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
    page = preset_docs.page()
    for name in presets.names():
        assert f"\n### {name}\n" in page
    told = [preset_docs.doc(module) for _, module in preset_docs.modules()]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_tells_what_it_takes_and_what_else_there_is(name):
    module = getattr(presets, name)
    opened = getattr(module, name)
    section = "\n".join(preset_docs.section(presets.get(name)))
    told = " ".join(inspect.getdoc(opened).split())
    for p in list(inspect.signature(opened).parameters.values())[1:]:
        what = "[Oo]ptions (as|of)" if p.name == "options" else p.name
        assert re.search(rf"\b{what}\b", told), f"{name}: {p.name} is not explained"
    assert re.search("Error|raises nothing|errors it raises", told), f"{name}: no error named"
    assert module.__all__
    for other in module.__all__:
        assert re.search(rf"^(- `(class )?)?{other}\b", section, re.M)
        for member, of in preset_docs.members(getattr(module, other)):
            assert preset_docs.doc(of), f"{name}: {other}.{member} has no docstring"
    for driver in {*re.findall(r"`(\w+)`", told)} - {*presets.names()}:
        if inspect.isfunction(getattr(module, driver, None)):
            assert driver in module.__all__, f"{name}: {driver} is named, and not public"


def test_a_preset_is_its_module_and_can_be_called():
    import headrace.presets.rekv as module

    assert presets.rekv is module is sys.modules["headrace.presets.rekv"]
    assert (module.ask, module.rekv) == (presets.rekv.ask, presets.get("rekv").open)
    assert inspect.signature(module) == inspect.signature(module.rekv)
    with pytest.raises(TypeError, match="wondow"):
        presets.streaming_llm(None, wondow=3)


def test_the_page_on_time_has_every_trace_and_policy():
    page = (ROOT / "docs/time.md").read_text("utf-8")
    for name in (*traces.SHAPES, *traces.OF_LANES):
        assert f"| `{name}" in page
    for name in policies.NAMES:
        assert f"| `{name}(" in page


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
