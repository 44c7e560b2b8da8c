# SPDX-License-Identifier: Apache-2.0
"""The bytes that a run streams: files, standard input, or the sources of the installed CPython."""

from __future__ import annotations

import hashlib
import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .fail import Fail, reason

BOUNDARY = b"\0"  # between two files, as in training
BLOCK = 1 << 16  # bytes of one read
UNKNOWN = "not known"


@dataclass
class Text:
    """A stream of bytes that is never held whole.

    name: what it is, in words. files: how many. size: bytes of one pass, None for standard input.
    seen: what is known of its part in the packaged models' training.
    """

    name: str
    files: int
    size: int | None
    seen: str
    blocks: Callable[[], Iterator[bytes]]
    cycles: bool = True
    taken: int = 0

    def __post_init__(self) -> None:
        self._source = self._passes()
        self._rest = b""

    @property
    def live(self) -> bool:
        """Whether bytes arrive as somebody sends them: do not wait for a full chunk."""
        return self.size is None

    @property
    def passes(self) -> int:
        """How many times the text has been begun."""
        return -(-self.taken // (self.size + 1)) if self.size else int(self.taken > 0)

    def read(self, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Up to `count` bytes, uint8 [n]; fewer where a live source has no more now or at the end
        of a text that does not cycle; empty after it. Raises Fail when it cannot be read.
        """
        parts: list[bytes] = []
        missing = count
        while missing:
            if not self._rest:
                if self.live and parts:
                    break
                self._rest = next(self._source, b"")
                if not self._rest:
                    break
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        self.taken += count - missing
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def _passes(self) -> Iterator[bytes]:
        while True:
            empty = True
            for block in self.blocks():
                empty = False
                yield block
            if empty or not self.cycles:
                return
            yield BOUNDARY


def from_files(names: list[str], binary: bool) -> Text:
    """The files in the order given, a zero byte between two. "-" is standard input; it and other
    pipes come alone. Raises Fail for one that cannot be read or holds zero bytes (unless `binary`),
    or when there is no text at all.
    """
    pipes = [name for name in names if name == "-" or _is_pipe(name)]
    if pipes and len(names) > 1:
        raise Fail(f"stream(FILE): expected either files or one pipe, got both; pipe: {pipes[0]}")
    if pipes == ["-"]:
        if sys.stdin is None or sys.stdin.closed:
            raise Fail("stream(-): expected text on standard input, got a closed one")
        stdin: Any = sys.stdin.buffer
        return _from_pipe(stdin.raw, "standard input", binary)
    if pipes:
        try:
            return _from_pipe(open(pipes[0], "rb", buffering=0), pipes[0], binary)
        except OSError as error:
            raise _unreadable(pipes[0], error) from None
    paths = [Path(name) for name in names]
    size = sum(_check(path, binary) for path in paths)
    if not size:
        what = names[0] if len(names) == 1 else "every file"
        raise Fail(f"stream(FILE): expected text, got nothing: {what} is empty")
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return Text(name, len(paths), size + len(paths) - 1, UNKNOWN, lambda: _blocks(paths, binary))


def _from_pipe(raw: io.RawIOBase, name: str, binary: bool) -> Text:
    def blocks() -> Iterator[bytes]:
        while True:
            while not select.select([raw], [], [], 0.1)[0]:
                pass  # Python sees a signal that comes just before a call when the call ends
            if not (block := raw.read(BLOCK)):  # what is there, without waiting for more
                return
            if not binary and b"\0" in block:
                raise _is_binary(name)
            yield block

    return Text(name, 1, None, UNKNOWN, blocks, cycles=False)


def from_library(held_out: bool) -> Text:
    """The sources (and documentation, where installed) of the running CPython, in the order of
    their paths' hashes: a fixed shuffle, so that the text does not drift from folder to folder.

    held_out: only the files that the packaged models were not trained on.
    Raises Fail where there are none.
    """
    from ..models.training import data

    chosen: list[tuple[int, Path]] = []
    for relative, path in data.files().items():
        digest = int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8], "big")
        if not held_out or digest % data.HELD_OUT == 0:
            chosen.append((digest, path))
    paths = [path for _, path in sorted(chosen)]
    size = sum(path.stat().st_size for path in paths)
    if not size:
        raise Fail(
            "stream(FILE): expected the sources of the standard library, found none; name files"
        )
    version = ".".join(map(str, sys.version_info[:3]))
    if held_out:
        name = f"held-out files of CPython {version}"
        seen = "held out: no packaged model was trained on these paths"
    else:
        name = f"sources of CPython {version}"
        seen = (
            f"about {data.HELD_OUT - 1} in {data.HELD_OUT} of these paths were trained on;"
            " --held-out streams the others only"
        )
    return Text(name, len(paths), size + len(paths) - 1, seen, lambda: _blocks(paths, True))


def _check(path: Path, binary: bool) -> int:
    """Size of a readable text file."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise Fail(f"stream(FILE): expected a file, got the folder {path}; name its files")
        with path.open("rb") as file:
            while not binary and (block := file.read(BLOCK)):
                if b"\0" in block:
                    raise _is_binary(str(path))
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _unreadable(path, error) from None


def _is_pipe(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _unreadable(path: Path | str, error: OSError) -> Fail:
    return Fail(f"stream(FILE): cannot read {path}: {reason(error)}")


def _is_binary(name: str) -> Fail:
    return Fail(
        f"stream(FILE): expected text, got zero bytes in {name}; --binary streams it as it is"
    )


def _blocks(paths: list[Path], binary: bool) -> Iterator[bytes]:
    for i, path in enumerate(paths):
        try:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    if not binary and b"\0" in block:
                        raise _is_binary(str(path))
                    yield block
        except OSError as error:
            raise _unreadable(path, error) from None
        if i + 1 < len(paths):
            yield BOUNDARY
