# SPDX-License-Identifier: Apache-2.0
"""HSTU: the events of many users as they happen, through attention without a softmax.

Zhai et al., Actions Speak Louder than Words (ICML 2024), github.com/facebookresearch/
generative-recommenders; its kernels' notes were read. A layer makes four vectors of an event, all
through SiLU; attention weighs values by silu(q k) over the longest length, so it has no sum to
normalise by; what it gives is normalised, multiplied by the fourth, and added to what came in.
Users have histories of any length, so a batch is jagged: one row after the other, and where each
user begins.

Chosen here: a user keeps the first `context` events (who the user is) and the newest `window`, as
sinks and a window; a step takes the new events of any users, any number each, and gives the
encoding of every event; then candidates may be scored, which see the history and themselves and
leave nothing. No relative bias and no time; the weights are random.

Oracle: every user alone, all events at once, dense, under the same rule. Recompute: of the events
that are kept, encoded anew.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import bad_value
from ..models.conformer import normed
from .encoding import BOUND, gap
from .given import counts
from .proof import Check, Preset

__all__ = ["Hstu", "HstuModel", "hstu"]

HEADS, DIM = 2, 16


class HstuModel(nn.Module):
    """Layers over events int64 [T], ids below `items`; random weights from `seed`.

    longest: what attention is divided by.
    """

    mean: Tensor
    inner: Tensor

    def __init__(
        self, items: int = 97, width: int = 32, layers: int = 2, longest: int = 16, *, seed: int = 0
    ) -> None:
        super().__init__()
        made, inner = torch.Generator().manual_seed(seed), HEADS * DIM
        self.longest = longest

        def weight(rows: int, columns: int, loud: float = 1.0) -> Tensor:
            return loud * torch.randn(rows, columns, generator=made) * columns**-0.5

        self.items = nn.Parameter(weight(items, width, width**0.5))
        self.four = nn.ParameterList(weight(4 * inner, width, 2.0) for _ in range(layers))
        self.output = nn.ParameterList(weight(width, inner) for _ in range(layers))
        self.register_buffer("mean", torch.full((1, width), 1 / width), persistent=False)
        self.register_buffer("inner", torch.full((1, inner), 1 / inner), persistent=False)

    def forward(self, events: Tensor, attend: Any, linear: Any = F.linear) -> Tensor:
        """[T, width]; attend(layer, q, k, v), all [T, heads, D], gives the same shape."""
        x = self.items[events]
        for layer, (four, output) in enumerate(zip(self.four, self.output, strict=True)):
            made = F.silu(linear(normed(x, self.mean, linear), four)).chunk(4, -1)
            q, k, v = (y.reshape(len(x), HEADS, DIM) for y in made[:3])
            seen = normed(attend(layer, q, k, v).flatten(1), self.inner, linear)
            x = x + linear(seen * made[3], output)
        return x


class Hstu:
    """`step({user: events})` for events that have happened, `score(user, candidates)` for what
    might; see `hstu`."""

    def __init__(self, model: HstuModel, context: int, window: int) -> None:
        self.model, self.context, self.window = model, context, window
        self.users: dict[str, tuple[int, Tensor, Tensor, Tensor]] = {}
        """By name: events so far, indices of those kept, their keys and their values by layer."""

    @torch.inference_mode()
    def step(self, events: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[n, width] for int64 [n] of each user, one call of the model for all."""
        out, new = self._call(events, targets=False)
        for name, (count, kept, k, v) in new.items():
            alive = (kept < self.context) | (kept >= count - self.window)
            self.users[name] = (count, kept[alive], k[:, alive], v[:, alive])
        return out

    @torch.inference_mode()
    def score(self, user: str, candidates: Tensor) -> Tensor:
        """[n, width] for candidates int64 [n], each as if it came next; nothing of them stays."""
        return self._call({user: candidates}, targets=True)[0][user]

    def forget(self, user: str) -> None:
        """Lets go of all of a user."""
        if self.users.pop(user, None) is None:
            raise bad_value("hstu", "user", "one with events", repr(user))

    def _call(
        self, events: Mapping[str, Tensor], targets: bool
    ) -> tuple[dict[str, Tensor], dict[str, tuple[int, Tensor, Tensor, Tensor]]]:
        layers, names = len(self.model.four), list(events)
        none = torch.zeros(layers, 0, HEADS, DIM)
        fresh = (0, torch.zeros(0, dtype=torch.int64), none, none)
        old = [self.users.get(name, fresh) for name in names]
        lengths = [len(events[name]) for name in names]
        orders = [
            torch.cat([kept, torch.arange(count, count + n)])
            for (count, kept, *_), n in zip(old, lengths, strict=True)
        ]
        made: list[list[tuple[Tensor, Tensor]]] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = zip(old, k.split(lengths), v.split(lengths), strict=True)
            made.append(
                [
                    (torch.cat([a[layer], x]), torch.cat([b[layer], y]))
                    for (_, _, a, b), x, y in parts
                ]
            )
            keys, values = (torch.cat(side) for side in zip(*made[-1], strict=True))
            return ops.hstu_attention(
                q,
                keys,
                values,
                _ends([len(order) for order in orders]),
                _ends(lengths),
                torch.tensor(lengths, dtype=torch.int32) if targets else None,
                torch.cat(orders),
                max_seq_len=self.model.longest,
                max_attn_len=self.window,
                sinks=self.context,
            )

        rows = torch.cat([events[name] for name in names])
        out = self.model(rows, attend, ops.linear).split(lengths)
        new = {}
        for i, name in enumerate(names):
            k, v = (torch.stack([layer[i][side] for layer in made]) for side in (0, 1))
            new[name] = (old[i][0] + lengths[i], orders[i], k, v)
        return dict(zip(names, out, strict=True)), new


def _ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def hstu(model: HstuModel, *, context: int = 4, window: int = 60) -> Hstu:
    """The system: users and their events.

    context: first events that stay. window: events that one sees, itself among them. ValueError
    where context is negative or window below 1.
    """
    counts("hstu", least=0, context=context)
    counts("hstu", window=window)
    return Hstu(model, context, window)


@torch.inference_mode()
def oracle(
    model: HstuModel,
    events: Tensor,
    *,
    context: int = 4,
    window: int = 60,
    candidates: Tensor | None = None,
) -> Tensor:
    """[T, width] fp64 of all events int64 [T] of a user, or of the candidates after them."""
    model, count = copy.deepcopy(model).double(), len(events)
    rows = events if candidates is None else torch.cat([events, candidates])
    number = torch.arange(len(rows))
    at = number.clamp(max=count)  # candidates all stand where the next event would
    age = at[:, None] - at[None]
    seen = (age > 0) & ((age <= window) | (number < context))
    seen |= number[:, None] == number[None]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.silu(torch.einsum("ihd,jhd->hij", q, k) * q.shape[2] ** -0.5)
        return torch.einsum("hij,jhd->ihd", weights * seen, v) / model.longest

    made: Tensor = model(rows, attend)
    return made if candidates is None else made[count:]


def recompute(model: HstuModel, events: Tensor, *, context: int = 4, window: int = 60) -> Tensor:
    """The same, every event with what it sees encoded anew."""
    rows = []
    for at in range(len(events)):
        kept = [i for i in range(at + 1) if i < context or i >= at - window]
        rows.append(oracle(model, events[kept], context=context, window=len(kept))[-1])
    return torch.stack(rows)


def check(model: HstuModel) -> list[Check]:
    """Equality with every user alone, however events come; nothing of a neighbour; bounded."""
    made, checks = torch.Generator().manual_seed(19), []
    histories = {
        str(i): torch.randint(len(model.items), (count,), generator=made)
        for i, count in enumerate((1, 37, 150, 83, 64))
    }
    options: dict[str, Any] = {"context": 3, "window": 20}
    want = {name: oracle(model, events, **options) for name, events in histories.items()}
    together = hstu(model, **options)
    at = dict.fromkeys(histories, 0)
    got: dict[str, list[Tensor]] = {name: [] for name in histories}
    while any(at[name] < len(events) for name, events in histories.items()):
        batch = {}
        for name, events in histories.items():
            count = int(torch.randint(0, 12, (1,), generator=made))
            batch[name] = events[at[name] : at[name] + count]
            at[name] += count
        for name, rows in together.step(batch).items():
            got[name].append(rows)
    worst = max(gap(torch.cat(got[name]), want[name]) for name in histories)
    claim = "jagged steps of 5 users: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, worst, BOUND))
    differ = 0
    for name, events in histories.items():
        alone = torch.cat([*hstu(model, **options).step({name: events}).values()])
        differ += int((alone != torch.cat(got[name])).sum())
    checks.append(Check("a user alone and at once: values that differ", differ, 0))
    held = max(len(kept) for _, kept, *_ in together.users.values())
    checks.append(Check("events kept of a user, at most", held, sum(options.values())))
    chosen, worst = torch.randint(len(model.items), (9,), generator=made), 0.0
    for name, events in histories.items():
        wanted = oracle(model, events, candidates=chosen, **options)
        worst = max(worst, gap(together.score(name, chosen), wanted))
    claim = "9 candidates of each user: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, worst, BOUND))
    again = together.step({"2": chosen})["2"]
    after = oracle(model, torch.cat([histories["2"], chosen]), **options)[-9:]
    claim = "events after candidates: max |value - oracle| over max |oracle|"
    checks.append(Check(claim, gap(again, after), BOUND))
    return checks


PRESET = Preset(
    "hstu",
    "Zhai et al., ICML 2024; github.com/facebookresearch/generative-recommenders",
    hstu,
    check,
    HstuModel,
    oracle,
    recompute,
    kind="net",
)
