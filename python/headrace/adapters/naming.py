# SPDX-License-Identifier: Apache-2.0
"""What names mean, how they move, and how revisions are found and taken out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import bad_type, bad_value
from . import records
from .catalog import Tx, floating, number, ordered
from .config import text
from .gate import Gate
from .records import NAME, Revision


def digest_of(op: str, tx: Tx, name: object) -> str:
    """The digest that a name, a digest or 8 or more of its first digits mean."""
    if not isinstance(name, str):
        raise bad_type(op, "name", "a string", type(name).__name__)
    held = tx.get("alias", text(op, "name", name).encode())
    if held is not None:
        return held[:32].hex()
    if 8 <= len(name) <= 64 and not set(name) - set("0123456789abcdef"):
        even = bytes.fromhex(name[: len(name) // 2 * 2])
        near = [d for d in (k.hex() for k, _ in tx.scan("digest", even)) if d.startswith(name)]
        if len(near) == 1:
            return near[0]
    raise bad_value(op, "name", "a name or digest of this store", name)


def row_of(op: str, tx: Tx, name: str) -> int:
    """The row of what a name or digest means."""
    row = tx.row_of(bytes.fromhex(digest_of(op, tx, name)))
    if row is None:
        raise bad_value(op, "name", "a revision of this store", name)
    return row


def promote(tx: Tx, name: str, digest: str, gate: Gate | None, why: str) -> None:
    """Points a name at a revision, if that passes the gate."""
    op = "AdapterStore.promote"
    if records.is_digest(text(op, "name", name)):
        raise bad_value(op, "name", "a name that is no digest", name)
    row, held = row_of(op, tx, digest), tx.get("alias", name.encode())
    current: Mapping[str, float] = {}
    back = None
    if held is not None:
        old, back = NAME.unpack(held)
        if old.hex() == digest:
            return
        old_row = row_of(op, tx, old.hex())
        current = records.scores(tx, old_row)
        before, after = tx.record(old_row)["base"], tx.record(row)["base"]
        if before != after:
            raise bad_value(op, "revision", f"one for {before}", f"one for {after}")
    elif gate is not None and gate.better:  # nothing in place to be better than
        current = {gate.metric: math.inf if gate.lower_is_better else -math.inf}
    refusal = gate.refusal(records.scores(tx, row), current) if gate is not None else None
    if refusal:
        raise ValueError(f"{op}(gate): {refusal}; nothing was moved")
    records.point(tx, name.encode(), digest, "promote", back, why)


def rollback(tx: Tx, name: str, gate: Gate | None, why: str) -> str:
    """Points a name at the latest earlier revision that passes the gate."""
    op = "AdapterStore.rollback"
    held = tx.get("alias", text(op, "name", name).encode())
    if held is None:
        raise bad_value(op, "name", "a name of this store", name)
    old, seq = NAME.unpack(held)
    current = records.scores(tx, row_of(op, tx, old.hex()))
    path = records.moves(tx, name.encode())
    at, refusal = path[seq]["back"], None
    while at is not None:
        digest, back = str(path[at]["revision"]), path[at]["back"]
        if gate is not None:
            refusal = gate.refusal(records.scores(tx, row_of(op, tx, digest)), current)
        if refusal is None:
            records.point(tx, name.encode(), digest, "rollback", back, why)
            return digest
        at = back
    if refusal is not None:
        raise ValueError(f"{op}(gate): {refusal}; nothing was moved")
    raise bad_value(op, "name", f"an earlier revision of {name}", "none")


def forget(tx: Tx, name: str) -> None:
    """Takes a name away, with its history."""
    op = "AdapterStore.forget"
    key = text(op, "name", name).encode()
    if tx.get("alias", key) is None:
        raise bad_value(op, "name", "a name of this store", name)
    for at, move in records.moves(tx, key).items():
        row = tx.row_of(bytes.fromhex(move["revision"]))
        if row is not None:
            tx.delete("named", number(row) + key)
        tx.delete("move", number(at))
    tx.delete("alias", key)


def remove(tx: Tx, digest: str) -> None:
    """Takes a revision out, unless a name needs it."""
    op = "AdapterStore.remove"
    row = row_of(op, tx, digest)
    for key, _ in tx.scan("named", number(row)):
        name = key[8:]
        held, path = tx.get("alias", name), records.moves(tx, name)
        at = NAME.unpack(held)[1] if held is not None else None
        while at is not None:
            if path[at]["revision"] == digest:
                raise bad_value(
                    op,
                    "revision",
                    "one that no name may return to",
                    name.decode(),
                    "forget it first",
                )
            at = path[at]["back"]
    records.delete(tx, row, tx.record(row))


def search(
    tx: Tx,
    owner: str | None,
    base: str | None,
    parent: str | None,
    metric: str | None,
    at_least: float | None,
    at_most: float | None,
    limit: int,
) -> list[Revision]:
    """Revisions that meet everything given, from the narrowest table."""
    found: list[Revision] = []
    for row in _rows(tx, owner, base, parent, metric, at_least, at_most):
        if len(found) >= limit:
            break
        record = tx.record(row)
        if (
            (owner is not None and record["owner"] != owner)
            or (base is not None and record["base"] != base)
            or (parent is not None and parent not in record["parents"])
        ):
            continue
        found.append(records.revision(tx, row, record))
    return found


def _rows(
    tx: Tx,
    owner: str | None,
    base: str | None,
    parent: str | None,
    metric: str | None,
    at_least: float | None,
    at_most: float | None,
) -> Iterator[int]:
    if metric is not None:
        prefix = metric.encode() + b"\0"
        narrow = _listed(tx, owner, None, parent) if owner or parent else None
        if narrow is not None:
            scored = [(records.scores(tx, row).get(metric), row) for row in narrow]
            pairs: Any = sorted(((s, r) for s, r in scored if s is not None), reverse=True)
        else:
            most = b"\xff" * 24 if at_most is None else ordered(at_most) + b"\xff" * 9
            pairs = (
                (floating(key[-16:-8]), int.from_bytes(key[-8:], "big"))
                for key, _ in tx.scan("score", prefix, reverse=True, most=most)
            )
        for value, row in pairs:
            if at_least is not None and value < at_least:
                return
            if at_most is None or value <= at_most:
                yield row
        return
    yield from _listed(tx, owner, base, parent)


def _listed(tx: Tx, owner: str | None, base: str | None, parent: str | None) -> Iterator[int]:
    if parent is not None:
        table, prefix = "parent", bytes.fromhex(parent)
    elif owner is not None:
        table, prefix = "owner", owner.encode() + b"\0"
    elif base is not None:
        table, prefix = "base", base.encode() + b"\0"
    else:
        table, prefix = "row", b""
    for key, _ in tx.scan(table, prefix):
        yield int.from_bytes(key[-8:], "big")
