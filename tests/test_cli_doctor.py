# SPDX-License-Identifier: Apache-2.0
"""`headrace doctor` finds what is missing, says how to get it, and survives a broken package."""

import copy
import json
import subprocess
import sys

import pytest

import headrace
from headrace import doctor, info
from headrace.cli import main


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
    assert find(found, "the live view of `headrace stream`").state == "ok"


def test_it_works_where_the_extension_does_not_load(tmp_path):
    code = (
        "import sys; sys.modules['headrace._C'] = None\n"
        "from headrace import doctor\n"
        "sys.exit(doctor.main([]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken  the compiled extension" in done.stdout
    assert "-> install headrace again" in done.stdout
    assert not done.stderr
    assert headrace.load_error is None
