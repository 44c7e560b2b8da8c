# SPDX-License-Identifier: Apache-2.0
"""Writes docs/ops.md, docs/presets.md and docs/recipes.md from the contracts of the ops, the
presets and the recipes themselves.

    python tools/docs.py [--check]

`--check` writes nothing and fails when a file differs.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import preset_docs

from headrace import ops, recipes
from headrace.contract import Arg, OpSpec

ROOT = Path(__file__).resolve().parents[1]

OPS = """# Ops

Every op is `headrace.ops.<name>` on torch tensors, and on the CPU on numpy arrays too, without a
copy; it is also `torch.ops.headrace.<name>`, under `torch.compile` as well. The CPU kernels exist
at three levels (scalar, AVX2, AVX-512; where products gain from them also AVX512-VNNI and
AVX512-BF16) and are the default where there is no GPU; the others named below have been compiled
for sm_80 and sm_90 and run in an interpreter or an emulation, and **none of them has been seen
running on a GPU yet**. Results of up to 64 KB lie in memory that is quicker to have than torch's
own, and which `resize_` cannot enlarge. Written by `python tools/docs.py` from the contracts that
the argument checks, the tests and the benchmarks read.
"""

RECIPES = """# Recipes

Published rules of what a cache keeps, drops or recalls, each a module `headrace.recipes.<name>` of
a few lines over the ops, with the defaults of its source. Written by `python tools/docs.py` from
the recipes.
"""


def op_page() -> str:
    """docs/ops.md."""
    specs = sorted(ops.specs().values(), key=lambda spec: spec.name)
    lines = [OPS, "| op | what it does | beside the CPU |", "|---|---|---|"]
    for spec in specs:
        lines.append(f"| [`{spec.name}`](#{spec.name}) | {spec.doc} | {', '.join(spec.gpu)} |")
    return "\n".join(lines) + "\n" + "".join(map(_op, specs))


def _op(spec: OpSpec) -> str:
    function = getattr(ops, spec.name)
    lines = ["", f"## {spec.name}", "", "```python"]
    lines += [f"headrace.ops.{spec.name}{_signature(function)}", "```", ""]
    lines += [inspect.cleandoc(function.__doc__ or ""), ""]
    lines += ["| tensor | axes | dtypes |", "|---|---|---|"]
    lines += [f"| {_name(arg, spec)} | `{_axes(arg.axes)}` | {_dtypes(arg)} |" for arg in spec.args]
    for i, out in enumerate(spec.outs):
        name = "result" if len(spec.outs) == 1 else f"result {i + 1}"
        dtype = f"that of {out.dtype}" if isinstance(out.dtype, str) else _short(out.dtype)
        lines.append(f"| {name} | `{_axes(out.axes)}` | {dtype} |")
    if spec.source:
        lines += ["", f"After: {spec.source}."]
    return "\n".join(lines) + "\n"


def _signature(function: object) -> str:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    names = []
    marked = False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not marked:
            names.append("*")
            marked = True
        names.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return "(" + ", ".join(names) + ")"


def _name(arg: Arg, spec: OpSpec) -> str:
    notes = ["or None"] if arg.optional else []
    if arg.name in spec.mutates:
        notes.append("written")
    return f"`{arg.name}`" + (f" ({', '.join(notes)})" if notes else "")


def _axes(axes: str) -> str:
    return axes.replace("|", " or ") or "()"


def _dtypes(arg: Arg) -> str:
    return f"that of {arg.like}" if arg.like else ", ".join(map(_short, arg.dtypes))


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def recipe_page() -> str:
    """docs/recipes.md."""
    lines = [RECIPES, "| recipe | what it does | after |", "|---|---|---|"]
    found = {name: getattr(recipes, name) for name in sorted(recipes.__all__)}
    for name, module in found.items():
        what, after = _told(module)
        lines.append(f"| [`{name}`](#{name}) | {what} | {after} |")
    for name, module in found.items():
        lines += ["", f"## {name}", "", inspect.cleandoc(module.__doc__ or ""), ""]
        lines += [f"- `{function}`" for function in _functions(module)]
    return "\n".join(lines) + "\n"


def _told(recipe: ModuleType) -> tuple[str, str]:
    """What a recipe does, and its source, by its docstring: "Name: what.", then "Source. More"."""
    first, _, rest = inspect.cleandoc(recipe.__doc__ or "").partition("\n\n")
    what = " ".join(first.split()).partition(": ")[2].removesuffix(".")
    source = re.split(r"(?<!\bal)\.\s|;|: |, and its code| \(a note", " ".join(rest.split()) + " ")[
        0
    ]
    return what, source


def _functions(module: ModuleType) -> list[str]:
    return [
        f"{name}{_signature(f)}"
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and name[0] != "_"
    ]


def written() -> dict[Path, str]:
    """Every file that this writes, and its text."""
    return {
        ROOT / "docs/ops.md": op_page(),
        ROOT / "docs/presets.md": preset_docs.page(),
        ROOT / "docs/recipes.md": recipe_page(),
    }


def main() -> None:
    stale = []
    for path, text in written().items():
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                path.write_text(text, "utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"docs: {', '.join(stale)} differ from the code; run tools/docs.py")


if __name__ == "__main__":
    main()
