# SPDX-License-Identifier: Apache-2.0
"""Registration: bytes first, on the disk for good, then the catalog in one transaction."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from ..errors import bad_value
from . import records
from .catalog import Catalog, Tx
from .segments import Segments

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Again(Exception):  # noqa: N818
    """The catalog moved between looking and writing."""


def commit(
    op: str,
    catalog: Catalog,
    segments: Segments,
    blobs: Mapping[bytes, tuple[records.Entry, Any]],
    wanted: list[tuple[str, bytes]],
) -> bool:
    """Writes what is new of blobs (digest -> entry, bytes) and sets the names wanted. False, with
    nothing done, where someone removed in between what seemed to be there.
    """
    with catalog.read() as tx:
        seen = tx.txn.id()
        fresh, names = _look(op, tx, blobs, wanted)
    segment, size = b"", 0
    offsets: list[int] = []
    rows: dict[bytes, int] = {}
    try:
        if fresh:
            segment, offsets, size = segments.write([blobs[d][1] for d in fresh])
        with catalog.write() as tx:
            absent = fresh
            if tx.txn.id() != seen + 1:  # others committed meanwhile
                absent, names = _look(op, tx, blobs, wanted)
                if not set(absent) <= set(fresh):
                    raise _Again
            first, missing = tx.next_number("row"), set(absent)
            new: list[tuple[records.Entry, bytes]] = []
            for digest, offset in zip(fresh, offsets, strict=True):
                if digest in missing:
                    entry = blobs[digest][0]
                    rows[digest] = first + len(new)
                    new.append((entry, entry.placed(segment, offset)))
            if new:
                records.insert(tx, first, new)
                records.put_segment(tx, segment, size, len(fresh), list(rows.values()))
            if names:
                held = {d: tx.row_of(d) for d in names.values() if d not in rows}
                known = rows | {d: row for d, row in held.items() if row is not None}
                records.name_new(tx, [(n, d, known[d]) for n, d in names.items()])
    except BaseException as error:
        _drop(catalog, segments, segment)
        if isinstance(error, _Again):
            return False
        if isinstance(error, OSError) and error.errno is not None:
            what = "room on the disk" if error.errno in _FULL else "to write"
            raise OSError(
                f"{op}(adapters): expected {what}, got: {error.strerror}; nothing was added"
            ) from None
        raise
    if not rows:
        _drop(catalog, segments, segment)
    return True


def _look(
    op: str,
    tx: Tx,
    blobs: Mapping[bytes, tuple[records.Entry, Any]],
    wanted: list[tuple[str, bytes]],
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """(digests that are not there yet, names that are not there yet -> digest); raises for names of
    something else and for unknown parents.
    """
    names: dict[bytes, bytes] = {}
    for name, digest in sorted(wanted):  # in the order of the tables, as below: fewer cache misses
        key = name.encode()
        held = tx.get("alias", key)
        now = held[:32] if held is not None else names.setdefault(key, digest)
        if now != digest:
            raise bad_value(op, "name", "a new name", name, "promote moves a name")
    for parent in {p for entry, _ in blobs.values() for p in entry.parents}:
        key = bytes.fromhex(parent)
        if key not in blobs and tx.row_of(key) is None:
            raise bad_value(op, "parents", "revisions of this store", parent)
    there = {d for d in sorted(blobs) if tx.row_of(d) is not None}
    return [d for d in blobs if d not in there], names


def _drop(catalog: Catalog, segments: Segments, segment: bytes) -> None:
    """Takes a file of ours away, unless the commit that failed came through after all."""
    if segment:
        try:
            with catalog.read() as tx:
                if tx.get("segment", segment) is None:
                    os.unlink(segments.path(segment))
        except OSError:
            pass  # unknown or gone; collection will find it
