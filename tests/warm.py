# SPDX-License-Identifier: Apache-2.0
"""Python processes whose imports are done, seconds sooner there than a fresh interpreter.

`python(*groups)` stands where [sys.executable] would in a command; a group is names of modules. It
starts a small process that hands its arguments, folder, environment and standard streams to a
server, which has imported the modules and has no thread but one; a fork of it runs the command. The
small process passes signals on to the fork and ends as that does. What a module reads of the
environment when it is imported is the server's, as is what the interpreter reads but PYTHONPATH,
and OMP_NUM_THREADS is 1 there.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
TORCH = ("torch",)
COMMANDS = (*TORCH, "headrace.presets,headrace.cli.session,matplotlib.pyplot")
servers = []


@functools.cache
def python(*groups: str) -> list[str]:
    """The first words of a command. The server that has all groups is a fork of that which has all
    but the last; each ends with this process."""
    at = os.path.join(tempfile.mkdtemp(), "socket")
    before = python(*groups[:-1]) if len(groups) > 1 else [sys.executable]
    server = subprocess.Popen(
        [*before, __file__, "--serve", at, groups[-1]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    servers.append(server)  # its standard input must stay open
    assert server.stdout.readline(), f"no process that imported {groups} could be started"
    return [sys.executable, "-S", __file__, "--run", at]


def run(at: str, command: list[str]) -> None:
    """Has the server run the command, and ends as it does."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(at)
    request = json.dumps([command, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [len(request).to_bytes(4, "big")], [0, 1, 2])
    line.sendall(request)
    line.setblocking(False)
    signal.set_wakeup_fd(line.fileno())  # a handler alone would wait for the end of a read
    for number in PASSED_ON:
        signal.signal(number, lambda *_: None)
    select.select([line], [], [])
    line.setblocking(True)
    status = int(line.makefile().readline())
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


def serve(at: str, group: str) -> list[str]:
    """Answers until standard input ends. Returns in forks only: the command of each."""
    for module in group.split(","):
        importlib.import_module(module)
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, f"{group} started a thread"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of its processes
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(at)
    listener.listen()
    print("listens", flush=True)
    gc.freeze()  # what is there now is looked at by no fork's collections
    sources: list[int | socket.socket] = [0, listener]
    running: dict[socket.socket, int] = {}
    while sources or running:
        ready, _, _ = select.select([*sources, *running], [], [], 0.01 if running else None)
        if 0 in ready:
            sources.clear()
        if listener in ready:
            line, _ = listener.accept()
            size, streams, _, _ = socket.recv_fds(line, 4, 3)
            request = json.loads(line.makefile("rb").read(int.from_bytes(size, "big")))
            running[line] = os.fork()
            if not running[line]:
                for each in (listener, *running):
                    each.close()
                return become(streams, *request)
            for stream in streams:
                os.close(stream)
        for line in running.keys() & set(ready):
            number = line.recv(1) or bytes([signal.SIGKILL])  # none where who asked was killed
            os.kill(running[line], number[0])
        for line, child in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                with contextlib.suppress(BrokenPipeError):
                    line.sendall(b"%d\n" % status)
                line.close()
                del running[line]
    shutil.rmtree(os.path.dirname(at))
    sys.exit()


def become(
    streams: list[int], command: list[str], folder: str, environment: dict[str, str]
) -> list[str]:
    """Makes a fork what a fresh interpreter would be there; the command."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return command


def execute(command: list[str]) -> None:
    """Runs it as the interpreter would: -c CODE, -m MODULE or a file, and arguments."""
    first, *sys.argv = command if command[0] in ("-c", "-m") else ("", *command)
    beside = os.path.dirname(os.path.realpath(sys.argv[0]))
    sys.path[0] = {"-c": "", "-m": os.getcwd()}.get(first, beside)
    if first == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, sys.argv[0] = sys.argv[0], "-c"
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    kind, at, *words = sys.argv[1:]
    if kind == "--run":
        run(at, words)
    execute(serve(at, *words))
