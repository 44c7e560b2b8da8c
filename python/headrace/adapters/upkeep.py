# SPDX-License-Identifier: Apache-2.0
"""Verification of a whole store, and collection of what no revision uses."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import records
from .blob import read_layout
from .catalog import Catalog, Tx, dumps, number
from .records import NAME
from .segments import Segments, places


@dataclass(frozen=True)
class Verified:
    """What a verification found. problems: one line each, none in a sound store. unused: files
    that a killed writer left; they harm nothing, and gc takes them away.
    """

    revisions: int
    names: int
    bytes: int
    problems: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """What a collection did, or with dry_run would do. bytes: given back."""

    removed: int  # files
    rewritten: int  # files
    bytes: int


def verify(catalog: Catalog, segments: Segments, quick: bool) -> Verified:
    """Compares every table with every other, and the blobs with their digests."""
    problems: list[str] = []
    with catalog.read() as tx:
        size = sum(_blobs(tx, segments, quick, problems))
        problems += _tables(tx)
        revisions, names = tx.count("row"), tx.count("alias")
        unused = tuple(str(p) for p in _unused(tx, segments))
    return Verified(revisions, names, size, tuple(problems), unused)


def _blobs(tx: Tx, segments: Segments, quick: bool, problems: list[str]) -> Iterator[int]:
    """Checks each row; gives the sizes of blobs. Rows of one file lie together, mostly."""
    segment, mapped, listed = b"", memoryview(b""), set[int]()
    for key, value in tx.scan("row"):
        row = int.from_bytes(key, "big")
        try:
            record = json.loads(value)
            digest = record["digest"]
            if bytes.fromhex(record["segment"]) != segment:
                segment, mapped = bytes.fromhex(record["segment"]), memoryview(b"")
                total, _, rows = records.segment_rows(tx, segment)
                listed = set(rows)
                mapped = segments.map(segment, 0, total)
        except FileNotFoundError:
            problems.append(f"{digest}: its file is gone")
            continue
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"row {row}: {error}")
            continue
        size, offset = record["size"], record["offset"]
        if not mapped:
            problems.append(f"{digest}: its file cannot be read")
            continue
        if row not in listed:
            problems.append(f"{digest}: its file does not list it")
        try:
            blob = mapped[offset : offset + size]
            layout = read_layout("verify", blob, digest)
            if not quick and layout.digest(blob).hex() != digest:
                problems.append(f"{digest}: its tensors are damaged")
        except ValueError as error:
            problems.append(f"{digest}: {error}")
        for table, entry in records.indexed(record, row):
            if tx.get(table, entry) is None:
                problems.append(f"{digest}: missing in the table {table}")
        yield size


def _tables(tx: Tx) -> Iterator[str]:
    """Checks what points at rows."""
    if tx.count("digest") != tx.count("row"):
        yield f"{tx.count('digest')} digests for {tx.count('row')} revisions"
    if tx.count("latest") != tx.count("score"):
        yield f"{tx.count('latest')} scores, {tx.count('score')} of them to be found"
    for table in ("base", "owner", "parent", "score"):
        for key, _ in tx.scan(table):
            if tx.get("row", key[-8:]) is None:
                yield f"the table {table} points at no revision"
    for name, value in tx.scan("alias"):
        digest, at = NAME.unpack(value)
        row, move = tx.row_of(digest), json.loads(tx.get("move", number(at)) or b"{}")
        if row is None:
            yield f"the name {name.decode()} points at no revision"
        elif tx.get("named", number(row) + name) is None:
            yield f"the name {name.decode()} is not listed with its revision"
        if (move.get("name"), move.get("revision")) != (name.decode(), digest.hex()):
            yield f"the name {name.decode()} has no move that set it"


def _unused(tx: Tx, segments: Segments) -> Iterator[Path]:
    for segment, path in segments.listed():
        if segment is None or tx.get("segment", segment) is None:
            yield path


def collect(catalog: Catalog, segments: Segments, waste: float, dry_run: bool) -> Collected:
    """Takes away files without a revision; writes anew those that are mostly waste, those with the
    least to write first, so that a full disk empties. The caller holds the exclusive lock, so that
    no writer's file waits for its commit.
    """
    removed = rewritten = freed = 0
    found = sorted(_partly_used(catalog, waste), key=lambda f: f[3])
    if not dry_run:
        with catalog.write() as tx:
            for segment, _, _, used in found:
                if used == 0:
                    tx.delete("segment", segment)
    with catalog.read() as tx:
        unused = list(_unused(tx, segments))
    for path in unused:
        with contextlib.suppress(FileNotFoundError):
            freed += path.stat().st_size
            if not dry_run:
                os.unlink(path)
            removed += 1
    for segment, total, live, used in found:
        if used:
            if not dry_run:
                try:
                    _rewrite(catalog, segments, segment, live)
                except OSError as error:
                    raise OSError(
                        f"AdapterStore.gc(path): expected room for {used} bytes, got: "
                        f"{error.strerror or error}; {freed} bytes were given back before"
                    ) from None
                segments.path(segment).unlink(missing_ok=True)
            rewritten += 1
            freed += total - used
        elif dry_run:  # else among the unused above
            removed += 1
            freed += total
    return Collected(removed, rewritten, freed)


def _partly_used(
    catalog: Catalog, waste: float
) -> list[tuple[bytes, int, list[dict[str, Any]], int]]:
    found = []
    with catalog.read() as tx:
        for segment, _ in tx.scan("segment"):
            total, count, rows = records.segment_rows(tx, segment)
            if len(rows) == count:
                continue
            live = [{**tx.record(row), "row": row} for row in rows]
            used = places([r["size"] for r in live])[1]
            if used == 0 or total - used >= max(waste * total, 1):
                found.append((segment, total, live, used))
    return found


def _rewrite(
    catalog: Catalog, segments: Segments, segment: bytes, live: list[dict[str, Any]]
) -> None:
    blobs = []
    for r in live:
        blob = segments.map(segment, r["offset"], r["size"])
        if read_layout("AdapterStore.gc", blob, r["digest"]).digest(blob).hex() != r["digest"]:
            raise ValueError(
                f"AdapterStore.gc(revision): expected the digest {r['digest']}, got another; "
                "run verify"
            )
        blobs.append(blob)
    new, offsets, total = segments.write(blobs)
    with catalog.write() as tx:
        rows = []
        for r, offset in zip(live, offsets, strict=True):
            row = r.pop("row")
            if tx.get("row", number(row)) is not None:  # else removed meanwhile
                record = {**r, "segment": new.hex(), "offset": offset}
                tx.put("row", number(row), dumps(record))
                rows.append(row)
        records.put_segment(tx, new, total, len(live), rows)
        tx.delete("segment", segment)
