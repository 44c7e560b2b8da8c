# SPDX-License-Identifier: Apache-2.0
"""The source archive builds where no torch is, with a generated op in it that passes its own
tests; and the wheel holds what it must and no more."""

import configparser
import fnmatch
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import warm

from .conftest import OP, ROOT, TABLE, build

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="runs in a checkout only"
)


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


def test_wheel_holds_every_python_file_of_the_tree(wheel, tree):
    names = set(zipfile.ZipFile(wheel).namelist())
    for root in (ROOT, tree):
        for folder, prefix in ((root / "python", ""), (root / "kernels", "headrace/kernels/")):
            for path in folder.rglob("*.py"):
                assert prefix + str(path.relative_to(folder)) in names


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
    pytest_in(tree, site, registry, contract, str(tree / f"tests/ops/test_{OP}.py"), "-k", OP)


def test_generated_bench_runs(tree, site):
    pytest_in(tree, site, str(tree / f"bench/ops/bench_{OP}.py"))
    done = subprocess.run(
        [*warm.python(*warm.TORCH), "-c",
         f"from headrace import bench; print(bench.table(bench.run('{OP}', quick=True)))"],
        env=site, cwd=tree.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert OP in done.stdout
