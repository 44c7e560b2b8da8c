# SPDX-License-Identifier: Apache-2.0
"""Four first bytes and the newest 252, whatever came between."""

from headrace import models, presets

with presets.streaming_llm(models.load("bytes-stream"), sinks=4, window=252) as engine:
    stream = engine.open()
    report = stream.feed(b"import os\n" * 100)
    print(f"{stream.tokens} bytes read, {report.alive} alive, {engine.resident_bytes} bytes held")
    print(stream.say(max_new=24))
