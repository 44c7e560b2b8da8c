# SPDX-License-Identifier: Apache-2.0
"""The names that other people's code may rely on."""

import inspect

import pytest

import headrace

NAMES = (
    "AdapterBank AdapterStore Sink Window Keep Fold Archive InCache Absolute PerLane Relative "
    "Engine Stream Lane Ring Filter Gate Clock wrap ops presets"
)
OPS = (
    "attention paged_attention merge_states lora linear similarity attention_mass segment_reduce "
    "block_score select compact assign"
)
TAKES = {
    "ops.attention": "q k v window sinks sink_logits block_mask block_size causal scale softcap "
    "return_lse",
    "ops.merge_states": "o_a lse_a o_b lse_b",
    "ops.lora": "x a b slots scale y ranks",
    "ops.linear": "x weight bias",
    "wrap": "model memory positions adapters",
    "Engine.open": "",
    "Stream.feed": "tokens",
    "Stream.say": "",
    "Stream.fork": "",
    "Stream.mark": "",
    "Stream.rollback": "mark",
    "Stream.close": "",
}


@pytest.mark.parametrize("name", NAMES.split())
def test_a_name_is_there_and_is_told_of(name):
    assert name in headrace.__all__
    assert inspect.getdoc(getattr(headrace, name))


@pytest.mark.parametrize("name", OPS.split())
def test_an_op_is_there(name):
    assert callable(getattr(headrace.ops, name))


@pytest.mark.parametrize("name", TAKES)
def test_arguments_have_these_names_in_this_order(name):
    found = headrace
    for part in name.split("."):
        found = getattr(found, part)
    takes = [p for p in inspect.signature(found).parameters if p != "self"]
    wanted = TAKES[name].split()
    assert [p for p in takes if p in wanted] == wanted


def test_every_public_name_is_there():
    assert all(hasattr(headrace, name) for name in headrace.__all__)


@pytest.mark.parametrize("name", ["streaming_llm", "sir_llm", "streaming_vlm", "rekv"])
def test_a_preset_is_a_call_of_its_name(name):
    assert callable(getattr(headrace.presets, name))


def test_the_cache_of_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from headrace.integrations.transformers import StreamingCache

    assert inspect.getdoc(StreamingCache)
