# SPDX-License-Identifier: Apache-2.0
"""The attention ops in Triton. Not yet seen running on a GPU."""

from .triton_dense import attention

__all__ = ["attention"]
