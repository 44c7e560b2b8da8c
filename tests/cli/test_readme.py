# SPDX-License-Identifier: Apache-2.0
"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

from headrace.cli import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def _pages():
    for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md")):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        generated = "written by `python tools/docs.py`" in page.read_text(encoding="utf-8").lower()
        for i, block in enumerate([] if generated else blocks):
            yield pytest.param(block, id=f"{page.stem}-{i}")


@pytest.mark.parametrize("block", list(_pages()))
def test_the_docs_run_as_they_stand(block):
    exec(block, {})


def test_blocks_are_found():
    assert len(BLOCKS) == 4


def test_five_lines_stream(capsys):
    block = BLOCKS[0]
    code = block.split("\n\n")[1]
    assert len(code.splitlines()) == 5
    names: dict = {}
    exec(block, names)
    out = capsys.readouterr().out
    alive, evicted, resident = map(int, out.split())
    assert (alive, alive + evicted) == (255, 6000)
    assert resident == names["engine"].resident_bytes
    assert torch.isfinite(names["report"].nll).all()


def test_lanes_are_written_side_by_side():
    names: dict = {}
    exec(BLOCKS[1], names)
    heard, said = names["talk"]["heard"], names["talk"]["said"]
    assert (heard.position, said.position) == (160, 20)
    assert torch.isfinite(said.feed(b"x").nll).all()


def test_a_preset_is_opened_and_run(capsys):
    names: dict = {}
    exec(BLOCKS[2], names)
    assert capsys.readouterr().out.startswith("b")
    archived = names["engine"].archive.tiers
    assert 0 < archived.moved_bytes <= 4 * archived.layout.block_bytes
    assert names["video"].position == 40 * 32
    assert torch.isfinite(names["logits"]).all()


def test_attention_on_own_tensors():
    names: dict = {}
    exec(BLOCKS[3], names)
    q, k, v = names["q"], names["k"], names["v"]
    t = torch.arange(64)[:, None] + 5000 - 64
    j = torch.arange(5000)[None]
    seen = (j <= t) & ((j < 4) | (t - j < 512))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    torch.testing.assert_close(names["o"], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name):
    assert f"`headrace {name}" in README
