# SPDX-License-Identifier: Apache-2.0
"""headrace info: complete on a sound installation, and there when the installation is broken."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace import cli, info
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(headrace.__file__).parent


def report(capsys, *options):
    assert cli.main(["info", *options]) == 0
    return capsys.readouterr().out


def test_json_is_complete(capsys):
    from headrace import _C

    got = json.loads(report(capsys, "--json"))
    assert got["versions"]["headrace"] == info.version("headrace")
    assert got["versions"]["torch"]
    assert got["extension"]["loaded"] is True
    assert set(got["extension"]["build"]) == {"compiler", "flags", "cuda", "openmp"}
    assert got["isa"] == {"used": _C.active_isa(), "available": _C.available_isas()}
    assert got["threads"]["torch"] >= 1
    assert set(got["backends"]) == {"reference", "cpu", "triton", "cuda"}
    assert got["backends"]["cpu"] == "on"
    assert all(state == "on" or state.startswith("off: ") for state in got["backends"].values())
    assert set(info.VARIABLES) <= set(got["environment"])


def test_openmp_is_mapped_once(capsys):
    got = json.loads(report(capsys, "--json"))
    if not got["extension"]["build"]["openmp"] or sys.platform != "linux":
        pytest.skip("the extension was built without OpenMP, or this is not Linux")
    assert len(got["openmp"]) == 1, got["openmp"]


def test_text_has_every_section(capsys):
    text = report(capsys)
    for section in info.collect():
        assert re.search(rf"^{section}\b", text, re.MULTILINE), section
    assert len(text.splitlines()) < 60


def test_module_form_agrees_with_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "headrace.info", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["extension"]["loaded"] is True


def test_starts_neither_cuda_nor_triton():
    done = subprocess.run(
        [*warm.python(*warm.TORCH), "-c",
         "import sys, torch; from headrace import info; info.collect();"
         "print('triton' in sys.modules, torch.cuda.is_initialized())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]


def test_environment_is_shown(monkeypatch):
    monkeypatch.setenv("HEADRACE_TRACEBACK", "1")
    assert info.collect()["environment"]["HEADRACE_TRACEBACK"] == "1"


@pytest.fixture
def copy(tmp_path):
    """A copy of the installed package, and a function that runs code on it."""
    if not (PACKAGE / "kernels").is_dir():
        pytest.skip("headrace is installed editable; a copy of it would not be whole")
    shutil.copytree(PACKAGE, tmp_path / "headrace", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments, python=None):
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [*(python or warm.python(*warm.TORCH)), *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    return tmp_path, run


MAIN = "import sys; from headrace.cli import main; sys.exit(main(sys.argv[1:]))"

USES = """
import headrace
for use in ("headrace.ops", "from headrace import use_isa", "import headrace.ops"):
    try:
        exec(use)
    except ImportError as error:
        print(error)
"""


def test_broken_extension(copy):
    folder, run = copy
    (extension,) = (p for p in (folder / "headrace").glob("_C.*") if p.suffix != ".pyi")
    extension.write_bytes(b"this is no library")
    for arguments in (["-m", "headrace.info", "--json"], ["-c", MAIN, "info", "--json"]):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        got = json.loads(done.stdout)
        assert got["extension"]["loaded"] is False
        assert "ImportError" in got["extension"]["error"]
        assert got["extension"]["file"] == str(extension)
        assert set(got["backends"].values()) == {"off: headrace did not load"}
        assert got["versions"]["torch"]
    assert run("-m", "headrace.info").returncode == 0

    done = run("-c", USES)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 3
    for line in told:
        assert line.startswith("headrace("), line
        assert line.endswith("see `headrace info`"), line


def test_missing_extension(copy):
    folder, run = copy
    for path in (folder / "headrace").glob("_C.*"):
        path.unlink()
    done = run("-m", "headrace.info", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["extension"]["loaded"] is False


def test_missing_torch(copy):
    folder, run = copy
    (folder / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open')\n")
    done = run("-m", "headrace.info", "--json", python=[sys.executable])
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert "libtorch_cpu.so: cannot open" in got["extension"]["error"]
    assert "libtorch_cpu.so: cannot open" in got["threads"]["error"]


def test_impossible_isa_is_reported():
    env = {**os.environ, "HEADRACE_ISA": "avx9"}
    done = subprocess.run(
        [*warm.python(*warm.TORCH), "-m", "headrace.info"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "got 'avx9'" in done.stdout


def test_usage(capsys):
    assert cli.main([]) == 2
    assert "info" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        cli.main(["nonsense"])
    assert left.value.code == 2
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert info.version("headrace") in capsys.readouterr().out


def test_a_mistake_is_one_line(capsys, monkeypatch):
    def fail(args):
        raise ValueError("op(arg): expected 1, got 2\nand more")

    monkeypatch.delenv("HEADRACE_TRACEBACK", raising=False)
    monkeypatch.setattr(info, "run", fail)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "headrace info: op(arg): expected 1, got 2\n"
    monkeypatch.setenv("HEADRACE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="expected 1"):
        cli.main(["info"])


def test_a_reader_that_leaves():
    done = subprocess.run(
        f"{shlex.join(warm.python(*warm.TORCH))} -c '{MAIN}' info --json | head -n 1", shell=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "{"
    assert "Traceback" not in done.stderr


READ = re.compile(
    r"""(?:getenv\(|environ(?:\.get)?[(\[]|\$ENV\{|env\s*=\s*)\s*["']?(HEADRACE_\w+)"""
)


def variables_read():
    files = [ROOT / "pyproject.toml", ROOT / "CMakeLists.txt"]
    for folder in ("python", "kernels", "csrc", "cmake"):
        files += [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return {name for path in files for name in READ.findall(path.read_text(errors="replace"))}


def test_every_variable_read_is_documented():
    table = (ROOT / "docs" / "environment.md").read_text()
    documented = set(re.findall(r"^\| `(HEADRACE_\w+)`", table, re.MULTILINE))
    assert variables_read() == documented == set(info.VARIABLES)


@pytest.mark.parametrize(
    "line", ['os.environ.get("HEADRACE_X")', "std::getenv('HEADRACE_X')", '{ env = "HEADRACE_X" }']
)
def test_a_read_would_be_seen(line):
    assert READ.findall(line) == ["HEADRACE_X"]
