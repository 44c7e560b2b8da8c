# SPDX-License-Identifier: Apache-2.0
"""Libraries that people already run. Each submodule imports its library; importing this does not."""
