# SPDX-License-Identifier: Apache-2.0
"""Rows of the catalog: what is given to a store, what it tells, and how a row goes in and out."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import bad_type, bad_value
from .catalog import Tx, dumps, floating, number, ordered
from .config import AdapterConfig, text

NAME = struct.Struct(">32sQ")  # an alias: digest, number of the move that set it
_FILE = struct.Struct(">QQ")  # bytes, blobs written
_quoted = json.encoder.encode_basestring_ascii


@dataclass(frozen=True)
class NewAdapter:
    """What `AdapterStore.add_many` takes.

    tensors: `MODULE.a` [r, K], `MODULE.b` [N, r], and `MODULE.bias`, `MODULE.magnitude` [N] where
    the configuration has them. name: a new name for it. parents: revisions it came from. data,
    trainer: what it was trained on and by, as JSON. peft: its adapter_config.json, if it had one.
    """

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    name: str | None = None
    owner: str | None = None
    parents: tuple[str, ...] = ()
    data: Any = None
    trainer: Any = None
    peft: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Revision:
    """What a store knows of a revision. size in bytes; created in seconds since 1970."""

    digest: str
    base: str
    owner: str | None
    parents: tuple[str, ...]
    data: Any
    trainer: Any
    created: float
    size: int
    rank: int  # the largest
    modules: int
    names: tuple[str, ...]  # that point at it
    scores: Mapping[str, float]  # the latest value per metric


class Entry(NamedTuple):
    """A new revision, before it has a place: its record as JSON, and what finds it."""

    text: bytes
    digest: bytes
    base: str
    owner: str | None
    parents: tuple[str, ...]

    def placed(self, segment: bytes, offset: int) -> bytes:
        """The record with the file and the offset of its blob."""
        return b'%s,"segment":"%s","offset":%d}' % (self.text[:-1], segment.hex().encode(), offset)


def describe(op: str, new: NewAdapter, digest: bytes, blob: np.ndarray) -> Entry:
    """The entry of a new revision; raises for what cannot be kept."""
    if new.owner is not None:
        text(op, "owner", new.owner)
    if new.name is not None:
        text(op, "name", new.name)
        if is_digest(new.name):
            raise bad_value(op, "name", "a name that is no digest", new.name)
    for parent in new.parents:
        if not is_digest(parent):
            raise bad_value(op, "parents", "digests of 64 hex digits", repr(parent))
    parents = tuple(dict.fromkeys(new.parents))
    about = []
    peft = None if new.peft is None else dict(new.peft)
    for arg, value in (("data", new.data), ("trainer", new.trainer), ("peft", peft)):
        try:
            about.append("null" if value is None else dumps(value).decode())
        except (TypeError, ValueError) as error:
            raise bad_value(op, arg, "what JSON can hold", error) from None
    owner = "null" if new.owner is None else _quoted(new.owner)
    record = (  # an encoder for the whole takes four times as long
        f'{{"digest":"{digest.hex()}","base":{_quoted(new.config.base)},"owner":{owner},'
        f'"parents":[{",".join(map(_quoted, parents))}],"data":{about[0]},"trainer":{about[1]},'
        f'"created":{time.time()!r},"size":{len(blob)},"rank":{new.config.rank},'
        f'"modules":{len(new.config.modules)}'
        + (f',"peft":{about[2]}}}' if peft is not None else "}")
    )
    return Entry(record.encode(), digest, new.config.base, new.owner, parents)


def is_digest(value: object) -> bool:
    """Whether it is spelled as a digest."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def insert(tx: Tx, first: int, new: list[tuple[Entry, bytes]]) -> None:
    """Puts revisions in, with their records, as rows from `first` on, and all that finds them."""
    into: dict[str, list[tuple[bytes, bytes]]] = {"row": [], "digest": []}
    for row, (entry, record) in enumerate(new, first):
        at = number(row)
        into["row"].append((at, record))
        into["digest"].append((entry.digest, at))
        for table, prefix in _found_by(entry.base, entry.owner, entry.parents):
            into.setdefault(table, []).append((prefix + at, b""))
    for table, items in into.items():
        tx.put_all(table, items, append=table == "row")


def delete(tx: Tx, row: int, record: Mapping[str, Any]) -> None:
    """Takes a revision out, with everything that finds it."""
    at = number(row)
    segment = bytes.fromhex(record["segment"])
    size, count, rows = segment_rows(tx, segment)
    put_segment(tx, segment, size, count, [r for r in rows if r != row])
    for metric, value in scores(tx, row).items():
        tx.delete("score", score_key(metric, value) + at)
        tx.delete("latest", at + metric.encode())
    for table in ("evaluation", "named"):
        for key, _ in list(tx.scan(table, at)):
            tx.delete(table, key)
    for table, prefix in _finding(record):
        tx.delete(table, prefix + at)
    digest = bytes.fromhex(record["digest"])
    tx.delete("meta", norms_key(digest))
    tx.delete("digest", digest)
    tx.delete("row", at)


def norms_key(digest: bytes) -> bytes:
    """Where the norms of a revision's modules are, in "meta"; see `merge`."""
    return b"norms\0" + digest


def _found_by(base: str, owner: str | None, parents: Iterable[str]) -> list[tuple[str, bytes]]:
    keys = [("base", base.encode() + b"\0")]
    if owner is not None:
        keys.append(("owner", owner.encode() + b"\0"))
    return keys + [("parent", bytes.fromhex(p)) for p in parents]


def _finding(record: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    return _found_by(record["base"], record["owner"], record["parents"])


def indexed(record: Mapping[str, Any], row: int) -> list[tuple[str, bytes]]:
    """(table, key) of every entry that has to be there for a row."""
    at = number(row)
    found = [("digest", bytes.fromhex(record["digest"]))]
    return found + [(table, key + at) for table, key in _finding(record)]


def put_segment(tx: Tx, segment: bytes, size: int, count: int, rows: list[int]) -> None:
    """Notes a file of `count` blobs, and the rows that they belong to."""
    tx.put("segment", segment, _FILE.pack(size, count) + b"".join(map(number, rows)))


def segment_rows(tx: Tx, segment: bytes) -> tuple[int, int, list[int]]:
    """(bytes of the file, blobs written to it, rows in it that are still there)."""
    value = tx.get("segment", segment) or _FILE.pack(0, 0)
    return (*_FILE.unpack_from(value), np.frombuffer(value[_FILE.size :], ">u8").tolist())


def score_key(metric: str, value: float) -> bytes:
    """Sorts by metric, then by value."""
    return metric.encode() + b"\0" + ordered(value)


def scores(tx: Tx, row: int) -> dict[str, float]:
    """Latest value per metric."""
    return {key[8:].decode(): floating(value) for key, value in tx.scan("latest", number(row))}


def evaluate(tx: Tx, row: int, metric: str, value: float, extra: Mapping[str, Any]) -> None:
    """Records a measurement; it becomes the latest of its metric."""
    at = number(row)
    last = next(tx.scan("evaluation", at, reverse=True), None)
    serial = 0 if last is None else int.from_bytes(last[0][8:], "big") + 1
    entry = {"metric": metric, "value": value, "time": time.time(), **extra}
    tx.put("evaluation", at + number(serial), dumps(entry))
    before = scores(tx, row).get(metric)
    if before is not None:
        tx.delete("score", score_key(metric, before) + at)
    tx.put("latest", at + metric.encode(), ordered(value))
    tx.put("score", score_key(metric, value) + at)


def check_score(op: str, metric: str, value: float) -> None:
    """Raises for what is no measurement."""
    text(op, "metric", metric, 64)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_type(op, "value", "a number", type(value).__name__)
    if not math.isfinite(value):
        raise bad_value(op, "value", "a finite number", value)


def names_of(tx: Tx, row: int, digest: bytes) -> tuple[str, ...]:
    """Names that point at a row now."""
    found = [key[8:] for key, _ in tx.scan("named", number(row))]
    return tuple(n.decode() for n in found if (tx.get("alias", n) or b"")[:32] == digest)


def moves(tx: Tx, name: bytes) -> dict[int, dict[str, Any]]:
    """Everything that a name did, first to last, by number."""
    held, found = tx.get("alias", name), []
    at = None if held is None else NAME.unpack(held)[1]
    while at is not None:
        move = json.loads(tx.get("move", number(at)) or b"{}")
        found.append((at, move))
        at = move["before"]
    return dict(reversed(found))


def point(tx: Tx, name: bytes, revision: str, action: str, back: int | None, why: str) -> None:
    """Moves a name to a revision. `back`: number of the move that a rollback returns to."""
    digest = bytes.fromhex(revision)
    row = tx.row_of(digest)
    if row is None:
        raise KeyError(revision)
    held = tx.get("alias", name)
    before = None if held is None else NAME.unpack(held)[1]
    _point(tx, [(name, digest, row)], action, back, before, why)


def name_new(tx: Tx, names: list[tuple[bytes, bytes, int]]) -> None:
    """Points new names (name, digest, row) at their revisions."""
    _point(tx, names, "add", None, None, "")


def _point(
    tx: Tx,
    names: list[tuple[bytes, bytes, int]],
    action: str,
    back: int | None,
    before: int | None,
    why: str,
) -> None:
    first = tx.next_number("move")
    rest = {"action": action, "time": time.time(), "back": back, "before": before}
    tail = b"," + dumps({**rest, "why": why} if why else rest)[1:]
    into: dict[str, list[tuple[bytes, bytes]]] = {"move": [], "alias": [], "named": []}
    for at, (name, digest, row) in enumerate(names, first):
        move = f'{{"name":{_quoted(name.decode())},"revision":"{digest.hex()}"'.encode() + tail
        into["move"].append((number(at), move))
        into["alias"].append((name, NAME.pack(digest, at)))
        into["named"].append((number(row) + name, b""))
    for table, items in into.items():
        tx.put_all(table, items, append=table == "move")


def revision(tx: Tx, row: int, record: Mapping[str, Any] | None = None) -> Revision:
    """What is known of a row."""
    r = tx.record(row) if record is None else record
    return Revision(
        **{k: r[k] for k in Revision.__dataclass_fields__ if k in r and k != "parents"},
        parents=tuple(r["parents"]),
        names=names_of(tx, row, bytes.fromhex(r["digest"])),
        scores=scores(tx, row),
    )
