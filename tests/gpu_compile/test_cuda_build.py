# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels compile for sm_80 and sm_90a without spills, into a library of their own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from headrace.kernels.common import cuda as device

from headrace.errors import BackendError

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "kernels").glob("*/*.cu"))
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


def nvcc(*arguments):
    done = subprocess.run(
        [NVCC, "-std=c++17", f"-I{ROOT}", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_there_are_sources():
    assert SOURCES


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles_without_spills(source, arch, tmp_path):
    report = nvcc(
        "-cubin",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-Xptxas",
        "-v",
        str(source),
        "-o",
        str(tmp_path / "out.cubin"),
    )
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills
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
