# SPDX-License-Identifier: Apache-2.0
"""Traces of requests: programs, batches over prefixes, retrieval, services with deadlines."""

from __future__ import annotations

from .events import Event
from .trace_maker import Trace


def agents(
    seed: int = 0, *, programs: int = 6, turns: int = 4, spread: float = 2.0,
    prompt: int = 40, result: int = 12, max_new: int = 8, deadline: float | None = None,
    vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Agent programs: turns with the gaps between them in which a tool runs.

    The group of a turn is the tool that its answer calls, each with a gap of its own: "search"
    about 0.5 s, "run" about 2 s, "ask" about 8 s; "end" calls none. A turn comes its gap after the
    one before was done. deadline: of the whole program, from its first turn.
    """
    made = Trace(seed, vocab)
    gaps = {"search": 0.5, "run": 2.0, "ask": 8.0}
    for program in range(programs):
        name, start = f"program {program}", made.random.uniform(0, spread)
        made.add(start, name, "open")
        first, last, gap = None, None, 0.0
        count = made.random.randint(max(1, turns - 1), turns + 1)
        for turn in range(count):
            tool = "end" if turn == count - 1 else made.random.choice(sorted(gaps))
            read = made.random.randint(prompt // 2, prompt) if turn == 0 else result
            last = made.add(
                start if last is None else gap,
                name,
                "say",
                tokens=made.tokens(read),
                max_new=made.random.randint(2, max_new),
                deadline=deadline,
                since=first,
                after=last,
                group=tool,
            )
            first = last if first is None else first
            gap = gaps.get(tool, 0.0) * made.random.uniform(0.8, 1.25)
        made.add(0.0, name, "close", after=last)
    return list(made)


def prefix_heavy(
    seed: int = 0, *, requests: int = 12, system: int = 48, shots: int = 3, shot: int = 16,
    tail: int = 10, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Requests over one system prompt, some of several sets of examples, and their own tail.

    All are there at the start, as in offline batches; one in six repeats another word for word.
    """
    made = Trace(seed, vocab)
    head, sets = made.tokens(system), [made.tokens(shot) for _ in range(shots)]
    prompts: list[tuple[int, ...]] = []
    for request in range(requests):
        prompt = head + made.random.choice(sets) + made.tokens(made.random.randint(1, tail))
        if request % 6 == 5:
            prompt = made.random.choice(prompts)
        prompts.append(prompt)
        name = f"request {request}"
        made.add(0.0, name, "open")
        last = made.add(
            0.0, name, "say", tokens=prompt, max_new=made.random.randint(2, max_new), group="batch"
        )
        made.add(0.0, name, "close", after=last)
    return list(made)


def retrieval(
    seed: int = 0, *, requests: int = 6, pieces: int = 4, piece: int = 24, delay: float = 0.05,
    spread: float = 0.2, updates: float = 0.5, max_new: int = 6, vocab: int = 256,
) -> list[Event]:  # fmt: skip
    """Prompts that retrieval delivers in pieces, `delay` apart; then the answer (Stream2LLM).

    A request appends piece by piece, or, with probability `updates`, each new ranking replaces the
    text from some point on.
    """
    made = Trace(seed, vocab)
    for request in range(requests):
        name, at = f"request {request}", made.random.uniform(0, spread)
        replaces = made.random.random() < updates
        made.add(at, name, "open")
        text: tuple[int, ...] = ()
        for _ in range(pieces):
            more = made.tokens(piece)
            if replaces:
                text = text[: made.random.randint(len(text) // 2, len(text))] + more
                made.add(at, name, "update", tokens=text)
            else:
                made.add(at, name, "feed", tokens=more)
            at += made.random.uniform(0.5, 1.5) * delay
        said, asked = made.random.randint(2, max_new), made.tokens(4)
        last = made.add(at, name, "say", tokens=asked, max_new=said, deadline=1.0)
        made.add(0.0, name, "close", after=last)
    return list(made)


def services(
    seed: int = 0, *, requests: int = 30, rate: float = 20.0, tight: float = 1.0, vocab: int = 256
) -> list[Event]:
    """Requests of three classes with deadlines of their kind (JITServe), a Poisson process.

    "chat" has a deadline for its first token and a pace; "batch" one for the whole; "compound" is a
    chain of three requests under one deadline. Lengths are geometric, by class. tight: scales all
    deadlines.
    """
    made = Trace(seed, vocab)
    at = 0.0
    for request in range(requests):
        at += made.random.expovariate(rate)
        name, group = f"request {request}", made.random.choice(("chat", "batch", "compound"))
        mean = {"chat": 12, "batch": 24, "compound": 6}[group]
        made.add(at, name, "open")
        first = last = None
        for step in range(3 if group == "compound" else 1):
            length = 1 + min(4 * mean, int(made.random.expovariate(1 / mean)))
            last = made.add(
                0.01 if step else at,
                name,
                "say",
                tokens=made.tokens(made.random.randint(8, 48) if not step else 6),
                max_new=length,
                deadline=tight * {"chat": 0.3, "batch": 0.9, "compound": 1.2}[group],
                pace=0.03 * tight if group == "chat" else None,
                since=first,
                after=last,
                group=group,
            )
            first = last if first is None else first
        made.add(0.0, name, "close", after=last)
    return list(made)
