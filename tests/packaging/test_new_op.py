# SPDX-License-Identifier: Apache-2.0
"""The generator of a new op: what it writes is whole, builds, and passes its own tests."""

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from tests import warm
from tests.packaging import launcher

ROOT = Path(__file__).resolve().parents[2]
NAME = "scale_rows"
IGNORED = shutil.ignore_patterns("__pycache__", "*.safetensors", "build", ".git", ".venv*")


def tool(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def generate(tree, name=NAME):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/new_op.py"), name, "--root", str(tree)],
        capture_output=True,
        text=True,
    )


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


@pytest.fixture(scope="module")
def site(tree, tmp_path_factory):
    """The generated package, built and installed; gives the environment to use it."""
    if not (Path(headrace.__file__).parent / "kernels").is_dir():
        pytest.skip("headrace is installed editable, which would hide the generated package")
    cmake, folder = tool("cmake"), tmp_path_factory.mktemp("site")
    if not cmake or not shutil.which("c++"):
        pytest.skip("CMake and a C++ compiler are needed to build the generated op")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    env = {**os.environ, "PATH": path, "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    configure = [cmake, "-S", str(tree), "-B", str(folder / "build"), *ninja]
    quick = [f"-D{name}={value}" for name, value in launcher.DEFINES.items()]
    for command in (
        [*configure, *quick, "-DHEADRACE_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"],
        [cmake, "--build", str(folder / "build")],
        [cmake, "--install", str(folder / "build"), "--prefix", str(folder)],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shutil.copytree(tree / "python/headrace", folder / "headrace", dirs_exist_ok=True)
    shutil.copytree(tree / "kernels", folder / "headrace/kernels")
    return {**os.environ, "PYTHONPATH": str(folder)}


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
    for name in (NAME, "linear", "Not-a-name", "_x", ""):
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


def pytest_in(tree, env, *arguments):
    command = [*warm.python(*warm.TORCH), "-m", "pytest", "-c", str(tree / "pyproject.toml")]
    command += ["--rootdir", str(tree), "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=tree.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_generated_op_is_whole_and_passes_its_tests(tree, site):
    registry = str(tree / "tests/test_registry.py")
    contract = str(tree / "tests/test_contract.py")
    pytest_in(tree, site, registry, contract, str(tree / f"tests/ops/test_{NAME}.py"), "-k", NAME)


def test_generated_bench_runs(tree, site):
    pytest_in(tree, site, str(tree / f"bench/ops/bench_{NAME}.py"))
    done = subprocess.run(
        [*warm.python(*warm.TORCH), "-c",
         f"from headrace import bench; print(bench.table(bench.run('{NAME}', quick=True)))"],
        env=site, cwd=tree.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert NAME in done.stdout
