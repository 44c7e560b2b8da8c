# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from headrace import ops
from headrace.models import Denoiser, DenoiserConfig


def attend(layer, q, k, v):
    """Every token sees every token."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).transpose(0, 1) for x in (k, v))
    o = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None])
    return o[0].transpose(0, 1)


def alone(layer, q, k, v):
    """Every token sees itself."""
    return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def inputs(tokens=16, seed=0):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 4, generator=made)
    return x, torch.rand(tokens, generator=made), torch.arange(tokens) % 16, x.repeat(1, 2)


def test_it_is_what_its_seed_says():
    a, b, c = Denoiser(seed=3), Denoiser(seed=3), Denoiser(seed=4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.input, c.input)


def test_every_input_matters():
    model, (x, level, place, condition) = Denoiser(), inputs()
    with torch.inference_mode():
        want = model(x, level, place, condition, attend)
        for changed in (
            (x.flip(0), level, place, condition),
            (x, level * 0.9, place, condition),
            (x, level, place.flip(0), condition),
            (x, level, place, condition.flip(0)),
        ):
            assert (model(*changed, attend) - want).abs().max() > 1e-2
        assert (model(x, level, place, condition, alone) - want).abs().max() > 1e-2


def test_every_weight_matters():
    model, given = Denoiser(), inputs()
    model(*given, attend).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_a_level_between_two_knots_is_between_their_embeddings():
    model = Denoiser(DenoiserConfig(knots=3, condition=0))
    x, _, place, _ = inputs()
    seen = []

    def linear(x, weight, bias=None):
        if weight is model.level:
            seen.append(x)
        return F.linear(x, weight)

    levels = torch.tensor([0, 0.25, 0.5, 0.9, 1.0] + [0.0] * 11)
    model(x, levels, place, None, alone, linear=linear)
    want = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.2, 0.8], [0, 0, 1]])
    torch.testing.assert_close(seen[0][:5], want)


def test_bits_of_a_row_do_not_depend_on_the_others():
    model, given = Denoiser(), inputs(48)
    with torch.inference_mode():
        whole = model(*given, alone, linear=ops.linear)
        for first, last in ((0, 1), (5, 16), (16, 47)):
            part = model(*(t[first:last] for t in given), alone, linear=ops.linear)
            assert torch.equal(part, whole[first:last])


def test_angles_stay_as_they_are():
    model = Denoiser().to(torch.bfloat16)
    assert model.inv_freq.dtype == torch.float64
    assert model.inv_freq.equal(Denoiser().inv_freq)
    assert model.input.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("channels", 0, ValueError),
        ("layers", 1.5, TypeError),
        ("tokens", True, TypeError),
        ("knots", 1, ValueError),
        ("condition", -1, ValueError),
        ("kv_heads", 3, ValueError),
        ("head_dim", 15, ValueError),
    ],
)
def test_what_a_denoiser_cannot_be(field, value, error):
    with pytest.raises(error, match=r"^DenoiserConfig\((\w+)\): expected "):
        DenoiserConfig(**{field: value})
