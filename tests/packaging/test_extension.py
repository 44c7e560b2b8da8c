# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: what it links, what it exports, and that its stub says so."""

import ast
import re
import shutil
import subprocess
from operator import attrgetter
from pathlib import Path

import pytest

import headrace
from headrace import _C

PACKAGE = Path(headrace.__file__).parent


def readelf(flag):
    tool = shutil.which("readelf")
    if not tool or Path(_C.__file__).read_bytes()[:4] != b"\x7fELF":
        pytest.skip("readelf is not installed, or the extension is no ELF file")
    return subprocess.run(
        [tool, "-W", flag, _C.__file__], capture_output=True, text=True, check=True
    ).stdout


def test_links_no_libtorch_and_openmp_by_its_plain_name():
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("-d"))
    assert needed, "no dynamic section found"
    system = re.compile(
        r"(libgomp\.so\.1|libstdc\+\+\.so\.6|libm\.so\.6|libgcc_s\.so\.1|libc\.so\.6"
        r"|libpthread\.so\.0|libdl\.so\.2|librt\.so\.1|ld-linux.*\.so\.\d)"
    )
    assert [name for name in needed if not system.fullmatch(name)] == []
    assert "RUNPATH" not in readelf("-d")
    assert "RPATH" not in readelf("-d")


def test_exports_only_its_init_function():
    tool = shutil.which("nm") or pytest.skip("nm is not installed")
    listing = subprocess.run(
        [tool, "-D", "--defined-only", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split()[-2:] for line in listing.splitlines()]
    assert [name for kind, name in symbols if kind == "T"] == ["PyInit__C"]
    assert [name for _, name in symbols if "headrace" in name] == []


def stub():
    """Functions and classes of the stub, and the methods of the classes as class.method."""
    tree = ast.parse((PACKAGE / "_C.pyi").read_text())
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.bases]  # no types
    named = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    named |= {n.name: n for n in classes}
    for node in classes:
        named |= {f"{node.name}.{f.name}": f for f in node.body if isinstance(f, ast.FunctionDef)}
    return named


def test_typing_files_are_installed():
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_C.pyi").is_file()


def test_stub_names_exactly_what_the_module_exports():
    exported = {name for name in dir(_C) if not name.startswith("_")}
    assert {name for name in stub() if "." not in name} == exported


def test_stub_has_the_parameters_of_the_module():
    for name, node in stub().items():
        if isinstance(node, ast.ClassDef):
            continue
        signature = attrgetter(name)(_C).__doc__.split(" -> ")[0]
        counted = len(re.findall(r"(?:^|[(,] ?)(?:arg\d+|[a-z_]+): ", signature))
        assert len(node.args.posonlyargs) + len(node.args.args) == counted, (name, signature)
