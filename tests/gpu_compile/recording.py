# SPDX-License-Identifier: Apache-2.0
"""The launches that ops make of Triton kernels, taken down, and compiled without a GPU.

Ops run with a recorder in the place of Triton's launcher, so that what is compiled is what a GPU
would be asked to compile.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import headrace.kernels
import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction

import headrace

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may take
OPTIONS = {"num_warps", "num_stages", "maxnreg", "enable_fp_fusion"}
ASSEMBLER = ("-v", "--regAllocOptLevel=2")
"""What Triton asks of it where multiplications may be fused with additions, as here."""
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
}


def kernels():
    """Every function of the package that is launched, by name: those that end in _kernel."""
    found = {}
    for info in pkgutil.walk_packages(headrace.kernels.__path__, "headrace.kernels."):
        if "triton" not in info.name.rsplit(".", 1)[-1]:
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if isinstance(value, JITFunction) and name.endswith("_kernel"):
                found[name] = value
    return found


@contextlib.contextmanager
def recorder():
    """Gives a function that calls what it is given and returns the launches that it makes, none of
    which is carried out: [(kernel, arguments, keyword arguments)]."""
    kernels()  # modules are loaded before they are patched
    made, undo = [], []

    def run(fn, *args, grid=None, warmup=False, **kwargs):
        made.append((fn, args, kwargs))

    def patch(owner, name, value):
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def record(call):
        made.clear()
        with headrace.use_backend("triton"):
            call()
        return list(made)

    patch(JITFunction, "run", run)
    for name, module in list(sys.modules.items()):
        if name.startswith("headrace.") and hasattr(module, "on_device"):
            patch(module, "on_device", lambda op, x: contextlib.nullcontext())
    try:
        yield record
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def arguments(fn, args, kwargs):
    """Of a launch: {name: type}, {name: constant} and attributes, as the compiler takes them."""
    values = dict(zip(fn.arg_names, args, strict=False))
    values |= {k: v for k, v in kwargs.items() if k not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for i, param in enumerate(fn.params):
        value = values[param.name]
        if param.is_constexpr or value is None:
            signature[param.name] = "constexpr"
            constants[param.name] = value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        elif value == 1 and not param.do_not_specialize:
            signature[param.name] = "constexpr"
            constants[param.name] = value
        else:
            signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not param.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def described(fn, args, kwargs):
    """A line that tells two launches apart which compile to different kernels."""
    signature, constants, attributes = arguments(fn, args, kwargs)
    options = {k: v for k, v in kwargs.items() if k in OPTIONS}
    aligned = [i for (i,) in attributes]
    return f"{fn.__name__} {list(signature.values())} {constants} {aligned} {options}"


def _source(fn, args, kwargs):
    """What the compiler takes, and options for it."""
    signature, constants, attributes = arguments(fn, args, kwargs)
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    return source, {k: v for k, v in kwargs.items() if k in OPTIONS}


def compile_launch(fn, args, kwargs, capability):
    source, picked = _source(fn, args, kwargs)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=picked)


def lowered(fn, args, kwargs, capability=90):
    """The first form that the compiler brings a launch into, which takes a fiftieth of the time."""
    source, picked = _source(fn, args, kwargs)
    target = GPUTarget("cuda", capability, 32)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(picked)
    made = backend.get_codegen_implementation(options), backend.get_module_map()
    return source.make_ir(target, options, *made, context)


def assembled(ptx):
    """What Triton's assembler reports of a kernel."""
    target = next(line.split()[1] for line in ptx.splitlines() if line.startswith(".target"))
    capability = int("".join(c for c in target if c.isdigit()))
    tool = triton.backends.nvidia.compiler.get_ptxas(capability).path
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        where = ["-arch=" + target.rstrip(","), str(source), "-o", f"{folder}/kernel"]
        done = subprocess.run([tool, *ASSEMBLER, *where], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stderr + done.stdout
