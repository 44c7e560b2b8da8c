# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.models import Decoder, DecoderConfig, load, names, save
from headrace.models.training.attention import dense


def tiny(**changes):
    fields = dict(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**{**fields, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def by_row(x, weight, bias=None):
    """A linear whose row bits cannot depend on the number of rows."""
    return torch.stack([(weight * row).sum(-1) for row in x])


def own_value(layer, q, k, v):
    """Attention in which a token sees itself alone, scaled so that q and k matter too."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return v * (q * k).sum(-1, keepdim=True)


@pytest.mark.parametrize("rows", [1, 2, 7, 31])
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(rows):
    model = tiny()
    tokens = torch.randint(0, 256, (64,))
    whole = model(tokens, own_value, by_row)
    for start in range(0, 64 - rows, rows):
        part = model(tokens[start : start + rows], own_value, by_row)
        assert torch.equal(part, whole[start : start + rows])


def test_fused_path_agrees_with_the_exact_one():
    model = tiny()
    tokens = torch.randint(0, 256, (16,))
    attend = dense(model, 16)
    torch.testing.assert_close(model(tokens, attend), model(tokens, attend, by_row))


def test_attend_gets_unrotated_heads_and_every_layer_in_order():
    model = tiny()
    seen = []

    def attend(layer, q, k, v):
        seen.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        if layer == 0:  # equal tokens give equal rows wherever they stand
            assert torch.equal(q[0], q[2])
            assert torch.equal(k[0], k[2])
        return q

    out = model(torch.tensor([5, 9, 5]), attend, by_row)
    assert seen == [(i, (3, 4, 8), (3, 2, 8), (3, 2, 8)) for i in range(2)]
    assert out.shape == (3, 256)
    assert out.dtype == torch.float32


def test_no_rows():
    assert tiny()(torch.zeros(0, dtype=torch.int64), own_value).shape == (0, 256)


def test_frequencies_survive_casts_and_stay_out_of_files():
    model = tiny(rope_theta=500.0)
    want = 500.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    assert torch.equal(model.inv_freq, want)
    assert torch.equal(model.bfloat16().inv_freq, want)
    assert torch.equal(model.float().inv_freq, want)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_learned_sinks_are_there_only_when_asked_for():
    assert tiny().sink_logits(0) is None
    model = tiny(sink_logits=True)
    assert torch.equal(model.sink_logits(1), model.learned_sinks[1])
    assert model.sink_logits(1).shape == (4,)


@pytest.mark.parametrize("sink_logits", [False, True])
def test_saved_and_loaded(tmp_path, sink_logits):
    model = tiny(sink_logits=sink_logits, window=20, sinks=3, rope_theta=123.5)
    path = tmp_path / "model.safetensors"
    save(model, path)
    again = load(path)
    assert again.config == model.config
    assert not again.training
    for (name, got), (_, want) in zip(
        again.named_parameters(), model.named_parameters(), strict=True
    ):
        assert got.dtype == torch.float32, name
        assert torch.equal(got, want.bfloat16().float()), name
    assert all(t.dtype == torch.bfloat16 for t in load_file(path).values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    save(again, path)  # over an existing file
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_failed_save_leaves_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(TypeError):
        save(tiny(), path, metadata={"note": 3})
    assert not list(tmp_path.iterdir())


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="bytes-huge") as error:
        load("bytes-huge")
    assert all(name in one_line(error) for name in names())


def test_damaged_files(tmp_path):
    path = tmp_path / "model.safetensors"
    save(tiny(), path)
    whole = path.read_bytes()
    for content in (b"", b"no weights here", whole[: len(whole) // 2], whole[:-1], whole[:6]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a whole safetensors file") as error:
            load(path)
        assert str(path) in one_line(error)


def broken(path, change):
    model = tiny()
    tensors = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    fields = dataclasses.asdict(model.config)
    metadata = {"format": "headrace.decoder.1"}
    change(tensors, fields, metadata)
    metadata.setdefault("config", json.dumps(fields))
    save_file(tensors, path, metadata=metadata)


CHANGES = {
    "got 17": lambda t, f, m: t.pop("blocks.1.up"),
    "'blocks.1.up' is missing": lambda t, f, m: t.update(other=t.pop("blocks.1.up")),
    r"'norm' of shape \[32\], got \[31\]": lambda t, f, m: t.update(norm=t["norm"][:31].clone()),
    "finite floating-point values in tensor 'norm'": lambda t, f, m: t["norm"].fill_(torch.nan),
    "values in tensor 'norm'": lambda t, f, m: t.update(norm=t["norm"].int()),
    "got 'other'": lambda t, f, m: m.update(format="other"),
    "got None": lambda t, f, m: m.clear(),
    "expected the fields": lambda t, f, m: f.pop("heads"),
    "expected the fields head_dim, heads": lambda t, f, m: m.update(config="[]"),
    "configuration in the metadata is bad": lambda t, f, m: m.update(config="{"),
    "multiple of kv_heads": lambda t, f, m: f.update(kv_heads=3),
    "expected an int": lambda t, f, m: f.update(layers="2"),
    "tensors for 1000000 layers": lambda t, f, m: f.update(layers=1000000),
}


@pytest.mark.parametrize("message", CHANGES)
def test_files_that_are_no_decoder(tmp_path, message):
    path = tmp_path / "model.safetensors"
    broken(path, CHANGES[message])
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        (dict(layers=0), ValueError),
        (dict(layers=True), TypeError),
        (dict(width=32.0), TypeError),
        (dict(heads=3), ValueError),
        (dict(head_dim=7), ValueError),
        (dict(window=0), ValueError),
        (dict(sinks=-1), ValueError),
        (dict(sink_logits=1), TypeError),
        (dict(rope_theta="1e4"), TypeError),
        (dict(rope_theta=float("nan")), ValueError),
        (dict(vocab=1 << 40), ValueError),
    ],
)
def test_bad_configurations(changes, kind):
    with pytest.raises(kind, match=next(iter(changes))):
        tiny(**changes)
