# SPDX-License-Identifier: Apache-2.0
"""The source archive builds where no torch is, and the wheel holds what it must and no more."""

import configparser
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging import launcher

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


TABLE = "kernels/common/tuned/some-card.json"  # as the tuner of a GPU writes one


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source archive, and a table of a device beside it, by a Python that has the
    build requirements and no torch.

    What the installed build compiled of the same text is not compiled again, and all the rest in
    the quickest way: what is in a wheel is the same at every -O.
    """
    folder = tmp_path_factory.mktemp("wheel")
    tree = shutil.copytree(sdist, tmp_path_factory.mktemp("tree") / sdist.name)
    (tree / TABLE).parent.mkdir(exist_ok=True)
    (tree / TABLE).write_text("{}")
    clean = tmp_path_factory.mktemp("clean")
    (clean / "torch.py").write_text("raise ImportError('there is no torch at build time')\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {f"cmake.define.{name}": value for name, value in launcher.DEFINES.items()}
    build(
        f"import sys, scikit_build_core.build as b\nb.build_wheel(sys.argv[1], {settings})",
        folder,
        tree,
        {"PYTHONPATH": str(clean), "PATH": path},
    )
    (made,) = folder.glob("*.whl")
    return made


def names_in(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_sdist_holds_the_sources(sdist):
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
        "python/headrace/models/bytes-stream.safetensors",
        "tests/packaging/test_wheel.py",
        "tools/new_op.py",
        ".clang-format",
    ):
        assert wanted in names, wanted


def tracked():
    """What git has of the checkout; None where it is none, as in an unpacked archive."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def test_sdist_holds_what_is_tracked_and_no_more(sdist):
    known = tracked()
    if known is None:
        pytest.skip("runs in a git checkout only")
    # New files of known kinds are in it before they are tracked; nothing else is.
    assert known - names_in(sdist) == set()
    others = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert names_in(sdist) - known - set(others.stdout.split("\0")) == {"PKG-INFO"}


STRAYS = (
    "notes.txt", ".env", "core", "build.log", "clip.mp4", "headrace-report.json", "x/setup.py",
    "python/headrace/_C.so", "python/headrace/core", "python/headrace/__pycache__/info.pyc",
    "python/headrace.egg-info/PKG-INFO", "python/headrace/.mypy_cache/a.py", "csrc/module.o",
    "tests/.hypothesis/a.py", "tests/clip.mp4", "bench/results/raw.csv", "docs/draft.odt",
    "dist/headrace-0.tar.gz", ".venv/lib/site.py", "build/a.cpp", "tools/x.orig",
    "kernels/linear/notes.json",
)  # fmt: skip


def test_nothing_that_lies_about_comes_along(sdist, tmp_path):
    tree = tmp_path / "tree"
    for name in ("pyproject.toml", "README.md", "LICENSE", *STRAYS):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes() if name not in STRAYS else b"")
    kept = ("tests/ops/test_x.py", "csrc/x.cpp", "python/headrace/x.py", ".ci/run", TABLE)
    for name in kept:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    build("import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])", tmp_path, tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    assert names == {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", *kept}


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


def test_wheel_holds_the_tables_of_devices(wheel):
    assert f"headrace/{TABLE}" in zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / TABLE).parent.glob("*.json"):
        name = f"headrace/{path.relative_to(ROOT)}"
        assert zipfile.ZipFile(wheel).read(name) == path.read_bytes()


def test_wheel_is_for_one_cpython_and_any_torch(wheel):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    requires = re.findall(r"^Requires-Dist: (\S+?)([><=~!].*?)?(?: ;.*)?$", text, re.MULTILINE)
    assert dict(requires)["torch"].strip() == ">=2.11"
    assert "Requires-Python: >=3.10" in text


def test_wheel_has_its_command_and_its_plugin(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (points,) = (n for n in archive.namelist() if n.endswith("/entry_points.txt"))
        found = configparser.ConfigParser(delimiters="=")
        found.read_string(archive.read(points).decode())
    assert found["console_scripts"]["headrace"] == "headrace.cli:main"
    assert found["vllm.general_plugins"]["headrace"] == "headrace.integrations.vllm:plugin"


def test_wheel_links_no_libtorch(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if "/_C." in n and not n.endswith(".pyi"))
        data = archive.read(name)
    for library in (b"libtorch", b"libc10", b"libtorch_cpu", b"libtorch_python"):
        assert library not in data
    assert b"libgomp-" not in data


def test_wheels_are_configured_for_every_python_that_is_promised():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project, wheels = whole["project"], whole["tool"]["cibuildwheel"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={promised[0]}"
    built = [f"cp{version.replace('.', '')}-manylinux_x86_64" for version in promised]
    patterns = wheels["build"].split()
    for name in built:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
    assert len(patterns) == len(built)
    assert not any(fnmatch.fnmatch("cp314t-manylinux_x86_64", pattern) for pattern in patterns)
    assert fnmatch.fnmatch("cp312-musllinux_x86_64", wheels["skip"])
    assert wheels["environment"] == {"HEADRACE_CUDA": "OFF"}
    assert "--exclude libgomp.so.1" in wheels["linux"]["repair-wheel-command"]


def test_the_extension_takes_the_openmp_runtime_of_torch(wheel, tmp_path):
    """By its plain soname, so that the copy that torch brings, imported first, is the one."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    readelf = shutil.which("readelf")
    brought = list(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if readelf is None or not brought:
        pytest.skip("readelf, and a torch that brings libgomp, are not both here")

    def dynamic(path, what):
        out = subprocess.run([readelf, "-d", path], capture_output=True, text=True, check=True)
        return re.findall(rf"\({what}\).*\[(.+)\]", out.stdout)

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if "/_C." in n and n.endswith(".so"))
        extension = archive.extract(name, tmp_path)
    needed = [n for n in dynamic(extension, "NEEDED") if "gomp" in n]
    assert needed == dynamic(brought[0], "SONAME") == ["libgomp.so.1"]
