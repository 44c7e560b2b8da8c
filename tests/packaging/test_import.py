# SPDX-License-Identifier: Apache-2.0
"""What importing headrace does, and what it must not do. Each case is a process of its own, in
most of which torch was imported before."""

import json
import os
import re
import subprocess
import sys

import pytest

import headrace
from tests import warm


def python(code, fresh=False, **environment):
    """stdout, stderr and status of an interpreter."""
    env = {**os.environ, **environment}
    for name in ("HEADRACE_ISA", "HEADRACE_BACKEND"):
        if name not in environment:
            env.pop(name, None)
    begun = [sys.executable] if fresh else warm.python(*warm.TORCH)
    return subprocess.run(
        [*begun, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


def test_import_starts_nothing():
    done = python(
        "import sys, json, torch\n"
        "events = []\n"
        "sys.addaudithook(lambda name, args: events.append(name) if name in\n"
        "    ('subprocess.Popen', 'os.system', 'os.exec', 'os.fork', 'socket.connect') else None)\n"
        "import headrace, headrace.ops\n"
        "print(json.dumps({'triton': 'triton' in sys.modules, 'events': events,\n"
        "    'inductor': 'torch._inductor.compile_fx' in sys.modules,\n"
        "    'cuda': torch.cuda.is_initialized(), 'error': repr(headrace.load_error),\n"
        "    'ops': len(headrace.ops.specs())}))\n",
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("ops") > 0
    assert seen == {
        "triton": False,
        "events": [],
        "inductor": False,
        "cuda": False,
        "error": "None",
    }


def test_what_the_ops_do_not_need_loads_at_first_use():
    done = python(
        "import sys, headrace\n"
        "later = [f'headrace.{n}' for n in\n"
        "    ('adapters', 'filters', 'memory', 'models', 'presets', 'recipes', 'streams')]\n"
        "assert [n for n in later if n in sys.modules] == []\n"
        "assert set(headrace.__all__) <= set(dir(headrace))\n"
        "from headrace import Sink, wrap\n"
        "assert wrap is headrace.streams.wrap and Sink is headrace.memory.Sink\n"
        "assert 'headrace.presets' not in sys.modules\n"
        "assert [getattr(headrace, n.partition('.')[2]).__name__ for n in later] == later\n"
    )
    assert done.returncode == 0, done.stderr


def test_what_fails_to_load_is_told_by_name():
    done = python("import sys, headrace; sys.modules['headrace.memory.pool'] = None; headrace.Sink")
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ImportError: headrace\(Sink\): expected the package", last), last


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16"])
def test_isa_variable(level):
    from headrace import _C

    done = python("from headrace import _C; print(_C.active_isa())", HEADRACE_ISA=level)
    if level in _C.available_isas():
        assert done.stdout.strip() == level
    else:
        assert done.returncode != 0
        assert f"got '{level}'" in done.stderr


def test_impossible_isa_raises_at_import():
    done = python("import headrace.ops", HEADRACE_ISA="avx9")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ImportError: headrace\(\w+\): expected", last), last
    assert "HEADRACE_ISA: expected one of scalar" in last
    assert "got 'avx9'" in last


def test_impossible_isa_raises_at_first_use():
    done = python("import headrace\nprint('imported')\nheadrace.ops", HEADRACE_ISA="avx9")
    assert done.stdout.strip() == "imported"
    assert done.returncode != 0
    assert "got 'avx9'" in done.stderr.strip().splitlines()[-1]


def test_unknown_backend_raises():
    done = python("from headrace import ops", HEADRACE_BACKEND="gpu")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "expected one of auto, reference, cpu, triton, cuda, got 'gpu'" in last


def test_unknown_names_stay_attribute_errors():
    import headrace

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = headrace.nothing


@pytest.mark.parametrize("name", ["recipes", "Filter"])
def test_what_cannot_be_loaded_later_is_told_in_a_line(name, monkeypatch):
    for package in ("recipes", "filters"):
        monkeypatch.setitem(sys.modules, f"headrace.{package}", None)
    monkeypatch.delitem(vars(headrace), name, raising=False)
    told = rf"headrace\({name}\): expected the package to load, got .*; see `headrace info`"
    with pytest.raises(ImportError, match=told):
        getattr(headrace, name)
