# SPDX-License-Identifier: Apache-2.0
"""Adapters: how their weights are kept."""

from .codes import quantize_rows

__all__ = ["quantize_rows"]
