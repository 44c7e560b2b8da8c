# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a new op: `python tools/new_op.py NAME`.

What it writes is a small op that works (an element-wise product with a number) in every place that
an op has: contract, reference, CPU body at every level, Triton kernel, host side, binding, stub,
public function, samples, tests, bench. Then make it the op that you want, tests first.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).resolve().parent / "new_op"


class NewOpError(ValueError):
    """A name that cannot be taken, or a file that is not as expected."""


def fill(template: str, name: str) -> str:
    """A template with the op's name put in."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    return template.replace("@name@", name).replace("@Name@", camel)


def new_files(root: Path, name: str) -> dict[Path, str]:
    """Files to make. The path of a template, with `__` for `/`, is that of the file."""
    made = {}
    for template in sorted(TEMPLATES.glob("*.in")):
        relative = fill(template.name.removesuffix(".in").replace("__", "/"), name)
        path = root / relative.replace("/init/.py", "/__init__.py")
        if path.exists():
            raise NewOpError(f"new_op(name): expected a new name, got {name}; {relative} exists")
        made[path] = fill(template.read_text(), name)
    return made


def insert(text: str, pattern: str, addition: str, path: str, before: bool = False) -> str:
    """`text` with `addition` after (or before) the one match of `pattern`."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if len(found) != 1:
        raise NewOpError(
            f"new_op({path}): expected one match of {pattern!r} to write at, got {len(found)}"
        )
    at = found[0].start() if before else found[0].end()
    return text[:at] + addition + text[at:]


def edits(root: Path, name: str) -> dict[Path, str]:
    """Files to change."""
    changed: dict[Path, str] = {}

    def change(file: str, pattern: str, addition: str, before: bool = False) -> None:
        path = root / file
        text = changed.get(path) or path.read_text()
        changed[path] = insert(text, pattern, fill(addition, name), file, before)

    def part(title: str) -> str:
        return (TEMPLATES / f"{title}.part").read_text()

    change("CMakeLists.txt", r"^set\(HEADRACE_FAMILIES(?= )", " @name@")
    change("python/headrace/_C.pyi", r"^def linear\(", part("stub"), before=True)
    change(
        "python/headrace/ops/__init__.py",
        r"^from \.attention import attention\n",
        "from .@name@ import @name@\n",
        before=True,
    )
    change("python/headrace/ops/__init__.py", r"^__all__ = \[", '"@name@", ')
    change("tests/ops/samples.py", r"^SAMPLES: dict", part("sample"), before=True)
    change("tests/ops/samples.py", r"^SAMPLES: dict.*\{\n", part("samples"))
    change("tests/test_registry.py", r"^LENGTHS = \{\n", part("length"))
    change("python/headrace/bench/shapes.py", r"^def cases\(", part("case"), before=True)
    change("python/headrace/bench/shapes.py", r"^    makers: dict.*\{\n", part("cases"))
    compiled = "tests/gpu_compile/launches.py"
    if (root / compiled).exists():
        change(compiled, r"^CASES = \{\n", part("compiled"))
    return changed


def write(root: Path, name: str) -> list[Path]:
    """Writes everything, or nothing: gives the files made and changed.

    Raises ValueError for a name that is taken or no lower-case identifier, or an unexpected tree.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise NewOpError(f"new_op(name): expected a lower-case identifier, got {name!r}")
    if (root / "kernels" / name).exists():
        raise NewOpError(f"new_op(name): expected a new name, got {name}; kernels/{name} exists")
    files = new_files(root, name) | edits(root, name)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return sorted(files)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the op, a lower-case identifier")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to write into")
    args = parser.parse_args()
    try:
        for path in write(args.root, args.name):
            print(path.relative_to(args.root))
    except (NewOpError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nIt works as it is: make format test. Now make it {args.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
