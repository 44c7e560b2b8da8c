# SPDX-License-Identifier: Apache-2.0
"""docs/presets.md: of every preset what it is, how it is opened, and what else a user of it needs,
from the modules themselves; of every kind a program that runs, from examples/presets.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace import Ring, presets, wrap
from headrace.presets.registry import KINDS
from headrace.presets.scheduling import server
from headrace.streams import Encoder, Server

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Presets

Published systems, each a few lines over the runtime. `presets.NAME(model, ...)` opens one, and what
else it takes to run it lies beside: `presets.rekv.ask`, or `from headrace.presets.rekv import ask`
(`presets.rekv` is that module; for a type checker `presets.rekv.rekv(model)` is the same call).
`presets.get(NAME).sample()`, where there is one, is a small random model of the kind that it takes;
the others take any decoder of tokens, such as `headrace.models.load("bytes-stream")`.
`headrace check NAME` proves the claims of one on your machine, `headrace check` those of all.
Written by `python tools/docs.py` from the presets.

A mistake is told in one line, `op(argument): expected X, got Y; hint`: a ValueError for a value or
a shape, a TypeError for a type, a NotImplementedError for what is valid but not there. Nothing is
half done after it. What an option that a preset [passes on](#what-presets-pass-on) must be is told
there.
"""

KIND = {
    "tokens": "a stream of tokens of which the best, or the newest, stay",
    "archive": "what left the window is kept elsewhere, and a question brings back what it needs",
    "pruning": "of a frame's tokens only those that are new, or that matter, go on",
    "lanes": "several sequences of one stream, read and written side by side",
    "gate": "a stream that decides when to speak",
    "scheduler": "many streams, in time, by a policy",
    "ring": "frames of a denoiser in flight, each at another step",
    "net": "networks that keep a state in place of a cache",
}
PASSED: dict[str, tuple[str, Callable[..., Any]]] = {
    "headrace.wrap": ("headrace.wrap", wrap),
    "headrace.streams.Server": ("headrace.streams.Server", Server),
    "servers": ("every preset of a scheduler", server),
    "headrace.Ring": ("headrace.Ring", Ring),
    "headrace.streams.Encoder": ("headrace.streams.Encoder", Encoder),
}
"""What `**options` go to: their heading, and what is called."""


def page() -> str:
    """docs/presets.md."""
    found = [presets.get(name) for name in presets.names()]
    lines = [HEAD, "| preset | kind | after |", "|---|---|---|"]
    lines += [f"| [`{p.name}`](#{p.name}) | {p.kind} | {p.source} |" for p in found]
    for kind in KINDS:
        lines += ["", f"## Kind: {kind}", "", f"{KIND[kind].capitalize()}. For example:", ""]
        lines += ["```python", example(kind), "```"]
        for p in found:
            if p.kind == kind:
                lines += section(p)
    lines += ["", "## What presets pass on", ""]
    for name, (heading, called) in PASSED.items():
        lines += [f"### {heading}", "", "```python", f"{name}{signature(called)}", "```", ""]
        lines += [doc(called), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def example(kind: str) -> str:
    """The program of a kind, without its license."""
    text = (ROOT / f"examples/presets/{kind}.py").read_text("utf-8")
    return text.partition("\n")[2].strip("\n")


def section(preset: presets.Preset) -> list[str]:
    """What a preset is, then how it is opened, then the other names."""
    module = importlib.import_module(f"headrace.presets.{preset.name}")
    assert preset.open.__name__ in module.__all__
    names = [preset.name, *(name for name in module.__all__ if name != preset.name)]
    lines = ["", f"### {preset.name}", "", linked(doc(module)), "", "```python"]
    lines += [f"from headrace.presets.{preset.name} import {', '.join(names)}", ""]
    lines += [f"{preset.name}{signature(preset.open)}", "```", "", linked(doc(preset.open))]
    if names[1:]:
        lines.append("")
    given = inspect.signature(preset.open).return_annotation
    for name in names[1:]:
        lines += listed(name, getattr(module, name), made=name == given)
    return lines


def listed(name: str, thing: Any, *, made: bool) -> list[str]:
    """A list item of a function or a class, with the members of a class; made: by the preset."""
    told = "" if made else signature(thing)
    word = "class " if inspect.isclass(thing) else ""
    lines = [f"- `{word}{name}{told}`: {indented(doc(thing), 2)}"]
    for member, of in members(thing):
        told = "" if isinstance(of, property) else signature(of)
        lines.append(f"  - `.{member}{told}`: {indented(doc(of), 4)}")
    return lines


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, and what a call of it does."""
    for name, of in vars(thing).items() if inspect.isclass(thing) else ():
        public = name == "__call__" or name[0] != "_"
        if public and (inspect.isfunction(of) or isinstance(of, property)):
            yield name, of


def doc(thing: Any) -> str:
    """Its docstring; '' for none."""
    return inspect.getdoc(thing) or ""


def indented(text: str, by: int) -> str:
    return re.sub(r"\n(?=.)", "\n" + " " * by, text)


def linked(text: str) -> str:
    """With links to what options are passed on to."""
    for name in PASSED:
        text = text.replace(f"`{name}`", f"[`{name}`](#{name.replace('.', '').lower()})")
    return text


def signature(called: Any) -> str:
    """Names with defaults, and what comes back."""
    found = inspect.signature(called)
    names, marked = [], False
    for p in found.parameters.values():
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and not marked:
            names.append("*")
            marked = True
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        names.append(star + p.name + ("" if p.default is p.empty else f"={value(p.default)}"))
    back = found.return_annotation
    gives = "" if inspect.isclass(called) or back in (found.empty, None, "None") else f" -> {back}"
    return f"({', '.join(names)}){gives}"


def value(of: Any) -> str:
    """A default as one would write it."""
    if isinstance(of, float):
        return f"{of:.4g}"
    if isinstance(of, tuple):
        return "(" + ", ".join(map(value, of)) + ("," if len(of) == 1 else "") + ")"
    return getattr(of, "__name__", None) or repr(of).replace("<factory>", "...")


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Every preset and its module."""
    for name in presets.names():
        yield name, importlib.import_module(f"headrace.presets.{name}")
