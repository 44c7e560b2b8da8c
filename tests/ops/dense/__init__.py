# SPDX-License-Identifier: Apache-2.0
"""Attention over contiguous keys, block-sparse."""
