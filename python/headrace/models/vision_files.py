# SPDX-License-Identifier: Apache-2.0
"""Vision models on disk: a safetensors file, or a directory with a configuration beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .vision import Vision, VisionConfig

FORMAT = "headrace.vision.1"
NAME = "video-patches"
LATER = {"reach"}  # fields that older files of the format lack
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_vision(
    model: Vision, path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Writes weights as bf16 safetensors with the configuration in the metadata; to a directory
    where `path` has no suffix, with the configuration as config.json beside it. Each file appears
    whole or not at all.
    """
    target = Path(path)
    fields = json.dumps(dataclasses.asdict(model.config))
    if not target.suffix:
        target.mkdir(parents=True, exist_ok=True)
        (target / CONFIG).write_text(json.dumps({"format": FORMAT, **json.loads(fields)}, indent=1))
        target = target / WEIGHTS
    tensors = {
        name: p.detach().to("cpu", torch.bfloat16).contiguous()
        for name, p in model.named_parameters()
    }
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        save_file(
            tensors, temporary, metadata={**(metadata or {}), "format": FORMAT, "config": fields}
        )
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load_vision(name_or_path: str | os.PathLike[str] = NAME) -> Vision:
    """A vision model with fp32 weights in eval mode: the packaged one by its name, a file by
    `save_vision`, or a directory with config.json and model.safetensors.

    ValueError names what is missing or not as expected. Reads no network.
    """
    path = Path(name_or_path)
    if os.fspath(name_or_path) == NAME:
        path = Path(__file__).parent / f"{NAME}.safetensors"
    fields = None
    if path.is_dir():
        fields = _directory(path)
        path = path / WEIGHTS
    elif not path.is_file():
        raise ValueError(
            f"load_vision(name_or_path): expected {NAME}, a .safetensors file or a directory with "
            f"{CONFIG} and {WEIGHTS}, got {os.fspath(name_or_path)!r}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"load_vision({path}): expected a whole safetensors file, got: {_line(error)}"
        ) from None
    try:
        fields = json.loads(about.get("config", "null")) if fields is None else fields
        config = _config(fields, about.get("format") if "format" not in (fields or {}) else None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"load_vision({path}): bad configuration: {_line(error)}") from None
    _check(path, config, tensors)
    model = Vision(config)
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return model.eval()


def _directory(path: Path) -> dict:
    lacking = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if lacking:
        raise ValueError(
            f"load_vision({path}): expected {CONFIG} and {WEIGHTS} in the directory, "
            f"{' and '.join(lacking)} missing"
        )
    try:
        found = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"load_vision({path / CONFIG}): not JSON: {_line(error)}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        kind = found.get("model_type", "another") if isinstance(found, dict) else type(found)
        raise ValueError(
            f"load_vision({path / CONFIG}): expected format {FORMAT!r}, got that of {kind!r}; "
            "headrace.models.save_vision writes such directories"
        )
    return {key: value for key, value in found.items() if key != "format"}


def _config(fields: object, found: str | None) -> VisionConfig:
    expected = {field.name for field in dataclasses.fields(VisionConfig)}
    if not isinstance(fields, dict) or not expected - LATER <= set(fields) <= expected:
        raise ValueError(f"expected format {FORMAT!r} with {', '.join(sorted(expected))}")
    return VisionConfig(**fields)


def _check(path: Path, config: VisionConfig, tensors: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Vision(config).named_parameters()}
    if extra := sorted(set(tensors) - set(shapes)):
        raise ValueError(f"load_vision({path}): tensor {extra[0]!r} is not of this model")
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"load_vision({path}): tensor {name!r} is missing")
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise ValueError(
                f"load_vision({path}): expected tensor {name!r} of shape {list(shape)}, "
                f"got {list(found.shape)}"
            )
        if not found.is_floating_point() or not found.isfinite().all():
            raise ValueError(f"load_vision({path}): expected finite numbers in tensor {name!r}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
