# SPDX-License-Identifier: Apache-2.0
"""What exists, in LMDB: one writer at a time, readers that never wait, commits that are whole.

LMDB and not SQLite because a lookup by name takes 1.4 us against 5 us through Python's modules.
Revisions are rows with growing numbers, and so are moves, so that a batch of them lands on few
pages; what has to be found by digest, name or owner lands anywhere, and is kept small. It points at
rows:

    alias       name                           -> digest, number of the move that set it
    move        number                         -> JSON: name, revision, why, when, the move before,
                                                  and that to which a rollback goes
    digest      digest                         -> row
    row         row                            -> JSON: the revision's record
    named       row name                       -> (names that point or pointed at a row)
    owner base  text 0 row                     -> (search)
    parent      digest row                     -> (search)
    score       metric 0 ordered value, row    -> (search, by value)
    latest      row metric                     -> value
    evaluation  row number                     -> JSON
    segment     segment                        -> size of the file, its rows
    bases       name                           -> JSON
    meta        "format"; "norms" 0 digest     -> the format; JSON: norms of modules, once known
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import bad_value

try:
    import lmdb
except ImportError:  # a package put in place without its dependencies runs all but the store
    lmdb = None  # type: ignore[assignment]

FORMAT = b"headrace.adapters.2"
TABLES = (
    "meta",
    "alias",
    "move",
    "digest",
    "row",
    "named",
    "owner",
    "base",
    "parent",
    "score",
    "latest",
    "evaluation",
    "segment",
    "bases",
)
_open: dict[tuple[int, str], list[Any]] = {}
_guard = threading.Lock()
_U64 = struct.Struct(">Q")
_F64 = struct.Struct(">d")


def number(n: int) -> bytes:
    """A key that sorts as the number does."""
    return _U64.pack(n)


def ordered(value: float) -> bytes:
    """A key that sorts as the finite float does."""
    bits = int.from_bytes(_F64.pack(value + 0.0), "big")
    return _U64.pack(bits ^ (0xFFFFFFFFFFFFFFFF if bits >> 63 else 1 << 63))


def floating(key: bytes) -> float:
    """The float of `ordered`."""
    bits = int.from_bytes(key, "big")
    bits ^= (1 << 63) if bits >> 63 else 0xFFFFFFFFFFFFFFFF
    value: float = _F64.unpack(_U64.pack(bits))[0]
    return value


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dumps(record: Any) -> bytes:
    """Compact JSON."""
    return _encode(record).encode()


class Catalog:
    """The tables, under `path`. Handles of one path share one environment, as LMDB demands."""

    def __init__(self, path: Path, map_size: int, create: bool) -> None:
        self._key = (os.getpid(), os.path.realpath(path))
        with _guard:
            held = _open.get(self._key)
            if held is None:
                held = [_environment(path, map_size, create), 0]
                _open[self._key] = held
            held[1] += 1
        self.env: lmdb.Environment
        self.env, self.tables = held[0]
        self.alias = self.tables["alias"]

    def close(self) -> None:
        """Gives the environment back; the last handle closes it."""
        with _guard:
            held = _open.get(self._key)
            if held is not None:
                held[1] -= 1
                if held[1] == 0:
                    del _open[self._key]
                    if self._key[0] == os.getpid():
                        self.env.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[Tx]:
        """A view of one moment."""
        with _told("read", self._key[1]), self.env.begin() as txn:
            yield Tx(txn, self.tables)

    @contextlib.contextmanager
    def write(self) -> Iterator[Tx]:
        """A change: all of it and on the disk when the block ends, or, after an error, nothing."""
        with _told("write", self._key[1]), self.env.begin(write=True) as txn:
            yield Tx(txn, self.tables)


def _environment(path: Path, map_size: int, create: bool) -> Any:
    if lmdb is None:
        raise ImportError(
            "AdapterStore(path): expected the package lmdb, found none; pip install lmdb"
        )
    with _told("open", str(path)):
        env = lmdb.open(
            str(path), map_size=map_size, max_dbs=len(TABLES), create=create, max_readers=1024
        )
        try:
            env.reader_check()  # slots of processes that were killed
            tables = {}
            with env.begin(write=True) as txn:  # handles from a read do not last
                for name in TABLES:
                    tables[name] = env.open_db(name.encode(), txn=txn, create=create)
                if create:
                    txn.put(b"format", FORMAT, db=tables["meta"], overwrite=False)
                found = txn.get(b"format", db=tables["meta"])
            if found != FORMAT:
                raise bad_value("AdapterStore", "path", f"format {FORMAT.decode()}", found)
        except BaseException:
            env.close()
            raise
    return env, tables


@contextlib.contextmanager
def _told(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except lmdb.MapFullError:
        raise OSError(
            "AdapterStore(map_size): expected room in the catalog, got a full one; open the store "
            "with a larger map_size; nothing was changed"
        ) from None
    except lmdb.Error as error:
        why = " ".join(str(error).split())
        if what == "write" and _no_room(path):  # LMDB calls a write cut short an I/O error
            why = os.strerror(errno.ENOSPC)
        raise OSError(
            f"AdapterStore(path): expected to {what} the catalog, got: {why}; nothing was changed"
        ) from None


def _no_room(path: str) -> bool:
    try:
        return shutil.disk_usage(path).free < 1 << 20
    except OSError:
        return False


class Tx:
    """A transaction and the tables."""

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self.txn, self.tables = txn, tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """A value, or None."""
        value: bytes | None = self.txn.get(key, db=self.tables[table])
        return value

    def put(self, table: str, key: bytes, value: bytes = b"", **options: bool) -> None:
        """Sets a value."""
        self.txn.put(key, value, db=self.tables[table], **options)

    def put_all(self, table: str, items: list[tuple[bytes, bytes]], append: bool = False) -> None:
        """Sets many values; sorts them first, which saves a walk from the root for most. append:
        all keys are greater than those there.
        """
        items.sort()
        self.txn.cursor(db=self.tables[table]).putmulti(items, append=append)

    def delete(self, table: str, key: bytes) -> None:
        """Takes a value out, where there is one."""
        self.txn.delete(key, db=self.tables[table])

    def count(self, table: str) -> int:
        """How many values."""
        n: int = self.txn.stat(self.tables[table])["entries"]
        return n

    def next_number(self, table: str) -> int:
        """One more than the greatest key."""
        cursor = self.txn.cursor(db=self.tables[table])
        return int.from_bytes(cursor.key(), "big") + 1 if cursor.last() else 0

    def scan(
        self, table: str, prefix: bytes = b"", reverse: bool = False, most: bytes = b"\xff" * 24
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values that begin with `prefix`, in order; reverse: from prefix + most down."""
        cursor = self.txn.cursor(db=self.tables[table])
        if not reverse:
            found = cursor.set_range(prefix) if prefix else cursor.first()
            step = cursor.next
        else:
            after = prefix + most
            found = cursor.set_range(after) if prefix else False
            found = cursor.prev() if found else cursor.last()
            step = cursor.prev
        while found:
            key, value = cursor.item()
            if not key.startswith(prefix):
                return
            yield key, value
            found = step()

    def row_of(self, digest: bytes) -> int | None:
        """The row of a revision."""
        key = self.get("digest", digest)
        return None if key is None else int.from_bytes(key, "big")

    def record(self, row: int) -> dict[str, Any]:
        """The record of a row."""
        value = self.get("row", number(row))
        if value is None:
            raise KeyError(row)
        record: dict[str, Any] = json.loads(value)
        return record
