# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from headrace.recipes import visionzip
from tests.recipes import plain


def definition(x, metric, attention, dominant, contextual, first):
    """One image, token by token."""
    n = len(x)
    order = sorted(range(first, n), key=lambda i: (-float(attention[i]), i))
    stay = sorted([*range(first), *order[: max(0, min(n, dominant + first) - first)]])
    rest = [i for i in range(n) if i not in stay]
    step = max(1, len(rest) // contextual) if contextual else 1
    targets = rest[::step][:contextual]
    unit = plain.unit(metric)
    came = {t: [] for t in targets}
    for i in rest:
        if targets and i not in targets:
            came[max(targets, key=lambda t, i=i: (float((unit[i] @ unit[t]).float()), -t))].append(
                i
            )
    tokens = [x[i].double() for i in stay]
    for t, members in came.items():
        mean = x[members].double().mean(0) if members else 0.0
        tokens.append(x[t].double() + mean)
    return stay + targets, torch.stack(tokens)


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("n", "dominant", "contextual"), [
    (197, 54, 10), (67, 12, 5), (31, 0, 4), (31, 5, 0), (23, 20, 10), (9, 54, 10), (2, 0, 1),
])  # fmt: skip
def test_definition(kind, class_token, n, dominant, contextual):
    x, metric = plain.frames(n, 2, n, dim=24), plain.frames(n + 1, 2, n, kind)
    attention = torch.rand(2, n, generator=torch.Generator().manual_seed(n))
    if kind == "ties":
        attention = torch.ones(2, n)
    tokens, at = visionzip.compress(x, metric, attention, dominant=dominant, contextual=contextual,
                                    class_token=class_token)  # fmt: skip
    for b in range(2):
        places, want = definition(x[b], metric[b], attention[b], dominant, contextual, class_token)
        assert at[b].tolist() == places
        plain.near(tokens[b], want)
    assert tokens.shape[1] <= dominant + contextual + class_token


@pytest.mark.parametrize("class_token", [True, False])
def test_attention_that_tokens_get(class_token):
    q, k = torch.randn(2, 3, 40, 32), torch.randn(2, 3, 40, 32)
    p = (q.double() @ k.double().mT / 32**0.5).softmax(-1)
    want = p[:, :, 0].sum(1) if class_token else p.mean(2).sum(1)
    plain.near(visionzip.received(q, k, class_token=class_token), want)


def test_defaults_are_those_of_the_paper():
    tokens, _ = visionzip.compress(
        torch.randn(1, 577, 16), torch.randn(1, 577, 16), torch.rand(1, 577)
    )
    assert tokens.shape[1] == 1 + 54 + 10


def test_errors():
    x = torch.zeros(1, 9, 16)
    for name in ("dominant", "contextual"):
        with pytest.raises(ValueError, match=rf"visionzip\({name}\): expected 0 or more, got -1"):
            visionzip.compress(x, x, x[..., 0], **{name: -1})
