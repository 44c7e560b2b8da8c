# SPDX-License-Identifier: Apache-2.0
"""`headrace doctor` finds what is missing, says how to get it, and survives a broken package."""

import copy
import json
import re
import subprocess
from pathlib import Path

import pytest

import headrace
from headrace import doctor, info
from headrace.cli import main
from tests import warm


@pytest.fixture(scope="module")
def report():
    return info.collect()


def find(found, feature):
    (one,) = [f for f in found if f.feature == feature]
    return one


def test_a_sound_installation(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok      the compiled extension" in out
    assert main(["doctor", "--json"]) == 0
    assert all(f["state"] != "broken" for f in json.loads(capsys.readouterr().out))


def test_what_is_off_says_what_to_do(report):
    for finding in doctor.examine(report):
        assert finding.state in ("ok", "off", "broken")
        assert (finding.state == "ok") == (finding.remedy == ""), finding


@pytest.mark.parametrize(
    ("change", "feature", "state", "why"),
    [
        ({"versions": {"torch": "2.10.1"}}, "torch", "broken", "older than 2.11"),
        ({"versions": {"torch": None}}, "torch", "broken", "not installed"),
        ({"versions": {"torch": "3.0"}}, "torch", "ok", "torch 3.0"),
        ({"isa": {"used": "scalar", "available": ["scalar", "avx2"]}},
         "CPU kernels", "off", "avx2"),
        ({"threads": {"torch": 1, "processors": 8}}, "threads", "off", "1 of 8"),
        ({"openmp": ["/a/libgomp.so.1", "/b/libiomp5.so"]},
         "one OpenMP runtime", "off", "several"),
        ({"backends": {"cuda": "on"}}, "CUDA kernels", "ok", ""),
        ({"backends": {"triton": "off: no NVIDIA device"}}, "Triton kernels", "off", "no NVIDIA"),
        ({"extension": {"loaded": False, "error": "ImportError: no symbol"}},
         "the compiled extension", "broken", "no symbol"),
    ],
)  # fmt: skip
def test_each_trouble_is_named(report, change, feature, state, why):
    ill = copy.deepcopy(report)
    for section, values in change.items():
        if isinstance(values, dict) and section != "extension":
            ill[section].update(values)
        else:
            ill[section] = values
    finding = find(doctor.examine(ill), feature)
    assert finding.state == state
    assert why in finding.why


def test_a_missing_package_costs_its_feature_only(report, monkeypatch):
    ill = copy.deepcopy(report)
    ill["versions"]["matplotlib"] = None
    known = info.version
    monkeypatch.setattr(info, "version", lambda p: None if p == "matplotlib" else known(p))
    found = doctor.examine(ill)
    assert find(found, "plots").remedy == "pip install 'headrace[cli]'"
    assert (
        find(found, "the live view of `headrace stream`, the tables of `headrace bench`").state
        == "ok"
    )


PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def test_every_extra_is_told():
    text = PYPROJECT.read_text("utf-8")
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\n", text, re.S)[1]
    wanted = set(re.findall(r'"([a-z]+)[>=;]', extras))
    assert {"rich", "matplotlib", "transformers", "peft", "av", "triton"} <= wanted
    told = {package for _, package, _ in doctor.OPTIONAL} | {"triton"}  # among the backends
    assert wanted <= told
    for _, package, extra in doctor.OPTIONAL:
        if extra is None:  # then everybody has it
            assert re.search(rf'^dependencies = .*"{package}>', text, re.M)
        else:
            assert re.search(rf'^{extra} = .*"{package}>', text, re.M)


@pytest.mark.parametrize(
    ("version", "state"),
    [("5.22.9", "off"), ("5.23.0", "ok"), ("5.23.7.post1", "ok"), ("5.24.0", "off"), ("6", "off")],
)
def test_a_package_of_another_version_is_named(report, monkeypatch, version, state):
    named = ["transformers-x>=9", "transformers<5.24,>=5.23; extra == 'transformers'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: named)
    ill = copy.deepcopy(report)
    ill["versions"]["transformers"] = version
    finding = find(doctor.examine(ill), "stock models: `integrations.transformers`")
    assert finding.state == state
    assert f"transformers {version}" in finding.why
    assert ("<5.24,>=5.23" in finding.why) == (state == "off")


@pytest.mark.parametrize("package", [row[1] for row in doctor.OPTIONAL])
def test_each_package_that_is_missing_has_its_feature_and_its_way_in(report, monkeypatch, package):
    ill = copy.deepcopy(report)
    ill["versions"][package] = None
    known = info.version
    monkeypatch.setattr(info, "version", lambda p: None if p == package else known(p))
    (off,) = [f for f in doctor.examine(ill) if f.why == f"{package} is not installed"]
    assert off.state == "off"
    assert off.remedy.startswith("pip install '")


def test_triton_that_is_missing(report):
    ill = copy.deepcopy(report)
    ill["backends"]["triton"] = "off: triton is not installed"
    assert find(doctor.examine(ill), "Triton kernels").remedy == "pip install 'headrace[triton]'"


def test_gpu_and_compiler(report, monkeypatch, tmp_path):
    with_one = {**report, "gpu": ["NVIDIA H200"]}
    assert find(doctor.examine(with_one), "a GPU").why == "NVIDIA H200"
    assert find(doctor.examine({**report, "gpu": []}), "a GPU").state == "off"
    broken = {**report, "gpu": {"error": "OSError: no"}}
    assert find(doctor.examine(broken), "a GPU").why == "OSError: no"

    feature = "nvcc, for the CUDA kernels"
    compiler = tmp_path / "bin/nvcc"
    for name in ("PATH", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    assert "CUDACXX" in find(doctor.examine(report), feature).remedy
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert find(doctor.examine(report), feature).why == str(compiler)
    monkeypatch.setenv("CUDACXX", str(tmp_path / "none"))  # as CMake: what is named, or nothing
    assert find(doctor.examine(report), feature).state == "off"


def test_it_works_where_the_extension_does_not_load(tmp_path):
    code = (
        "import sys; sys.modules['headrace._C'] = None\n"
        "from headrace import doctor\n"
        "sys.exit(doctor.main([]))\n"
    )
    done = subprocess.run([*warm.python(*warm.TORCH), "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken  the compiled extension" in done.stdout
    assert "-> install headrace again" in done.stdout
    assert not done.stderr
    assert headrace.load_error is None
