# SPDX-License-Identifier: Apache-2.0
"""What every op must have, and where: the one list that the registry's test reads."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from headrace.contract import OpSpec

LEVELS = ("scalar", "avx2", "avx512")


def missing(root: Path, spec: OpSpec) -> list[str]:
    """What op `spec` lacks in the source tree at `root`, one line each; empty when it is whole."""
    family, op = root / "kernels" / spec.family, spec.name
    lacks: list[str] = []

    def need(holds: object, what: str) -> None:
        if not holds:
            lacks.append(f"{op}: {what}")

    need(
        f'name="{op}"' in text(family / "spec.py"), f"its contract in kernels/{spec.family}/spec.py"
    )
    reference = function(family / "reference.py", spec.reference.__name__)
    need(reference, f"its reference in kernels/{spec.family}/reference.py")
    need(reference and ast.get_docstring(reference), "a docstring of its reference")

    for level in LEVELS:
        need(text(family / f"cpu_{level}.cpp"), f"kernels/{spec.family}/cpu_{level}.cpp")
    listed = re.search(r"set\(HEADRACE_FAMILIES([^)]*)\)", text(root / "CMakeLists.txt"))
    need(listed and spec.family in listed[1].split(), "its family in CMakeLists.txt")
    binding = f"csrc/bind/{spec.family}.cpp"
    bound = re.search(rf'bind_op<[^>]*>\("{op}"', text(root / binding))
    need(bound, f"its binding in {binding}")
    stub = function(root / "python" / "headrace" / "_C.pyi", op)
    need(stub, "its stub in python/headrace/_C.pyi")

    need(spec.gpu, "a GPU implementation named in its contract")
    for backend in spec.gpu:
        where = f"kernels/{spec.family}/{backend}.py"
        need(provides(family / f"{backend}.py", op), f"its launcher in {where}")
        if backend == "cuda":
            need(any(family.glob("*.cu")), f"CUDA sources in kernels/{spec.family}")

    public = function(root / "python" / "headrace" / "ops" / f"{op}.py", op)
    need(public, f"its public function in python/headrace/ops/{op}.py")
    need(public and ast.get_docstring(public), "a docstring of its public function")
    exported = text(root / "python" / "headrace" / "ops" / "__init__.py")
    need(re.search(rf"from \.{op} import .*\b{op}\b", exported), "its name in headrace.ops")

    tests = functions(root / "tests" / "ops" / f"test_{op}.py")
    need(any(name.startswith("test_") for name in tests), f"tests in tests/ops/test_{op}.py")
    bench = functions(root / "bench" / "ops" / f"bench_{op}.py")
    timed = [name for name, made in bench.items() if "side" in {arg.arg for arg in made.args.args}]
    need(f"test_{op}" in timed, f"a bench of every side in bench/ops/bench_{op}.py")
    return lacks


def text(path: Path) -> str:
    """Content of a file; empty when there is none."""
    return path.read_text() if path.is_file() else ""


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions at the top of a Python file."""
    nodes = ast.parse(text(path)).body
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def function(path: Path, name: str) -> ast.FunctionDef | None:
    """One of them."""
    return functions(path).get(name)


def provides(path: Path, name: str) -> bool:
    """Whether a module defines a function, or imports it from a file beside it that does."""
    if name in functions(path):
        return True
    for node in ast.parse(text(path)).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found = {alias.asname or alias.name: alias.name for alias in node.names}
            source = path.with_name(node.module.rsplit(".", 1)[-1] + ".py")
            if name in found and found[name] in functions(source):
                return True
    return False
