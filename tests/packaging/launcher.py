# SPDX-License-Identifier: Apache-2.0
"""A compiler launcher that takes from the installed build what would be compiled the same again.

python launcher.py COMPILER ... -o OBJECT -c SOURCE copies the object of that name in <prefix>/build
if that was made with the same options out of what is, preprocessed, the same text, and is no older
than any of its files; all else is compiled. A header that is missing is missed either way.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BUILD = Path(sys.prefix, "build")
COMMANDS = BUILD / "compile_commands.json"
# For CMake, to build in the quickest way.
if COMMANDS.exists():
    DEFINES = {"CMAKE_CXX_COMPILER_LAUNCHER": f"{sys.executable};{Path(__file__).resolve()}"}
else:
    DEFINES = {"HEADRACE_KERNEL_LEVEL": "1"}
TAKE_A_VALUE = ("-o", "-MF", "-MT", "-MQ", "-isystem")


def options(command: list[str]) -> tuple[list[str], list[str]]:
    """What decides what a text becomes, and what decides which text it is."""
    deciding, text, words = [], [], iter(command[1:])
    for word in words:
        if word in TAKE_A_VALUE:
            value = next(words)
            text += [word, value] if word == "-isystem" else []
        elif word.startswith(("-I", "-D")):
            text.append(word)
        elif word == "-c":
            text.append(next(words))
        elif word != "-MD":
            deciding.append(word)
    return deciding, text


def preprocessed(command: list[str], folder: str | Path) -> tuple[str, list[Path]]:
    """The text that is compiled, and the files that it comes from."""
    deciding, text = options(command)
    with tempfile.TemporaryDirectory() as room:
        told = Path(room, "files")
        done = subprocess.run(
            [command[0], *deciding, *text, "-E", "-P", "-MD", "-MF", told, "-MT", "x"],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            return "", []
        names = told.read_text().replace("\\\n", " ").split(":", 1)[1]
    return done.stdout, [Path(folder, name) for name in re.split(r"\s+", names.strip())]


def kept(command: list[str]) -> Path | None:
    """The object that serves as what the command would make."""
    if "-c" not in command or not COMMANDS.exists():
        return None
    target = command[command.index("-o") + 1]
    for entry in json.loads(COMMANDS.read_text()):
        before = shlex.split(entry["command"])
        if before[before.index("-o") + 1] != target or not (BUILD / target).exists():
            continue
        compiler = before.index(command[0]) if command[0] in before else 0
        before = before[compiler:]
        if options(before)[0] != options(command)[0]:
            return None
        text, files = preprocessed(before, entry["directory"])
        made = (BUILD / target).stat().st_mtime
        if not text or any(f.stat().st_mtime > made for f in files):
            return None
        return BUILD / target if preprocessed(command, os.getcwd())[0] == text else None
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
