# SPDX-License-Identifier: Apache-2.0
"""Decoders on disk: bf16 safetensors with the configuration in the metadata, and the names of
those packaged.
"""

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

from .decoder import Decoder, DecoderConfig

FORMAT = "headrace.decoder.1"
_NAMES = ("bytes-stream", "bytes-dense", "bytes-sink-logits")
_PER_LAYER = 8  # tensors of a layer


def names() -> list[str]:
    """Names of the models that come with the package, the default first."""
    return list(_NAMES)


def save(
    model: Decoder, path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Write weights as bf16 safetensors with the configuration in the file's metadata, beside the
    `metadata` given.

    The file appears whole or not at all.
    """
    target = Path(path)
    tensors = {
        name: p.detach().to("cpu", torch.bfloat16).contiguous()
        for name, p in model.named_parameters()
    }
    metadata = {
        **(metadata or {}),
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
    }
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load(name_or_path: str | os.PathLike[str]) -> Decoder:
    """A decoder with fp32 weights in eval mode, from a packaged name (see `names`) or the path of a
    file by `save`.

    ValueError: unknown name, or a file that is not a whole, finite decoder of this format. Reads no
    network.
    """
    name = os.fspath(name_or_path)
    if name in _NAMES:
        path = Path(__file__).parent / f"{name}.safetensors"
        if not path.is_file():
            raise ValueError(
                f"load(name_or_path): expected the weights of {name!r} beside the code, "
                "got no file; reinstall the package"
            )
    else:
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"load(name_or_path): expected one of {', '.join(_NAMES)} or the path of a "
                f".safetensors file, got {name!r}"
            )
    try:
        with safe_open(path, framework="pt") as file:
            config = _read_config(path, file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"load({path}): expected a whole safetensors file, got: {_one_line(error)}"
        ) from None
    _check_tensors(path, config, tensors)
    model = Decoder(config)
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return model.eval()


def _read_config(path: Path, metadata: dict[str, str] | None) -> DecoderConfig:
    found = (metadata or {}).get("format")
    if found != FORMAT:
        raise ValueError(f"load({path}): expected format {FORMAT!r} in the metadata, got {found!r}")
    try:
        fields = json.loads((metadata or {}).get("config", ""))
        expected = {field.name for field in dataclasses.fields(DecoderConfig)}
        if not isinstance(fields, dict) or set(fields) != expected:
            raise ValueError(f"expected the fields {', '.join(sorted(expected))}")
        return DecoderConfig(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"load({path}): the configuration in the metadata is bad: {_one_line(error)}"
        ) from None


def _check_tensors(path: Path, config: DecoderConfig, tensors: dict[str, Tensor]) -> None:
    count = 2 + _PER_LAYER * config.layers + config.sink_logits
    if len(tensors) != count:
        raise ValueError(
            f"load({path}): expected {count} tensors for {config.layers} layers, got {len(tensors)}"
        )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"load({path}): tensor {name!r} is missing")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"load({path}): expected tensor {name!r} of shape {list(shape)}, "
                f"got {list(tensors[name].shape)}"
            )
        if not tensors[name].is_floating_point() or not tensors[name].isfinite().all():
            raise ValueError(
                f"load({path}): expected finite floating-point values in tensor {name!r}"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
