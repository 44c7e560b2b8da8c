# SPDX-License-Identifier: Apache-2.0
"""The generator of a new op: what it writes is whole, and a mistake changes nothing.
That it builds and passes its own tests is seen of the wheel."""

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import OP, ROOT, generate

IGNORED = shutil.ignore_patterns("__pycache__", "*.safetensors", "build", ".git", ".venv*")


def tool(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def files(tree):
    return {
        p.relative_to(tree): p.read_bytes()
        for p in tree.rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources with one op more."""
    folder = tmp_path_factory.mktemp("new_op")
    for name in ("kernels", "csrc", "cmake", "python", "tests", "bench", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    done = generate(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_python_files_compile(tree):
    assert compileall.compile_dir(tree, quiet=1)


def test_formatted_as_it_stands_or_after_make_format(tree):
    ruff = tool("ruff")
    if not ruff:
        pytest.skip("ruff is not installed")
    for command in (["check", "--fix-only"], ["format"], ["check", "kernels", "python", "bench"]):
        done = subprocess.run(
            [ruff, *command, "--quiet", "--no-cache"], cwd=tree, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_taken_name_changes_nothing(tree):
    before = files(tree)
    for name in (OP, "linear", "Not-a-name", "_x", ""):
        done = generate(tree, name)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1, done.stderr
        assert "expected a" in done.stderr
    assert files(tree) == before


def test_an_unexpected_tree_changes_nothing(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    lists = tmp_path / "tree/CMakeLists.txt"
    lists.write_text(lists.read_text().replace("HEADRACE_FAMILIES", "SOMETHING_ELSE"))
    before = files(tmp_path / "tree")
    done = generate(tmp_path / "tree", "other")
    assert done.returncode != 0
    assert "CMakeLists.txt" in done.stderr
    assert files(tmp_path / "tree") == before
