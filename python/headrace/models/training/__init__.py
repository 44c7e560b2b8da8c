# SPDX-License-Identifier: Apache-2.0
"""How the packaged decoders were made: data, training attention, loop, evaluation. Plain torch;
not part of the engine.
"""
