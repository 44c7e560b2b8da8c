# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from headrace import ops
from headrace.models import Conformer, ConformerConfig

KINDS = ({}, {"stages": 1, "taps": 0, "halves": False}, {"stages": 0, "taps": 16, "gated": True})


def attend(layer, q, k, v):
    """Every frame sees every frame."""
    weights = torch.einsum("ihd,jhd->hij", q, k).mul(q.shape[2] ** -0.5).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v)


def convolve(layer, h, kernel):
    padded = F.pad(h.T[None], (kernel.shape[1] - 1, 0))
    return F.conv1d(padded, kernel[:, None], groups=len(kernel))[0].T.contiguous()


def strided(stage, h):
    return F.pad(h, (0, 0, 1, 0)).unfold(0, 3, 2).flatten(1)


def run(model, frames, **options):
    with torch.inference_mode():
        return model(frames, attend, convolve, strided, **options)


def frames(count=32, seed=0):
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def test_it_is_what_its_seed_says():
    a, b, c = Conformer(seed=3), Conformer(seed=3), Conformer(seed=4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.input, c.input)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_weight_matters(kind):
    model, x = Conformer(ConformerConfig(**kind)), frames()
    want = run(model, x)
    assert want.shape == (len(x) // 2**model.config.stages, 32)
    for name, weight in model.named_parameters():
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        assert (run(model, x) - want).abs().max() > 1e-3, name
        with torch.no_grad():
            weight.copy_(before)
    assert torch.equal(run(model, x), want)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_casts_leave_the_angles(kind):
    model = Conformer(ConformerConfig(**kind))
    single, angles = run(model, frames()), model.inv_freq.clone()
    double = model.double()
    assert double.inv_freq.dtype == torch.float64
    assert torch.equal(double.inv_freq, angles)
    want = run(double, frames().double())
    torch.testing.assert_close(single.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_sum_goes_through_linear(kind):
    model, many, x = Conformer(ConformerConfig(**kind)), frames(64), frames(64)[:16]
    made = run(model, x, linear=ops.linear)
    torch.testing.assert_close(made, run(model, x), rtol=1e-4, atol=1e-4)

    def alone(layer, q, k, v):
        return v

    with torch.inference_mode():
        few, all_ = (model(y, alone, convolve, strided, linear=ops.linear) for y in (x, many))
    assert torch.equal(few, all_[: len(few)])
