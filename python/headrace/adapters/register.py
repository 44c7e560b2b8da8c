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
    blobs: Mapping[bytes, Any],
    wanted: list[tuple[str, bytes]],
) -> bool:
    """Writes what is new of blobs (digest -> record, bytes) and sets the names wanted. False, with
    nothing done, where someone removed in between what seemed to be there.
    """
    with catalog.read() as tx:
        _check(op, tx, blobs, wanted)
        fresh = [d for d in blobs if tx.row_of(d) is None]
    segment, size = b"", 0
    offsets: list[int] = []
    rows: list[int] = []
    try:
        if fresh:
            segment, offsets, size = segments.write([blobs[d][1] for d in fresh])
        with catalog.write() as tx:
            _check(op, tx, blobs, wanted)
            if any(tx.row_of(d) is None for d in blobs.keys() - set(fresh)):
                raise _Again
            last = tx.last("row")
            row = 0 if last is None else int.from_bytes(last, "big") + 1
            for digest, offset in zip(fresh, offsets, strict=True):
                if tx.row_of(digest) is None:
                    place = {"segment": segment.hex(), "offset": offset}
                    records.insert(tx, row, {**blobs[digest][0], **place})
                    rows.append(row)
                    row += 1
            if rows:
                records.put_segment(tx, segment, size, len(fresh), rows)
            for name, digest in wanted:
                if tx.get("alias", name.encode()) is None:
                    records.point(tx, name.encode(), digest.hex(), "add", None, "")
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


def _check(op: str, tx: Tx, blobs: Mapping[bytes, Any], wanted: list[tuple[str, bytes]]) -> None:
    taken: dict[str, bytes] = {}
    for name, digest in wanted:
        held = tx.get("alias", name.encode())
        now = held[:32] if held is not None else taken.setdefault(name, digest)
        if now != digest:
            raise bad_value(op, "name", "a new name", name, "promote moves a name")
    for record, _ in blobs.values():
        for parent in record["parents"]:
            key = bytes.fromhex(parent)
            if key not in blobs and tx.row_of(key) is None:
                raise bad_value(op, "parents", "revisions of this store", parent)


def _drop(catalog: Catalog, segments: Segments, segment: bytes) -> None:
    """Takes a file of ours away, unless the commit that failed came through after all."""
    if segment:
        try:
            with catalog.read() as tx:
                if tx.get("segment", segment) is None:
                    os.unlink(segments.path(segment))
        except OSError:
            pass  # unknown or gone; collection will find it
