# SPDX-License-Identifier: Apache-2.0
"""A process whose imports are done does and ends as a fresh interpreter would."""

import os
import signal
import subprocess
import sys

import pytest

from tests import warm

SHOWS = """
import json, os, sys
given = [sys.argv, sys.path[0], os.getcwd(), dict(os.environ), sys.stdin.read(), __name__]
print(json.dumps(given))
print([s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)], file=sys.stderr)
"""
ENDS = {
    "status": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('told')",
    "end": "import atexit; atexit.register(print, 'at the end'); print('first')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "aborted": "import os; print('lost'); os.abort()",
    "thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
}


def both(*command, **options):
    """What a fresh interpreter and a process that has imports make of it."""
    options["env"] = options.get("env", os.environ) | {"PYTHONUNBUFFERED": ""}
    for python in ([sys.executable], warm.python("select", "json")):
        yield subprocess.run([*python, *command], capture_output=True, timeout=60, **options)


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_it_gets_what_it_is_given(kind, tmp_path):
    (tmp_path / "shows.py").write_text(SHOWS)
    first = {"-c": ["-c", SHOWS], "-m": ["-m", "shows"], "file": [tmp_path / "shows.py"]}[kind]
    env = {**os.environ, "LESS": "1", "PYTHONPATH": str(tmp_path)}
    env.pop("HOME", None)
    fresh, ours = both(*first, "a b", "--c", cwd=tmp_path, env=env, input=b"sent")
    assert (ours.stderr, ours.returncode) == (fresh.stderr, fresh.returncode)
    assert ours.stdout == fresh.stdout
    assert b"sent" in ours.stdout


@pytest.mark.parametrize("way", ENDS)
def test_it_ends_the_same(way):
    fresh, ours = both("-c", ENDS[way])
    assert ours.returncode == fresh.returncode
    assert (ours.stdout, ours.stderr) == (fresh.stdout, fresh.stderr)


def test_an_error_is_told_with_its_traceback():
    fresh, ours = both("-c", "1 / 0")
    assert ours.returncode == fresh.returncode == 1
    assert ours.stderr.endswith(fresh.stderr.split(b"\n", 1)[1])


# Python sees a signal that comes just before a call when the call ends, so each is short
SLEEPS = "import time; print('begun', flush=True)\nwhile True: time.sleep(0.01)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(number):
    process = subprocess.Popen(
        [*warm.python("select", "json"), "-c", SLEEPS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)  # its end of the streams is closed with it
    assert process.returncode == -number
    assert (b"KeyboardInterrupt" in err) == (number == signal.SIGINT)


def test_its_imports_are_done():
    code = "import sys; print('decimal' in sys.modules, 'fractions' in sys.modules)"
    command = [*warm.python("select", "decimal"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_a_module_that_cannot_be_imported_is_told():
    with pytest.raises(AssertionError, match="could be started"):
        warm.python("no_such_module")
