# SPDX-License-Identifier: Apache-2.0
"""Presets of schedulers: each proof passes, and fails when the policy forgets its rule."""

import pytest

from headrace import presets
from headrace.presets import scheduling
from headrace.streams import Event, Server
from headrace.streams.policies import (
    AppendUpdate,
    JustInTime,
    Lengths,
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


def failed(name):
    return [check.name for check in presets.get(name).check(TinyDecoder()) if not check.passed]


WITHOUT = {
    "batch_llm": "prompt tokens read beyond the distinct prefixes",
    "stream2llm": "streams preempted by the dearer way",
    "jitserve": "60 requests/s: share in time of earliest deadline first, less its own",
    "thunder_agent": "pages lost, as a share of those of arrival order",
    "saga": "hit rate of recency, less its own",
    "hexgen_text2sql": "steps that read a less urgent request before a more urgent one",
}
"""What fails when the rule is forgotten."""


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
    assert WITHOUT[name] in failed(name)


def test_the_proof_fails_when_work_is_guessed_wrong(monkeypatch):
    later = Lengths.later
    monkeypatch.setattr(Lengths, "later", lambda self, job, *at: 3 * later(self, job, *at))
    assert failed("hexgen_text2sql") == [WITHOUT["hexgen_text2sql"]]
    monkeypatch.setattr(Lengths, "later", later)
    total = Lengths.total
    monkeypatch.setattr(Lengths, "total", lambda self, *of: 9 + total(self, *of))
    assert failed("hexgen_text2sql") == [WITHOUT["hexgen_text2sql"]]


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
