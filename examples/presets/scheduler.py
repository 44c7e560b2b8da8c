# SPDX-License-Identifier: Apache-2.0
"""Requests with deadlines of three kinds, served in time on the wall clock."""

from headrace import models, presets
from headrace.streams import traces

model = models.load("bytes-stream")
server = presets.jitserve(model, pool_pages=512, budget=64)
server.push(*traces.services(requests=8, rate=20))
while server.turn():
    pass
for kind in ("chat", "batch", "compound"):
    timing = server.run.timing(group=kind)
    print(f"{kind}: {timing.events} requests, {timing.missed} late, p99 {timing.lag_p99:.3f} s")
server.close()
