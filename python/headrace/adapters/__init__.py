# SPDX-License-Identifier: Apache-2.0
"""Adapters: how their weights are kept, and which there are."""

from .bank import AdapterBank
from .blob import Adapter, Layer
from .codes import quantize_rows
from .config import AdapterConfig, Base, Module
from .gate import Gate
from .merge import Merged
from .peft_files import modules_of
from .records import NewAdapter, Revision
from .route import LoraRoute, invocation_start
from .site import LoraSite
from .store import AdapterStore

__all__ = [
    "Adapter",
    "AdapterBank",
    "AdapterConfig",
    "AdapterStore",
    "Base",
    "Gate",
    "Layer",
    "LoraRoute",
    "LoraSite",
    "Merged",
    "Module",
    "NewAdapter",
    "Revision",
    "invocation_start",
    "modules_of",
    "quantize_rows",
]
