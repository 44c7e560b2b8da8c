# SPDX-License-Identifier: Apache-2.0
"""Presets of schedulers: each proof passes, and fails when the policy forgets its rule."""

import pytest

from headrace import presets
from headrace.presets import scheduling
from headrace.streams import Event, Server
from headrace.streams.policies import (
    AppendUpdate,
    JustInTime,
    PrefixGroups,
    ProgramPause,
    Retention,
    Urgency,
)
from headrace.streams.policies.policy import Policy

from ..streams.tiny import TinyDecoder

POLICIES = {
    "batch_llm": PrefixGroups,
    "stream2llm": AppendUpdate,
    "jitserve": JustInTime,
    "thunder_agent": ProgramPause,
    "saga": Retention,
    "hexgen_text2sql": Urgency,
}


@pytest.mark.parametrize("name", POLICIES)
def test_it_is_proved(name):
    checks = presets.get(name).check(TinyDecoder())
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("name", POLICIES)
def test_the_proof_fails_without_the_rule(name, monkeypatch):
    policy = POLICIES[name]
    if name == "stream2llm":
        monkeypatch.setattr(policy, "swaps", lambda self, seat, desk: True)
    elif name == "saga":
        plain = policy.back
        monkeypatch.setattr(policy, "back", lambda self, name, desk: -plain(self, name, desk))
    elif name == "hexgen_text2sql":
        monkeypatch.setattr(policy, "order", Policy.order)
    elif name == "jitserve":
        monkeypatch.setattr(policy, "_fit", lambda self, jobs, desk: (jobs[::-1], []))
    else:
        for method in ("pick", "victims", "finished"):
            monkeypatch.setattr(policy, method, getattr(Policy, method))
    assert not all(check.passed for check in presets.get(name).check(TinyDecoder()))


@pytest.mark.parametrize("name", POLICIES)
def test_it_opens_a_server(name):
    options = {"capacity": 99} if name == "thunder_agent" else {}
    server = presets.get(name).open(TinyDecoder(), page_size=16, pool_pages=20, **options)
    assert isinstance(server, Server)
    assert type(server.policy) is POLICIES[name]
    server.push(Event(0.0, "a", "open"), Event(0.0, "a", "say", (1, 2, 3), max_new=2))
    while server.turn():
        pass
    assert len(server.run.outputs[1]) == 2
    server.close()
    server.engine.close()


def test_parkings_are_those_of_the_log():
    made = type("Run", (), {"log": [{"at": 1.0, "parked": [["a", "swap"]]}, {"at": 2.0}]})
    assert scheduling.parkings(made) == [(1.0, "a", "swap")]
