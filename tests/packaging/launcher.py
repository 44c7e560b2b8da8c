# SPDX-License-Identifier: Apache-2.0
"""A compiler launcher that takes from the installed build what would be compiled the same again.

python launcher.py COMPILER ... -o OBJECT -c SOURCE copies the object of that name in <prefix>/build
if that was made by the same command, but for where the sources and the build lie, out of files that
hold the same here and are no younger than it; all else is compiled.
"""

import filecmp
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

BUILD = Path(sys.prefix, "build")
COMMANDS = BUILD / "compile_commands.json"
# For CMake, to build in the quickest way.
if COMMANDS.exists() and (BUILD / ".ninja_deps").exists():
    DEFINES = {"CMAKE_CXX_COMPILER_LAUNCHER": f"{sys.executable};{Path(__file__).resolve()}"}
else:
    DEFINES = {"HEADRACE_KERNEL_LEVEL": "1"}


def cached(build: Path, name: str) -> str:
    """What CMake knows by that name."""
    for line in (build / "CMakeCache.txt").read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split("=", 1)[1]
    return ""


def moves() -> list[tuple[str, str]]:
    """Folders of the installed build, each with what stands for it here; the first that fits."""
    home = "CMAKE_HOME_DIRECTORY"
    return [
        (str(BUILD), os.getcwd()),
        (sys.prefix, sys.prefix),
        (cached(BUILD, home), cached(Path.cwd(), home)),
    ]


def moved(text: str, pairs: list[tuple[str, str]]) -> str:
    for before, now in pairs:
        if before in text:
            return text.replace(before, now)
    return text


def words(command: list[str]) -> list[str]:
    """Without what has the compiler write down which files it read."""
    found, each = [], iter(command)
    for word in each:
        if word in ("-MF", "-MT", "-MQ"):
            next(each)
        elif word != "-MD":
            found.append(word)
    return found


def read_for(target: str) -> list[str]:
    """The files that were read when it was compiled; none where that is not known."""
    command = [cached(BUILD, "CMAKE_MAKE_PROGRAM"), "-C", BUILD, "-t", "deps", target]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()[:-1]
    return [line.strip() for line in lines if line.startswith("    ")]


def kept(command: list[str]) -> Path | None:
    """The object that serves as what the command would make."""
    if "-c" not in command or not COMMANDS.exists():
        return None
    target = command[command.index("-o") + 1]
    made, pairs = BUILD / target, moves()
    for entry in json.loads(COMMANDS.read_text()):
        if f" -o {target} " not in entry["command"] or not made.exists():
            continue
        before = shlex.split(entry["command"])
        before = before[before.index(command[0]) if command[0] in before else 0 :]
        if [moved(word, pairs) for word in before] != words(command):
            return None
        files = [str(BUILD / name) for name in read_for(target)]
        for name in files:
            now = moved(name, pairs)
            if Path(name).stat().st_mtime > made.stat().st_mtime:
                return None
            if now != name and not (Path(now).exists() and filecmp.cmp(name, now, shallow=False)):
                return None
        return made if files else None
    return None


def main(command: list[str]) -> int:
    found = kept(command)
    if found is None:
        return subprocess.call(command)
    shutil.copyfile(found, command[command.index("-o") + 1])
    if "-MF" in command:  # for the build tool, which reads it
        Path(command[command.index("-MF") + 1]).write_text(
            f"{command[command.index('-o') + 1]}: {command[command.index('-c') + 1]}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
