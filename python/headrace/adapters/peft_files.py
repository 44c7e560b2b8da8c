# SPDX-License-Identifier: Apache-2.0
"""Folders of the peft package: adapter_config.json beside adapter_model.safetensors.

Source: huggingface/peft 0.21, `LoraConfig` and `get_pattern_key`. Every option is either honoured,
of no consequence once the weights are trained, or refused by name; an option that is not known
here is refused unless it is off.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import bad_type, bad_value, unsupported
from .blob import Adapter
from .config import CODES, AdapterConfig, Base, Module, few

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
HONOURED = {
    "alora_invocation_tokens",
    "alpha_pattern",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
}
# Of training only, or of another library.
WITHOUT_CONSEQUENCE = {
    "auto_mapping",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
OFF: tuple[Any, ...] = (None, False, "none", [], {}, "")
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # leave the base alone


def read(op: str, folder: str | os.PathLike[str], base: Base) -> tuple[Any, dict, dict]:
    """(configuration, tensors as `AdapterStore.add` takes them, adapter_config.json).

    ValueError: files that are not whole, missing or extra tensors, another base.
    NotImplementedError names an option that cannot be honoured.
    """
    path = Path(folder)
    raw = _read_json(op, path / CONFIG)
    check(op, raw, base)
    tensors = _read_tensors(op, path / WEIGHTS)
    return parse(op, raw, tensors, base), tensors, raw


def check(op: str, raw: Mapping[str, Any], base: Base) -> None:
    """Raises for options that cannot be honoured, and for another base."""
    _check_options(op, raw)
    said = raw.get("base_model_name_or_path")
    if said and said not in (base.name, *base.known_as):
        raise bad_value(
            op, "base", base.name, said, "add_base with known_as where they are the same"
        )


def parse(
    op: str, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Base
) -> AdapterConfig:
    """The configuration of tensors as `named` names them, under options that were checked."""
    names = sorted({key.rpartition(".")[0] for key in tensors})
    extra = [n for n in names if not _targeted(op, raw, n)]
    if extra:
        raise bad_value(op, "tensors", "those of target_modules only", f"extra: {few(extra)}")
    if any(n in base.modules for n in names):
        absent = [n for n in base.modules if n not in names and _expected(op, raw, n)]
        if absent:
            raise bad_value(
                op, "tensors", "all that target_modules name", f"none for {few(absent)}"
            )
    return AdapterConfig(
        base=base.name,
        modules=tuple(_module(op, raw, name, tensors) for name in names),
        rslora=bool(raw.get("use_rslora")),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        invocation=tuple(raw["alora_invocation_tokens"])
        if raw.get("alora_invocation_tokens")
        else None,
    )


def base_named(op: str, folder: str | os.PathLike[str]) -> str:
    """The base that a folder says it is for."""
    said = _read_json(op, Path(folder) / CONFIG).get("base_model_name_or_path")
    if not isinstance(said, str) or not said:
        raise bad_value(op, "base", "the name of a base", "none in the folder")
    return said


def _read_json(op: str, path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise bad_value(op, "path", f"a readable {path}", error.strerror) from None
    except ValueError as error:
        raise bad_value(op, "path", f"JSON in {path}", error) from None
    if not isinstance(raw, dict):
        raise bad_value(op, "path", f"a JSON object in {path}", type(raw).__name__)
    return raw


def _check_options(op: str, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise unsupported(op, "peft_type", "LORA", raw.get("peft_type"))
    start = raw.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise unsupported(
            op,
            "init_lora_weights",
            ", ".join(map(str, PLAIN_STARTS)),
            repr(start),
            "it changes the base; convert the adapter with peft",
        )
    for key, value in raw.items():
        known = key in HONOURED or key in WITHOUT_CONSEQUENCE or key == "init_lora_weights"
        if not known and value not in OFF:
            raise unsupported(op, key, "None or False", json.dumps(value)[:60])
    for key, kind in (
        ("r", int),
        ("lora_alpha", (int, float)),
        ("rank_pattern", (dict, type(None))),
        ("alpha_pattern", (dict, type(None))),
        ("alora_invocation_tokens", (list, type(None))),
    ):
        value = raw.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise bad_type(op, key, "what peft writes", type(value).__name__)


def _read_tensors(op: str, path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if not path.is_file():
        raise bad_value(op, "path", f"a file {path}", "none", "pickled weights are not read")
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, tensor = named(op, key, file.get_tensor(key))
                found[name] = tensor
    except (SafetensorError, OSError) as error:
        raise bad_value(
            op, "path", f"a whole safetensors file {path}", " ".join(str(error).split())
        ) from None
    if not found:
        raise bad_value(op, "path", f"tensors in {path}", "none")
    return found


def named(op: str, key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor under the name that `AdapterStore.add` takes."""
    name, part = _split(op, key)
    if tensor.dtype not in CODES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise unsupported(op, key, "float32, float16, bfloat16", dtype)
    return f"{name}.{part}", tensor


def _split(op: str, key: str) -> tuple[str, str]:
    inner = key.removeprefix(PREFIX)
    for end, part in PARTS.items():
        if inner.endswith("." + end) and inner != key:
            return inner[: -len(end) - 1], part
    if "lora_embedding_" in key:
        raise unsupported(op, "tensors", "adapters of linear modules", f"an embedding's, {key}")
    raise bad_value(op, "tensors", f"names {PREFIX}MODULE.lora_A.weight", f"an extra tensor {key}")


def _pattern(op: str, patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The first pattern that the end of a module's name matches, as peft chooses."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise bad_value(op, "rank_pattern", "regular expressions", error) from None
    return default


def _module(op: str, raw: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> Module:
    wanted = {"a", "b"}
    wanted |= {"bias"} if raw.get("lora_bias") else set()
    wanted |= {"magnitude"} if raw.get("use_dora") else set()
    there = {p for p in PARTS.values() if f"{name}.{p}" in tensors}
    if wanted != there:
        what = f"no {min(wanted - there)}" if wanted - there else f"an extra {min(there - wanted)}"
        raise bad_value(op, "tensors", f"{', '.join(sorted(wanted))} of {name}", what)
    a, b = tensors[f"{name}.a"], tensors[f"{name}.b"]
    if a.dim() != 2 or b.dim() != 2:
        raise unsupported(op, name, "linear modules", f"{a.dim()} dimensions")
    rank = _pattern(op, raw.get("rank_pattern"), name, raw["r"])
    if rank == 0 or 0 in a.shape:
        raise bad_value(op, name, "a rank of 1 or more", 0)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise bad_value(op, name, f"rank {rank}", f"A {list(a.shape)} and B {list(b.shape)}")
    extras = {p: CODES[tensors[f"{name}.{p}"].dtype] for p in there - {"a", "b"}}
    alpha = _pattern(op, raw.get("alpha_pattern"), name, raw["lora_alpha"])
    return Module(name, rank, a.shape[1], b.shape[0], alpha, CODES[a.dtype], **extras)


def _targeted(op: str, raw: Mapping[str, Any], name: str) -> bool:
    target = raw.get("target_modules")
    if target is None or target == "all-linear":
        return True
    return _matches(op, "target_modules", target, name)


def _matches(op: str, arg: str, target: Any, name: str) -> bool:
    if isinstance(target, str):
        try:
            return re.fullmatch(target, name) is not None
        except re.error as error:
            raise bad_value(op, arg, "a regular expression", error) from None
    if not isinstance(target, list) or not all(isinstance(t, str) for t in target):
        raise bad_type(op, arg, "names or a pattern", type(target).__name__)
    return any(name == t or name.endswith("." + t) for t in target)


def _expected(op: str, raw: Mapping[str, Any], name: str) -> bool:
    """Whether peft would adapt this module of the base. "all-linear" leaves the choice to it."""
    target, layers = raw.get("target_modules"), raw.get("layers_to_transform")
    if target is None or target == "all-linear" or not _matches(op, "target_modules", target, name):
        return False
    out = raw.get("exclude_modules")
    if out and _matches(op, "exclude_modules", out, name):
        return False
    if layers is None or isinstance(target, str) or name in target:
        return True
    patterns = raw.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf".*\.{pattern}\.(\d+)\.", name)
        if found:
            return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def write(
    op: str, folder: str | os.PathLike[str], adapter: Adapter, raw: Mapping[str, Any] | None
) -> None:
    """Writes an adapter as peft does, whole or not at all; `raw`: the config it came with."""
    target = Path(folder)
    if target.exists():
        raise bad_value(op, "path", "a new folder", target)
    if not target.absolute().parent.is_dir():
        raise bad_value(op, "path", "a folder to put it in", target.absolute().parent)
    names = {part: end for end, part in reversed(PARTS.items())}
    tensors = {}
    for key, tensor in adapter.tensors().items():
        module, _, part = key.rpartition(".")
        tensors[f"{PREFIX}{module}.{names[part]}"] = tensor.clone(
            memory_format=torch.contiguous_format
        )
    work = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-"))
    try:
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
        raw = peft_config(adapter.config) if raw is None else raw
        (work / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", "utf-8")
        work.chmod(0o755)
        os.rename(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def peft_config(config: AdapterConfig) -> dict[str, Any]:
    """An adapter_config.json that gives each module its rank and alpha."""
    modules = config.modules
    rank = Counter(m.rank for m in modules).most_common(1)[0][0]
    alpha = Counter(m.alpha for m in modules).most_common(1)[0][0]
    exact = {m.name: "^" + re.escape(m.name) for m in modules}
    return {
        "alora_invocation_tokens": list(config.invocation) if config.invocation else None,
        "alpha_pattern": {exact[m.name]: _plain(m.alpha) for m in modules if m.alpha != alpha},
        "base_model_name_or_path": config.base,
        "bias": "none",
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _plain(alpha),
        "lora_bias": config.bias,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {exact[m.name]: m.rank for m in modules if m.rank != rank},
        "target_modules": [m.name for m in modules],
        "task_type": None,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
    }


def _plain(alpha: float) -> int | float:
    return int(alpha) if alpha == int(alpha) else alpha


def modules_of(path: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """Module names and weight shapes [outputs, inputs] in a model's safetensors file: everything
    with two dimensions.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise bad_value("modules_of", "path", f"a whole safetensors file {path}", error) from None
    return {key.removesuffix(".weight"): (s[0], s[1]) for key, s in shapes.items() if len(s) == 2}
