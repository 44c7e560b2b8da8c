# SPDX-License-Identifier: Apache-2.0
"""The folder of an archive: its lock, and what its segment files hold when it is opened."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import bad_value, message
from .segment import Fault, Record, Segment, sync_folder


@dataclass
class Found:
    """Segments by number; the record of each slot, over all files; free slots, the lowest last;
    the number of the next segment.
    """

    segments: dict[int, Segment] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    next: int = 0


def opened(folder: Path, meta: dict[str, Any], direct: bool) -> Found:
    """What is there. meta["slots"] becomes what the first segment says. ValueError, and every file
    closed, when a segment was made with other facts.
    """
    found = Found()
    try:
        for path in sorted(folder.glob("*.index")):
            _open(found, path, meta, direct)
    except BaseException:
        for segment in found.segments.values():
            segment.close()
        raise
    named = {int(path.stem) for path in folder.glob("*.index")}
    for path in folder.glob("*.blocks"):  # of a segment that never got its name
        if int(path.stem) not in named:
            path.unlink()
    for path in folder.glob("*.part"):
        path.unlink()
    found.free.sort(reverse=True)
    found.next = 1 + max(named, default=-1)
    return found


def _open(found: Found, path: Path, meta: dict[str, Any], direct: bool) -> None:
    number = int(path.stem)
    try:
        segment = Segment.open(path, direct=direct)
    except (ValueError, OSError) as error:
        found.faults.append(Fault(path.name, -1, str(error)))
        return
    if not found.segments:  # the first says how long they are
        meta["slots"] = segment.meta["slots"]
    found.segments[number] = segment
    if segment.meta != meta:
        wrong = [k for k, v in meta.items() if segment.meta.get(k) != v]
        got = ", ".join(f"{k} {segment.meta.get(k)}" for k in wrong)
        want = ", ".join(f"{k} {meta[k]}" for k in wrong)
        raise bad_value("archive", str(path.parent), want, got, "use another folder")
    taken = set()
    for slot, what in segment.scan():
        taken.add(slot)
        if isinstance(what, Fault):
            found.faults.append(what)
        else:
            found.records[number * segment.slots + slot] = what
    found.free += [number * segment.slots + i for i in range(segment.slots) if i not in taken]


def locked(folder: Path) -> int:
    """A lock on a folder, made if it is not there. ValueError when another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise bad_value(
            "archive", str(folder), "a folder of its own", "one that is in use"
        ) from None
    sync_folder(folder.parent)
    return lock


def told(error: OSError, folder: Path, expected: str, hint: str = "") -> OSError:
    """The error in one line that names the folder."""
    text = message("archive", str(folder), expected, error.strerror or str(error), hint)
    return OSError(error.errno, text)
