# SPDX-License-Identifier: Apache-2.0
"""The source archive builds where no torch is, and the wheel holds what it must and no more."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="runs in a checkout only"
)


def build(code, folder, cwd, env=None):
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=cwd,
        env={**os.environ, "HEADRACE_CUDA": "OFF", **(env or {})},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source archive, as an unpacked folder."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    folder = tmp_path_factory.mktemp("sdist")
    build("import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])", folder, ROOT)
    (archive,) = folder.glob("headrace-*.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source archive by a Python that has the build requirements and no torch."""
    folder = tmp_path_factory.mktemp("wheel")
    clean = tmp_path_factory.mktemp("clean")
    (clean / "torch.py").write_text("raise ImportError('there is no torch at build time')\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    build(
        "import sys, scikit_build_core.build as b\nb.build_wheel(sys.argv[1])",
        folder,
        sdist,
        {"PYTHONPATH": str(clean), "PATH": path},
    )
    (made,) = folder.glob("*.whl")
    return made


def names_in(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_sdist_holds_the_sources_and_no_leftovers(sdist):
    names = names_in(sdist)
    for wanted in (
        "pyproject.toml",
        "CMakeLists.txt",
        "CMakePresets.json",
        "LICENSE",
        "README.md",
        "Makefile",
        "constraints-dev.txt",
        "cmake/isa.cmake",
        "cmake/build_info.h.in",
        "csrc/module.cpp",
        "csrc/bind/linear.cpp",
        "kernels/linear/cpu_avx2.cpp",
        "python/headrace/py.typed",
        "python/headrace/_C.pyi",
        "tests/packaging/test_wheel.py",
        "tools/new_op.py",
        ".clang-format",
    ):
        assert wanted in names, wanted
    leftovers = re.compile(r"(^|/)(build|dist|\.venv[^/]*|__pycache__|\.git)/|\.(whl|so|pyc|o)$")
    assert [name for name in names if leftovers.search(name)] == []


def test_wheel_holds_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for wanted in (
        "headrace/__init__.py",
        "headrace/py.typed",
        "headrace/_C.pyi",
        f"headrace/_C{suffix}",
        "headrace/kernels/linear/spec.py",
        "headrace/kernels/attention/reference.py",
    ):
        assert wanted in names, wanted
    assert "headrace/kernels/__init__.py" not in names
    assert [n for n in names if n.endswith((".cpp", ".h", ".cu", ".cuh", ".o", ".pyc"))] == []
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert {n.split("/")[0].split("-")[0] for n in names} == {"headrace"}


def test_wheel_holds_every_python_file_of_the_tree(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for tree, prefix in ((ROOT / "python", ""), (ROOT / "kernels", "headrace/kernels/")):
        for path in tree.rglob("*.py"):
            assert prefix + str(path.relative_to(tree)) in names


def test_wheel_is_for_one_cpython_and_any_torch(wheel):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    requires = re.findall(r"^Requires-Dist: (\S+?)([><=~!].*?)?(?: ;.*)?$", text, re.MULTILINE)
    assert dict(requires)["torch"].strip() == ">=2.11"
    assert "Requires-Python: >=3.10" in text


def test_wheel_links_no_libtorch(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if "/_C." in n and not n.endswith(".pyi"))
        data = archive.read(name)
    for library in (b"libtorch", b"libc10", b"libtorch_cpu", b"libtorch_python"):
        assert library not in data
    assert b"libgomp-" not in data
