# SPDX-License-Identifier: Apache-2.0
"""HEADRACE_CUDA and the presets, with the real CMake."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def cmake_tool():
    beside = Path(sys.executable).with_name("cmake")
    return str(beside) if beside.exists() else shutil.which("cmake")


pytestmark = pytest.mark.skipif(
    cmake_tool() is None or shutil.which("c++") is None,
    reason="CMake and a C++ compiler are needed to configure",
)


def configure(folder, **defines):
    """Configures with a CUDACXX that leads nowhere, as on a machine without nvcc."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "CUDACXX": str(folder / "no-such-nvcc"), "PATH": path}
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    return subprocess.run(
        [cmake_tool(), "-S", str(ROOT), "-B", str(folder / "build"), *ninja]
        + [f"-DPython_EXECUTABLE={sys.executable}"]
        + [f"-D{key}={value}" for key, value in defines.items()],
        env=env,
        capture_output=True,
        text=True,
    )


def state(done):
    assert done.returncode == 0, done.stderr
    return re.search(r"headrace: CUDA kernels (.*)", done.stdout)[1]


def test_on_without_nvcc_is_an_error(tmp_path):
    done = configure(tmp_path, HEADRACE_CUDA="ON")
    assert done.returncode != 0
    assert "HEADRACE_CUDA=ON: expected a working nvcc, found none" in " ".join(done.stderr.split())


def test_auto_without_nvcc_says_why_it_is_off(tmp_path):
    assert state(configure(tmp_path, HEADRACE_CUDA="AUTO")) == "off: no working nvcc was found"
    info = (tmp_path / "build" / "build_info.h").read_text()
    assert "off: no working nvcc was found" in info


def test_off_never_looks(tmp_path):
    done = configure(tmp_path, HEADRACE_CUDA="off")
    assert state(done) == "off: HEADRACE_CUDA=OFF"
    assert "CUDA compiler" not in done.stdout


def test_other_values_are_refused(tmp_path):
    done = configure(tmp_path, HEADRACE_CUDA="maybe")
    assert done.returncode != 0
    assert "expected AUTO, ON or OFF, got maybe" in " ".join(done.stderr.split())


def test_presets():
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    names = {p["name"] for p in presets["configurePresets"]}
    assert {"dev", "release", "asan", "cuda"} <= names
    listed = subprocess.run(
        [cmake_tool(), "--list-presets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f'"{name}"' in listed for name in names)
    options = {o for p in presets["configurePresets"] for o in p["cacheVariables"]}
    text = (ROOT / "CMakeLists.txt").read_text()
    assert all(o in text for o in options if o.startswith("HEADRACE_"))
