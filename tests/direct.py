# SPDX-License-Identifier: Apache-2.0
"""The way of small calls alone: what it does not take is told, and not done in another way."""

from __future__ import annotations

from typing import Any

from headrace import compiled, ops
from headrace.ops import registry

UNUSUAL = object()
"""What `direct` gives for a call that goes through torch."""

IN_ORDER = {
    name: compiled.direct(
        spec, registry._kinds(spec), lambda *values: UNUSUAL, registry._LEAD[name]
    )
    for name, spec in ops.specs().items()
}
"""By op, a function of its arguments in the order of the schema."""


def direct(name: str, *args: Any, **kwargs: Any) -> Any:
    """The same of arguments by name, too."""
    spec = ops.specs()[name]
    given = spec.bind(*args, **kwargs)
    return IN_ORDER[name](*(given[n] for n in spec.parameters))
