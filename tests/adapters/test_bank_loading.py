# SPDX-License-Identifier: Apache-2.0
"""The bank: adapters that arrive layer by layer while a step runs."""

import threading

import pytest
import torch

import headrace
from headrace.adapters import bank_loader
from headrace.adapters.bank_site import Site

from .bank_weights import X, adapter, bank_of, dense, packed, state, update


def slow(monkeypatch, bank, gates):
    """Layers wait for their gate (an event) before they are written; gives the order of work."""
    done, write = [], bank._seats._write

    def gated(one, layer):
        if layer in gates:
            assert gates[layer].wait(20)
        write(one, layer)
        done.append((one.slot, layer))

    monkeypatch.setattr(bank._seats.loader, "_work", gated)
    return done


def test_the_first_layer_runs_while_later_ones_arrive(monkeypatch):
    monkeypatch.setattr(bank_loader, "SMALL", 0)
    with bank_of() as bank:
        gates = {1.0: threading.Event()}
        done = slow(monkeypatch, bank, gates)
        config, tensors = adapter(3, 4)
        bank.load_tensors(config, tensors, name="a", wait=False)
        with bank.route([bank.find("a")], [5]) as route:
            y = torch.zeros(5, 64)
            route.add_to("q.0", X, y)  # does not wait for layer 1
            assert done == [(0, 0)]
            torch.testing.assert_close(
                y.double(), dense(config, tensors, "q.0", X), atol=1e-5, rtol=1e-5
            )
            threading.Timer(0.05, gates[1.0].set).start()
            y.zero_()
            route.add_to("q.1", X, y)
            torch.testing.assert_close(
                y.double(), dense(config, tensors, "q.1", X), atol=1e-5, rtol=1e-5
            )


def test_cold_adapters_of_a_step_arrive_layer_by_layer_and_before_those_ahead(monkeypatch):
    with bank_of(background=False) as bank:
        done = slow(monkeypatch, bank, {})
        made = [packed(*adapter(i, 2)) for i in range(3)]
        for one in made:
            bank.find(one)
        bank.load(made[2], wait=False)
        with bank.route(made[:2], [1, 1]) as route:
            for site in ("q.0", "q.1"):
                route.add_to(site, X[:2], torch.zeros(2, 64))
        assert done == [(1, 0), (2, 0), (1, 1), (2, 1)]
        with bank.route(made[2:], [1]) as route:
            route.add_to("q.0", X[:1], torch.zeros(1, 64))
        assert done[4:] == [(0, 0)]


@pytest.mark.usefixtures("threaded")
def test_a_load_that_fails_leaves_the_others_alone(monkeypatch):
    with headrace.debug(), bank_of() as bank:
        bank.load_tensors(*adapter(1, 3), name="good")
        want = update(bank, "q.1", "good", X, 64)
        write = Site.write

        def broken(self, one, slot, extents):
            write(self, one, slot, extents)
            if self.name == "v.1":
                raise OSError("the disk is gone")

        monkeypatch.setattr(Site, "write", broken)
        before = state(bank)
        config, tensors = adapter(2, 3)
        with pytest.raises(OSError, match="the disk is gone"):
            bank.load_tensors(config, tensors, name="bad")
        assert state(bank)[:4] == before[:4]
        assert state(bank)[5:] == before[5:]
        bad = bank.find(packed(config, tensors))
        with bank.route([bad, bank.find("good")], [5, 5]) as route:
            x, y = torch.cat([X, X]), torch.zeros(10, 64)

            def both():
                for site in ("q.0", "q.1"):
                    route.add_to(site, x, y)

            with pytest.raises(OSError, match="the disk is gone"):
                both()
        assert [r.revision for r in bank.residents()] == [bank.find("good").revision]
        monkeypatch.setattr(Site, "write", write)
        assert torch.equal(update(bank, "q.1", "good", X, 64), want)
        torch.testing.assert_close(
            update(bank, "q.1", bad, X, 64).double(),
            dense(config, tensors, "q.1", X), atol=1e-5, rtol=1e-5,
        )  # fmt: skip
