# SPDX-License-Identifier: Apache-2.0
"""Loops over streams of two lanes, and the checks that presets of several lanes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..streams import Engine, Gate, Lane, Lanes, PerLane, Signal, lanes_oracle
from .proof import BOUND, Check

Step = Mapping[str, Tensor]


def alternate(
    stream: Lanes, source: Tensor, gate: Gate, *, reads: str, writes: str, begin: int, count: int
) -> list[Step]:
    """Reads a token of int64 [T], or writes one when the gate says so, until `count` are written.

    Writing is greedy and begins after the token `begin`. Once the input has ended it only writes.
    Gives the steps that were fed.
    """
    steps: list[Step] = []
    token, read, written = begin, 0, 0
    while written < count:
        if read == len(source) or gate(Signal(read=read, written=written)):
            step = {writes: torch.tensor([token])}
            logits = stream.feed(step, logits=True)[writes].logits
            assert logits is not None
            token, written = int(logits[-1].argmax()), written + 1
        else:
            step = {reads: source[read : read + 1]}
            stream.feed(step)
            read += 1
        steps.append(step)
    return steps


def together(
    stream: Lanes,
    parts: Sequence[Tensor],
    *,
    reads: str,
    writes: str,
    begin: int,
    each: int,
    after: int = 0,
) -> list[Step]:
    """Writes `each` tokens while each part is read, in the same steps, then `after` more.

    Writing is greedy and begins after the token `begin`. A part comes in with the first of its
    tokens, so that what is written sees every part but the one that comes with it.
    """
    steps: list[Step] = []
    token = begin
    turns: list[Tensor | None] = []
    for part in parts:
        turns += [part, *[None] * (each - 1)]
    for coming in [*turns, *[None] * after]:
        step: dict[str, Tensor] = {writes: torch.tensor([token])}
        if coming is not None:
            step[reads] = coming
        logits = stream.feed(step, logits=True)[writes].logits
        assert logits is not None
        token = int(logits[-1].argmax())
        steps.append(step)
    return steps


def masked(engine: Engine, steps: Sequence[Step]) -> dict[str, Tensor]:
    """Logits [T, V] of every lane after these steps, by one masked forward over all lanes."""
    assert isinstance(engine.positions, PerLane)
    none = torch.zeros(0, dtype=torch.int64)
    fed = {lane.name: [none] for lane in engine.lanes}
    ticks = {lane.name: [none] for lane in engine.lanes}
    for tick, step in enumerate(steps):
        for name, tokens in step.items():
            fed[name].append(tokens)
            ticks[name].append(torch.full((len(tokens),), tick))
    said, when = ({name: torch.cat(x) for name, x in parts.items()} for parts in (fed, ticks))
    return lanes_oracle(engine.model, said, when, engine.lanes, engine.memory, engine.positions)


def ends(steps: Sequence[Step], name: str) -> list[int]:
    """After each step that feeds a lane, the number of its last token."""
    return (torch.tensor([len(s[name]) for s in steps if name in s]).cumsum(0) - 1).tolist()


def lanes_equality(
    engine: Engine, steps: Sequence[Step], *, greedy: str | None = None
) -> list[Check]:
    """That these steps, fed anew, give what one masked forward over all lanes gives.

    greedy: a lane whose every token must be the likeliest after the one before, by that forward.
    """
    memory, positions = engine.memory, engine.positions
    assert isinstance(positions, PerLane)
    stream, before = engine.open_lanes(), engine.pool.written_bytes
    fed, ticks, got = _feed(stream, engine.lanes, steps)
    written = engine.pool.written_bytes - before
    want = lanes_oracle(engine.model, fed, ticks, engine.lanes, memory, positions)
    gap = max(float((got[n] - want[n]).abs().max()) for n in got if len(got[n]))
    tokens, layers = sum(map(len, fed.values())), engine.pool.k.shape[0]
    own = tokens * layers * engine.pool.row_bytes
    checks = [
        Check("all lanes: max |logit - masked forward|", gap, BOUND),
        Check("bytes of keys and values copied", abs(written - own), 0),
    ]
    if greedy is not None:
        wrong = int((want[greedy].argmax(-1)[:-1] != fed[greedy][1:]).sum())
        checks.append(Check("tokens written that the masked forward does not choose", wrong, 0))
    if engine.exact:
        differ = _beside_others(engine, steps, got)
        checks.append(Check("beside three other streams: logits that differ", differ, 0))
    stream.close()
    checks.append(Check("pages held after all are closed", engine.pool.live_pages, 0))
    return checks


def _beside_others(engine: Engine, steps: Sequence[Step], alone: Mapping[str, Tensor]) -> int:
    """How many logits of a stream change when three others are in its steps."""
    stream, others = engine.open_lanes(), [engine.open_lanes() for _ in range(3)]
    rows: dict[str, list[Tensor]] = {name: [] for name in alone}
    for i, step in enumerate(steps):
        batch = {stream[name]: x for name, x in step.items()}
        for j, other in enumerate(others):
            batch |= {other[name]: x.roll(i + j) for name, x in step.items()}
        reports = engine.step(batch, logits=True)
        for name in step:
            made = reports[stream[name]].logits
            assert made is not None
            rows[name].append(made)
    for opened in (stream, *others):
        opened.close()
    return sum(int((torch.cat(x) != alone[name]).sum()) for name, x in rows.items() if x)


def _feed(stream: Lanes, lanes: Sequence[Lane], steps: Sequence[Step]) -> tuple[dict, dict, dict]:
    """Tokens, ticks and logits of every lane."""
    none = torch.zeros(0, dtype=torch.int64)
    fed: dict[str, list[Tensor]] = {lane.name: [none] for lane in lanes}
    ticks: dict[str, list[Tensor]] = {lane.name: [none] for lane in lanes}
    got: dict[str, list[Tensor]] = {lane.name: [] for lane in lanes}
    for tick, step in enumerate(steps):
        for name, report in stream.feed(step, logits=True).items():
            assert report.logits is not None
            fed[name].append(step[name])
            ticks[name].append(torch.full((len(step[name]),), tick))
            got[name].append(report.logits)
    empty = torch.zeros(0, stream.engine.vocab)
    return (
        {n: torch.cat(x) for n, x in fed.items()},
        {n: torch.cat(x) for n, x in ticks.items()},
        {n: torch.cat(x) if x else empty for n, x in got.items()},
    )
