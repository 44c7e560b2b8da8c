# SPDX-License-Identifier: Apache-2.0
"""SirLLM: the first tokens, those that were hardest to predict, and as many recent ones as fit.

Yao et al., arXiv 2405.12528; read in github.com/Zoeyyao27/SirLLM: 4 first tokens, 1000 by score,
512 recent, the defaults here. Before a turn of n tokens, and only if it would not fit in the 1516,
the cache keeps the first ones and the 1000 - n with the highest -log p of all that it holds, and
fills up with the newest to 1516 - n; then it multiplies the scores by a factor (1; 0.7 and 0.9 for
two of its tasks). Positions are places in the cache. The first token of a turn gets the largest
score of the turn. There a token's score is read off the logits that come after it; here, as the
paper has it, off those that predict it.

Oracle: the rule over lists of numbers, turn by turn, and the dense forward in which query t sees
what it keeps, at the differences of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..memory import Keep, Rest, Sink
from ..streams import Engine, InCache, Piece, Report, Stream, oracle, wrap
from ..streams.engine import Model
from .given import counts
from .proof import Check, Preset, random_tokens

__all__ = ["sir_llm", "turn"]


def sir_llm(
    model: Model, *, first: int = 4, scored: int = 1000, recent: int = 512, **options: Any
) -> Engine:
    """An engine with SirLLM's memory; `turn` feeds a stream of it.

    first: tokens at the beginning that stay. scored: those that stay by their score. recent: what
    the cache has room for beside them. Options as in `headrace.wrap`, whose errors it raises.
    ValueError or TypeError where one is no number of tokens.
    """
    counts("sir_llm", least=0, recent=recent)
    memory = Sink(first) + Keep("surprisal", scored, room=True) >> Rest(first + scored + recent)
    return wrap(model, memory=memory, positions=InCache(), **options)


def turn(stream: Stream, tokens: Tensor, *, decay: float = 1.0, logits: bool = False) -> Report:
    """Reads a turn of a dialogue, int64 [T], question and answer; older scores decay after it."""
    before = stream.tokens
    report = stream.feed(tokens, room=len(tokens), logits=logits)
    held = stream.held
    scores = held.surprisal.copy()
    scores[held.number < before] *= decay
    if len(tokens) > 1:
        scores[held.number == before] = float(report.nll[1:].max())
    stream.rescore(scores)
    return report


def check(model: Model, *, turns: int = 14, decay: float = 0.9) -> list[Check]:
    """Survivors at every turn, scores, and logits, at a small cache."""
    first, scored, recent = 4, 24, 8
    lengths = [5 + 7 * i % 17 for i in range(turns)]
    told = random_tokens(model, sum(lengths)).split(lengths)
    sizes = {"first": first, "scored": scored, "recent": recent}
    alive: list[tuple[int, float]] = []  # numbers and scores
    wrong = saved = 0
    pieces, logits, nll = [], [], []
    with sir_llm(model, page_size=16, **sizes) as engine:
        stream = engine.open()
        for tokens in told:
            before = stream.tokens
            alive = survivors(alive, len(tokens), **sizes)
            keep = [number for number, _ in alive]
            saved += sum(number < before - recent - len(tokens) for number in keep[first:])
            report = turn(stream, tokens, decay=decay, logits=True)
            own = report.nll.double().tolist()
            own[0] = max(own[1:])
            alive = [(number, score * decay) for number, score in alive]
            alive += list(enumerate(own, before))
            wrong += stream.held.number.tolist() != [number for number, _ in alive]
            pieces.append(Piece(tokens, keep=keep))
            logits.append(report.logits)
            nll.append(report.nll)
    want = oracle(model, pieces, Keep(), InCache())
    got = torch.cat([x for x in logits if x is not None])
    said = torch.cat(list(told))
    likely = want.log_softmax(-1)[:-1].gather(-1, said[1:, None])[:, 0]
    bound = 1e-4
    return [
        Check("turns whose survivors differ from the rule's", wrong, 0),
        Check("max |logit - oracle|", float((got - want).abs().max()), bound),
        Check(
            "max |score + log p of the oracle|",
            float((torch.cat(nll)[1:] + likely).abs().max()),
            bound,
        ),
        Check("turns at which no old token was kept for its score", int(saved == 0), 0),
    ]


def survivors(
    alive: list[tuple[int, float]], coming: int, *, first: int, scored: int, recent: int
) -> list[tuple[int, float]]:
    """Of (number, score) in order, those that the published rule keeps before `coming` tokens."""
    size = first + scored + recent
    if len(alive) + coming <= size:
        return alive
    order = sorted(range(len(alive)), key=lambda i: alive[i][1], reverse=True)
    saved = set(order[: max(0, scored - coming)]) | set(range(first))
    for i in reversed(range(len(alive))):
        if len(saved) >= size - coming:
            break
        saved.add(i)
    return [alive[i] for i in sorted(saved)]


PRESET = Preset("sir_llm", "Yao et al., arXiv 2405.12528", sir_llm, check)
