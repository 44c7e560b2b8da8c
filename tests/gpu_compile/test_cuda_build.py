# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels compile for sm_80 and sm_90a without spills, into a library of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from headrace.kernels.common import cuda as device

from headrace.errors import BackendError

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "kernels").glob("*/*.cu"))
NVCC = shutil.which("nvcc")
BUILD = Path(sys.prefix, "build")
COMMANDS = BUILD / "compile_commands.json"

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


def nvcc(*arguments):
    done = subprocess.run(
        [NVCC, "-std=c++17", f"-I{ROOT}", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_there_are_sources():
    assert SOURCES


def kept(source, arch):
    """What ptxas told when the installed library was built of these very files, or None."""
    told = BUILD / f"CMakeFiles/_cuda.dir/{source.relative_to(ROOT)}.o.ptxas"
    if not (told.exists() and COMMANDS.exists()):
        return None
    files = [p for folder in ("kernels", "csrc") for p in (ROOT / folder).rglob("*")]
    newest = max(p.stat().st_mtime for p in files if p.suffix in (".cu", ".cuh", ".h"))
    built = [entry["file"] for entry in json.loads(COMMANDS.read_text())]
    if told.stat().st_mtime < newest or str(source) not in built:
        return None
    parts = re.split(r"(?=^ptxas info.*: Compiling entry)", told.read_text(), flags=re.MULTILINE)
    return "".join(part for part in parts if f"for 'sm_{arch}'" in part) or None


def compiled(source, arch, folder):
    return nvcc(
        "-cubin",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-Xptxas",
        "-v",
        str(source),
        "-o",
        str(folder / "out.cubin"),
    )


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles_without_spills(source, arch, tmp_path):
    report = kept(source, arch) or compiled(source, arch, tmp_path)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(re.findall("Compiling entry function", report)) > 0
    assert set(spills) == {("0", "0")}, report
    # An array indexed at run time lives in local memory, which shows as a stack frame.
    assert set(re.findall(r"(\d+) bytes stack frame", report)) == {"0"}, report


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The one that was installed, or one built now."""
    try:
        return device.find()
    except BackendError:
        path = tmp_path_factory.mktemp("library") / "cuda.so"
    nvcc(
        "-shared",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        "-cudart",
        "static",
        "-gencode=arch=compute_80,code=compute_80",
        *map(str, SOURCES),
        "-o",
        str(path),
    )
    return path


def test_library_needs_no_cuda_runtime(library):
    loaded = device.open_library(library)  # every entry point is there, without a driver
    assert loaded.headrace_cuda_merge_bytes() > 0
    if shutil.which("readelf"):
        needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
        assert "libcudart" not in needed
        assert "libcuda.so" not in needed
