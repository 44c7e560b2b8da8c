# SPDX-License-Identifier: Apache-2.0
"""No object that is compiled for one ISA level holds a weak symbol.

The linker keeps one copy of a weak symbol for everybody. Were it the copy compiled for AVX-512, the
extension would crash on machines that lack it, in code that has nothing to do with the kernels.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace import _C

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("kernels/*/cpu_*.cpp"))


def tools():
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if not compiler or not shutil.which("nm"):
        pytest.skip("a C++ compiler and nm are needed to look at objects")
    return compiler


def flags(level):
    """Those that the installed extension was compiled with."""
    common, *levels = _C.build_info()["flags"].split("; ")
    own = dict(part.split(": ") for part in levels)
    return [*common.split()[1:], *own.get(level, "").split()]


def compiled(source, target, level):
    command = [tools(), "-std=c++17", "-fPIC", *flags(level), f"-I{ROOT}", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def weak(path):
    done = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True)
    return re.findall(r"^[0-9a-f ]* [WVuwv] (.*)$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """One per family and level: as `make` left them, else compiled now with the same flags."""
    tools()
    built = Path(sys.prefix, "build", "CMakeFiles")
    found = {p.name.removesuffix(".o"): p for p in built.glob("headrace_*.dir/**/cpu_*.cpp.o")}
    folder = tmp_path_factory.mktemp("objects")
    levels = [p for p in SOURCES if p.stem.removeprefix("cpu_") in _C.available_isas()]

    def one(source):
        level, family = source.stem.removeprefix("cpu_"), source.parent.name
        pattern = f"headrace_{level}.dir/kernels/{family}/{source.name}.o"
        kept = built / pattern
        if found and kept.exists():
            return kept
        return compiled(source, folder / f"{family}_{level}.o", level)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, levels))


def test_every_family_has_every_level():
    families = {p.parent for p in ROOT.glob("kernels/*/spec.py")}
    for family in families:
        names = {p.name for p in family.glob("cpu_*.cpp")}
        assert names - {"cpu_avx512_vnni.cpp", "cpu_avx512_bf16.cpp"} == {
            "cpu_scalar.cpp",
            "cpu_avx2.cpp",
            "cpu_avx512.cpp",
        }, family.name


def test_no_weak_symbols(objects):
    assert objects
    assert {path.name: weak(path) for path in objects if weak(path)} == {}


def test_objects_define_their_table_and_nothing_else(objects):
    for path in objects:
        listing = subprocess.run(
            ["nm", "--defined-only", "-g", str(path)], capture_output=True, text=True, check=True
        ).stdout
        names = [line.split()[-1] for line in listing.splitlines()]
        assert names, path
        assert all(name.startswith("headrace_") for name in names), (path, names)


def test_a_weak_symbol_would_be_seen(tmp_path):
    source = tmp_path / "cpu_scalar.cpp"
    source.write_text(
        "#include <vector>\n"
        "float last(const float* p, int n) { std::vector<float> v(p, p + n);"
        " v.push_back(1); return v.back(); }\n"
    )
    assert weak(compiled(source, tmp_path / "leaky.o", "scalar"))
