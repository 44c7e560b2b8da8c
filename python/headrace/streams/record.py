# SPDX-License-Identifier: Apache-2.0
"""Runs on disk, and run again.

A file is lines of JSON: what the run was set to, its events, its decisions, its readings, what came
of every event, and last the SHA-256 of all lines before. Numbers are written so that they read back
bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from ..errors import bad_value
from . import policies
from .clock import Recorded, Work
from .engine import Engine, describe
from .events import Event
from .policies import Policy
from .run import Run
from .serve import serve
from .timing import Outcome

FORMAT = "headrace.run.1"
TIMES = ("arrived", "due", "first", "done")


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes a run; the file appears whole or not at all."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in _lines(run))
    write_whole(path, (text + json.dumps({"sha256": _digest(text)}) + "\n").encode())


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """A file with these bytes: all of them, on the disk, or what was there before."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str]) -> Run:
    """A run from a file by `save`. ValueError when it is not whole, or of another format."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        body, _, last = text.rstrip("\n").rpartition("\n")
        body += "\n"
        if json.loads(last) != {"sha256": _digest(body)}:
            raise ValueError("a checksum that does not fit")
        lines = [json.loads(line) for line in body.splitlines()]
        head = lines[0]
        if head.get("format") != FORMAT:
            raise ValueError(f"format {head.get('format')!r}")
        return Run(
            [Event(**line["event"]) for line in lines if "event" in line],
            [_outcome(line["outcome"]) for line in lines if "outcome" in line],
            [line["turn"] for line in lines if "turn" in line],
            head["readings"],
            [(Work(*work), seconds) for *work, seconds in head["steps"]],
            head["settings"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        got = " ".join(str(error).split())
        raise bad_value("load", "path", f"a whole run ({FORMAT})", got) from None


def replay(engine: Engine, run: Run, policy: Policy | None = None) -> Run:
    """Runs it again on the clock readings that it had; the same in every bit, or a ValueError.

    What is said, what was decided, and the digest of the logits of every step are compared. policy:
    where the run's is not one of `headrace.streams.policies`.
    """
    settings = run.settings
    if describe(engine) != settings["engine"]:
        raise bad_value("replay", "engine", settings["engine"], describe(engine))
    if policy is None:
        policy = policies.make(*settings["policy"])
    again = serve(
        engine,
        run.events,
        policy,
        Recorded(run.readings),
        degrade=settings["degrade"],
        budget=settings["budget"],
    )
    for number, (want, got) in enumerate(zip(run.log, again.log, strict=False)):
        if want != got:
            raise bad_value("replay", "run", f"turn {number} to be {want}", got)
    if len(run.log) != len(again.log):
        raise bad_value("replay", "run", f"{len(run.log)} turns", len(again.log))
    for old, new in zip(run.outcomes, again.outcomes, strict=True):
        if _outcome_line(old) != _outcome_line(new):
            raise bad_value("replay", "run", _outcome_line(old), _outcome_line(new))
    return again


def _lines(run: Run) -> Iterator[dict[str, Any]]:
    yield {
        "format": FORMAT,
        "settings": run.settings,
        "readings": run.readings,
        "steps": [[*astuple(work), seconds] for work, seconds in run.steps],
    }
    yield from ({"event": event.plain()} for event in run.events)
    yield from ({"turn": turn} for turn in run.log)
    yield from ({"outcome": _outcome_line(out)} for out in run.outcomes)


def _outcome_line(out: Outcome) -> dict[str, Any]:
    line = asdict(out)
    for name in TIMES:  # JSON has no inf and no nan
        line[name] = line[name] if math.isfinite(line[name]) else str(line[name])
    return line


def _outcome(line: dict[str, Any]) -> Outcome:
    return Outcome(**{**line, **{name: float(line[name]) for name in TIMES}})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
