# SPDX-License-Identifier: Apache-2.0
"""Every committed plot of recorded figures: its place, a mark of what it shows, what draws it.

One is missing: docs/video.png shows frames, which no record holds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from machines import MAIN, Machine
from speed import measured, plot_name, roofs

from headrace.bench import Row, pictures, roofline
from headrace.cli import plot as stream

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import drawn

Draw = Callable[[Path], None]
STREAMS = ("stream-4m", "stream-bytes-dense")
SCRIPTS = ("adapter-bank", "archive", "clips", "transformers-stream")
"""Of bench/, whose plots lie beside their records."""


def plots(machines: Sequence[Machine]) -> dict[str, tuple[str, Draw]]:
    """By path from the root: the mark, and what writes the file."""
    made: dict[str, tuple[str, Draw]] = {}
    for one in machines:
        for path, shown, draw in _of_machine(one):
            mark = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
            made[path] = mark, _drawn(draw, shown, mark)
    return made


def _drawn(draw: Callable[..., None], shown: Any, mark: str) -> Draw:
    return lambda path: draw(shown, path, mark)


def _of_machine(one: Machine) -> Iterator[tuple[str, Any, Callable[..., None]]]:
    for kind, draw in (("loops", pictures.loops), ("scaling", pictures.scaling)):
        if shown := measured(one.found, kind):
            yield f"docs/{plot_name(kind, one.folder)}", shown, draw
    if rows := roofs(one.found):
        yield f"docs/{plot_name('rooflines', one.folder)}", rows, _rooflines
    for name in STREAMS if one.folder == MAIN else ():
        if f"{name}.json" in one.found:
            yield f"docs/{name}.png", one.found[f"{name}.json"], stream.plot
    for name in SCRIPTS:
        if f"{name}.json" in one.found:
            draw = getattr(drawn, name.replace("-", "_"))
            yield f"bench/results/{one.folder}/{name}.png", one.found[f"{name}.json"], draw


def _rooflines(rows: Sequence[dict[str, Any]], path: Path, mark: str) -> None:
    known = [f.name for f in fields(Row)]
    roofline.plot([Row(**{k: row[k] for k in known if k in row}) for row in rows], path, mark)


def mark_of(path: Path) -> str:
    """Of the figures that a plot was drawn from; empty without one."""
    from PIL import Image

    if not path.exists():
        return ""
    with Image.open(path) as image:
        return str(getattr(image, "text", {}).get("Comment", ""))
