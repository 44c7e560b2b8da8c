# SPDX-License-Identifier: Apache-2.0
"""Libraries that people already run; each submodule imports its own, and this imports none."""
