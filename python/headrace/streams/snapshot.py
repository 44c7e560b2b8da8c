# SPDX-License-Identifier: Apache-2.0
"""Streams on disk: saved here, resumed there, with the same bits.

A file is a plain safetensors file. Its tensors are the pages, the logits that predict the next
token and the tokens, where a stream remembers them; its metadata says what the pages mean, and has
the SHA-256 of the whole file, reckoned with zeros in its own place. Marks are not part of it;
a stream with an archive cannot be saved, for what it archived lies elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from .. import interrupts
from ..errors import bad_type, bad_value, unsupported
from ..memory import Region
from . import gate as gates
from . import own
from .engine import Engine
from .gate import Gate
from .lane import Lane, Lanes
from .own import ONE
from .packing import pack, unpack
from .positions import Positions
from .record import write_whole
from .stream import Stream

FORMAT = "headrace.stream.4"
BLANK = "0" * 64


@dataclass(frozen=True)
class Resumed:
    """What a file held: the stream, its gate if it came with one, and the time on its clock."""

    stream: Stream | Lanes
    gate: Gate | None
    now: float


def snapshot(
    stream: Stream | Lanes,
    path: str | os.PathLike[str],
    *,
    gate: Gate | None = None,
    now: float = 0.0,
) -> int:
    """Writes a stream, or one of several lanes, to a file; returns its bytes.

    gate: one of `headrace.streams`, with all that it remembers. now: seconds, what the clock of the
    stream reads. The stream goes on as if nothing had been. The file appears whole or not at all;
    until then what was there before stays.
    """
    parts = _parts(stream)
    engine = stream.engine
    tensors: dict[str, Tensor] = {}
    held = {name: pack(tensors, name, part) for name, part in parts.items()}
    meta: dict[str, Any] = {
        "engine": _meaning(engine),
        "model": digest(engine.model),
        "streams": held,
        "opened": own.said(stream),
        "gate": None if gate is None else _gate_line(gate),
        "now": float(now),
    }
    if not math.isfinite(meta["now"]):
        raise bad_value("snapshot", "now", "seconds", now)
    text = json.dumps(meta, separators=(",", ":"))
    data = to_bytes(tensors, {"format": FORMAT, "stream": text, "sha256": BLANK})
    sum_ = hashlib.sha256(data).hexdigest()
    write_whole(path, data.replace(BLANK.encode(), sum_.encode(), 1))
    return len(data)


def resume(
    engine: Engine,
    path: str | os.PathLike[str],
    *,
    memory: Region | None = None,
    positions: Positions | None = None,
    lanes: Sequence[Lane] | None = None,
) -> Resumed:
    """A stream from a file by `snapshot`, in pages of this engine.

    The engine must hold the same weights, and have the same memory, positions, lanes, pages and
    exactness; a stream with an adapter needs a bank that knows that very revision. memory,
    positions, lanes: its own, if it was opened with any. ValueError, one line, and nothing taken,
    when something does not fit or the file is not whole; OSError when it cannot be read.
    """
    meta, tensors = _read(path)
    for what, want in meta["engine"].items():
        got = _meaning(engine)[what]
        if got != want:
            raise bad_value("resume", "engine", f"{what} {want}", got)
    if meta["model"] != digest(engine.model):
        got = digest(engine.model)[:12]
        raise bad_value("resume", "engine", f"the weights {meta['model'][:12]}", got)
    engine._check_open("resume")
    held: dict[str, dict[str, Any]] = meta["streams"]
    opened = own.Opened.of(engine, ONE in held, memory, positions, lanes)
    opened.check(meta["opened"])
    adapters = {name: _adapter(engine, line["adapter"]) for name, line in held.items()}
    gate = None if meta["gate"] is None else _gate(*meta["gate"])
    pool = engine.pool
    pages = sum(len(line["slots"]) for line in held.values())
    if pages > pool.free_pages:
        got = f"{pool.free_pages} of {pool.pages}"
        raise bad_value("resume", "pool_pages", f"{pages} free pages", got)
    made: dict[str, Stream] = {}
    with interrupts.deferred():
        for name, line in held.items():
            lease, last, history = unpack(pool, tensors, name, line, opened.plans[name])
            made[name] = Stream(engine, lease, last, adapter=adapters[name], history=history)
            engine._adopt(made[name])
    if ONE in made:
        return Resumed(made[ONE], gate, meta["now"])
    return Resumed(opened.joined(engine, made), gate, meta["now"])


def digest(model: Any) -> str:
    """SHA-256 of a model's configuration and of every weight."""
    hashed = hashlib.sha256(repr(model.config).encode())
    named: Mapping[str, Tensor] = getattr(model, "state_dict", dict)()
    for name, tensor in [*sorted(named.items()), ("inv_freq", model.inv_freq)]:
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        hashed.update(memoryview(plain.view(torch.uint8).numpy()))
    return hashed.hexdigest()


def _parts(stream: Any) -> dict[str, Stream]:
    if isinstance(stream, Lanes):
        parts = {name: stream[name] for name in stream}
    elif isinstance(stream, Stream):
        if stream.engine.lanes or stream.reads:
            expected, hint = "all lanes of a stream", "pass what open_lanes() gave"
            raise bad_value("snapshot", "stream", expected, "one of them", hint)
        parts = {ONE: stream}
    else:
        raise bad_type("snapshot", "stream", "a stream", type(stream).__name__)
    for name, part in parts.items():
        part._check_open("snapshot")
        if isinstance(stream, Lanes) and part.reads is not stream._live[name]:
            hint = "call watch() first"
            raise unsupported("snapshot", "stream", "lanes that see others as they go on",
                              f"{name}, which looks at a moment", hint)  # fmt: skip
    if stream.engine.archive is not None:
        memory = stream.engine.memory
        raise unsupported("snapshot", "stream", "memory without an Archive", repr(memory))
    return parts


def _meaning(engine: Engine) -> dict[str, Any]:
    """What gives pages their meaning, beside the weights."""
    return {
        "memory": repr(engine.memory),
        "positions": repr(engine.positions),
        "lanes": repr(engine.lanes),
        "vocab": engine.vocab,
        "shape": [*engine.pool.k.shape[:1], *engine.pool.k.shape[2:]],
        "dtype": str(engine.pool.k.dtype).removeprefix("torch."),
        "exact": engine.exact,
    }


def _adapter(engine: Engine, revision: str | None) -> Any:
    try:
        return engine._adapter("resume", revision)
    except ValueError as error:
        expected = f"a bank that knows revision {str(revision)[:12]}"
        raise bad_value("resume", "adapter", expected, str(error).partition("got ")[2]) from None


def _gate_line(gate: Gate) -> list[Any]:
    if not is_dataclass(gate) or getattr(gates, type(gate).__name__, None) is not type(gate):
        raise bad_type("snapshot", "gate", "a gate of headrace.streams", type(gate).__name__)
    return [type(gate).__name__, asdict(gate)]


def _gate(name: str, fields: Mapping[str, Any]) -> Gate:
    made: Gate = getattr(gates, name)(**fields)
    return made


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        got = f"{os.fspath(path)}: {error.strerror}"
        raise type(error)(f"resume(path): expected a file of a stream, got {got}") from None
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        if header.get("format") != FORMAT:
            raise ValueError(f"format {header.get('format')!r}")
        sum_ = str(header["sha256"])
        blank = data[: 8 + length].replace(sum_.encode(), BLANK.encode(), 1)
        if hashlib.sha256(blank + data[8 + length :]).hexdigest() != sum_:
            raise ValueError("a checksum that does not fit")
        return json.loads(header["stream"]), from_bytes(data)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        got = " ".join(str(error).split()) or "an empty file"
        raise bad_value("resume", "path", f"a whole stream ({FORMAT})", got) from None
