# SPDX-License-Identifier: Apache-2.0
"""The bank: what a slot computes, who is evicted, and what is refused."""

import threading

import pytest
import torch
from safetensors.torch import save_file

import headrace
from headrace import AdapterBank, AdapterStore
from headrace.adapters import AdapterConfig, Base, Module, bank_loader
from headrace.adapters.bank_site import Site

from ..streams.tiny import TinyDecoder
from .bank_weights import adapter, base, shapes


def bank_of(**options):
    options = {"slots": 4, "rank_rows": 24, "max_rank": 12, **options}
    return AdapterBank(base(), **options)


def state(bank):
    """What must be the same after an error: who is where, and every number that a kernel reads."""
    seats = bank._seats
    tables = seats.tables
    return (
        [(r.revision, r.slot, r.extents, r.holds, r.pinned, r.worth) for r in bank.residents()],
        sorted(seats.free_slots), seats.rows.runs(), dict(bank._names), vars(bank.stats).copy(),
        tables.rows.tolist(), tables._ranks.tolist(),
    )  # fmt: skip


def update(bank, site, name, x, outputs):
    """What the slot of `name` adds at a site to 0 for each row of x."""
    y = torch.zeros(len(x), outputs)
    with bank.route([bank.find(name)], [len(x)]) as route:
        route.add_to(site, x, y)
    return y


def dense(config, tensors, module, x):
    a, b = (tensors[f"{module}.{part}"].double() for part in "ab")
    return config.scale(module) * (x.double() @ a.T) @ b.T


X = torch.randn(5, 32, generator=torch.Generator().manual_seed(9))


@pytest.fixture(params=["in a thread", "where it is waited for"])
def threaded(request, monkeypatch):
    """Both ways to load, whatever the size."""
    if request.param == "in a thread":
        monkeypatch.setattr(bank_loader, "SMALL", 0)


@pytest.mark.parametrize(
    ("pool", "kept", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-6),
        (torch.float32, torch.bfloat16, 1e-6),
        (torch.bfloat16, torch.bfloat16, 1e-6),
        (torch.bfloat16, torch.float32, 1e-2),
        (torch.float16, torch.float32, 2e-3),
        (torch.int8, torch.float32, 2e-2),
        (torch.uint8, torch.float32, 0.25),
    ],
)
@pytest.mark.usefixtures("threaded")
def test_a_slot_adds_what_its_adapter_means(pool, kept, tolerance):
    with bank_of(dtype=pool, group=32) as bank:
        for seed, rank in ((1, 1), (2, (3, 7, 12)), (3, 5)):
            config, tensors = adapter(seed, rank, dtype=kept)
            bank.load_tensors(config, tensors, name=f"a{seed}", wait=False)
            for module in ("q.0", "v.1"):
                n = shapes(TinyDecoder())[module][0]
                want = dense(config, tensors, module, X)
                got = update(bank, module, f"a{seed}", X, n)
                assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_all_slices_of_a_fused_site_with_ranks_and_scales_of_their_own():
    model = TinyDecoder()
    config, tensors = adapter(4, (2, 9), model, parts=("q", "v"))
    modules = tuple(
        Module(m.name, m.rank, m.inputs, m.outputs, 8.0 + i) for i, m in enumerate(config.modules)
    )
    config = AdapterConfig("tiny", modules)
    fused = {f"qkv.{i}": (f"q.{i}", f"k.{i}", f"v.{i}") for i in range(2)}
    with headrace.debug(), bank_of(fused=fused) as bank:
        assert bank.sites["qkv.1"] == ("q.1", "k.1", "v.1")
        bank.load_tensors(config, tensors, name="a")
        got = update(bank, "qkv.1", "a", X, 64 + 32 + 32).split([64, 32, 32], 1)
        assert not got[1].any()
        for module, part in (("q.1", got[0]), ("v.1", got[2])):
            torch.testing.assert_close(
                part.double(), dense(config, tensors, module, X), atol=1e-5, rtol=1e-5
            )


def test_a_bias_and_a_magnitude():
    model = TinyDecoder()
    weights = dict(model.named_parameters())
    with bank_of(bias=True, dora=True, weights=weights, slots=2) as bank:
        config, tensors = adapter(5, 3, dora=True, bias=True)
        bank.load_tensors(config, tensors, name="a")
        y = (X @ weights["q.0"].T).detach()
        want = y.double() + dense(config, tensors, "q.0", X)
        want += config.scale("q.0") * tensors["q.0.bias"].double()
        whole = weights["q.0"].double() + config.scale("q.0") * (
            tensors["q.0.b"].double() @ tensors["q.0.a"].double()
        )
        want *= tensors["q.0.magnitude"].double() / whole.detach().norm(dim=1)
        with bank.route([bank.find("a"), None], [3, 2]) as route:
            got = y.clone()
            route.add_to("q.0", X, got)
        torch.testing.assert_close(got[:3].double(), want[:3], atol=1e-5, rtol=1e-5)
        assert torch.equal(got[3:], y[3:])
        # The slot goes to a plain adapter: nothing of the old one is left.
        bank.unload("a")
        plain = adapter(6, 3)
        bank.load_tensors(*plain, name="b")
        want = dense(*plain, "q.0", X)
        torch.testing.assert_close(
            update(bank, "q.0", "b", X, 64).double(), want, atol=1e-5, rtol=1e-5
        )


def test_from_a_store_a_folder_and_tensors_it_is_the_same_revision(tmp_path):
    config, tensors = adapter(7, 4)
    with AdapterStore(tmp_path / "store") as store:
        store.add_base("tiny", shapes(TinyDecoder()))
        digest = store.add(config, tensors, name="ann")
        store.export_peft("ann", tmp_path / "folder")
        with bank_of(store=store) as bank:
            assert bank.load("ann") == digest
            assert bank.load_peft(tmp_path / "folder", name="bob") == digest
            assert bank.load_tensors(config, tensors) == digest
            assert [r.revision for r in bank.residents()] == [digest]
            assert bank.stats.loads == 1
            want = dense(config, tensors, "o.1", torch.ones(1, 64))
            got = update(bank, "o.1", "ann", torch.ones(1, 64), 32)
            torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_what_is_in_use_is_never_evicted_and_the_rest_oldest_first():
    with bank_of(slots=3) as bank:
        first = [bank.load_tensors(*adapter(i, 2), name=f"a{i}") for i in range(3)]
        bank.pin("a0")
        with bank.route([bank.find("a1")], [1]):
            bank.load_tensors(*adapter(3, 2), name="a3")
            assert {r.revision for r in bank.residents()} == {*first[:2], bank.find("a3").revision}
            before = state(bank)
            config = adapter(4, 2)
            with pytest.raises(ValueError, match=r"\(adapters\): expected 2 free slots.* got 1"):
                bank._seats.admit("load", [bank.find("a2"), _made(*config)])
            assert state(bank) == before
            with pytest.raises(ValueError, match="got one in a step"):
                bank.unload("a1")
        with pytest.raises(ValueError, match="got a pinned one"):
            bank.unload("a0")
        bank.unpin("a0")
        bank.unload("a0")
        bank.unload("a0")
        assert bank.free_slots == 1


def _made(config, tensors):
    from headrace.adapters.blob import Adapter
    from headrace.adapters.packing import pack

    digest, blob = pack("test", config, tensors)
    return Adapter("test", blob, digest.hex())


def test_large_adapters_push_as_many_out_as_it_takes():
    with bank_of(slots=8, rank_rows=24) as bank:
        for i in range(6):
            bank.load_tensors(*adapter(i, 4), name=f"a{i}")
        assert bank.free_rows == 0
        bank.load_tensors(*adapter(9, 12), name="big")
        assert bank.stats.evictions == 3
        assert bank.free_rows == 0
        got = update(bank, "q.0", "big", X, 64)
        torch.testing.assert_close(
            got.double(), dense(*adapter(9, 12), "q.0", X), atol=1e-5, rtol=1e-5
        )


def test_freed_rows_are_poisoned_and_loads_touch_only_their_own():
    with headrace.debug(), bank_of() as bank:
        bank.load_tensors(*adapter(1, 5), name="a")
        site = bank._seats.sites["q.0"]
        (one,) = bank.residents()
        mine = [row for f, n in one.extents for row in range(f, f + n)]
        others = [row for row in range(24) if row not in mine]
        assert site.a[others].isnan().all()
        assert not site.a[mine].isnan().any()
        kept = site.a[mine].clone(), site.b[mine].clone()
        bank.load_tensors(*adapter(2, 7), name="b")
        bank.unload("b")
        assert site.a[others].isnan().all()
        assert site.b[others].isnan().all()
        assert torch.equal(site.a[mine], kept[0])
        assert torch.equal(site.b[mine], kept[1])
        route = bank.route([bank.find("a")], [1])
        with route:
            one = bank.residents()[0]
        bank.unload("a")
        assert site.a.isnan().all()
        with pytest.raises(ValueError, match=r"ranks\): expected 0 to .* got -1"):
            route.add_to("q.0", X[:1], torch.zeros(1, 64))  # a slot that is nobody's


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
        made = [_made(*adapter(i, 2)) for i in range(3)]
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
        bad = bank.find(_made(config, tensors))
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


@pytest.mark.usefixtures("threaded")
def test_waves_take_residents_first_and_leave_room_to_load_beside():
    with bank_of(slots=4, rank_rows=24) as bank:
        made = [bank.find(_made(*adapter(i, 2))) for i in range(9)]
        assert bank.waves([*made[:4], None, made[0]]) == [[0, 1, 2, 3, 4, 5]]
        bank.load(made[7])
        bank.load(made[2])
        waves = bank.waves([*made, None])
        assert sorted(i for w in waves for i in w) == list(range(10))
        assert waves[0][0] == 9
        assert {2, 7} <= set(waves[0])
        room = 2 if bank_loader.SMALL == 0 else 4
        assert all(len({*w} - {9}) <= room for w in waves)
        wide = [bank.find(_made(*adapter(20 + i, 12))) for i in range(3)]
        assert [len(w) for w in bank.waves(wide)] == ([1, 1, 1] if room == 2 else [2, 1])
        for wave, after in zip(waves, [*waves[1:], []], strict=True):
            mine = [[*made, None][i] for i in wave]
            with bank.route(mine, [1] * len(mine), [[*made, None][i] for i in after]) as route:
                for site in ("q.0", "q.1"):
                    route.add_to(site, X[: len(mine)], torch.zeros(len(mine), 64))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"slots": 0}, ValueError, r"AdapterBank\(slots\): expected 1 to 65536, got 0"),
        ({"slots": 2.0}, TypeError, r"AdapterBank\(slots\): expected a whole number, got 2.0"),
        ({"max_rank": 513}, ValueError, r"AdapterBank\(max_rank\): expected 1 to 512, got 513"),
        ({"dtype": torch.float64}, TypeError, r"AdapterBank\(dtype\): expected float32, .* got"),
        ({"modules": ["q.9"]}, ValueError, r"\(modules\): expected modules of tiny, got q.9"),
        ({"dora": True}, ValueError, r"\(weights\): expected the base's weights, for dora"),
        ({"fused": {"x": ("q.0", "q.1")}}, ValueError, r"\(fused\): expected modules of one"),
    ],
)
def test_a_bank_that_cannot_be(options, error, text):
    with pytest.raises(error, match=text) as caught:
        bank_of(**options)
    assert "\n" not in str(caught.value)


def _edited(change):
    config, tensors = adapter(1, 4)
    return change(config, dict(tensors))


def _other_base(config, tensors):
    return AdapterConfig("another", config.modules), tensors


def _missing(config, tensors):
    return config, {k: v for k, v in tensors.items() if k != "q.0.a"}


def _extra(config, tensors):
    return config, tensors | {"k.0.a": tensors["q.0.a"]}


def _infinite(config, tensors):
    tensors["v.1.b"][3, 1] = torch.inf
    return config, tensors


def _wide(config, tensors):
    return adapter(1, 13)


def _foreign(config, tensors):
    m = Module("head", 1, 4, 4, 1.0)
    return AdapterConfig("tiny", (m,)), {"head.a": torch.ones(1, 4), "head.b": torch.ones(4, 1)}


def _shape(config, tensors):
    m = Module("q.0", 1, 31, 64, 1.0)
    return AdapterConfig("tiny", (m,)), {}


def _biased(config, tensors):
    return adapter(1, 2, bias=True)


def _turned(config, tensors):
    return AdapterConfig("tiny", _square(config), fan_in_fan_out=True), tensors


def _square(config):
    return tuple(m for m in config.modules if m.inputs == m.outputs)


def _invoked(config, tensors):
    return AdapterConfig("tiny", config.modules, invocation=(1, 2)), tensors


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (_other_base, ValueError, r"load\(base\): expected tiny, got another"),
        (_missing, ValueError, r"load\(tensors\): expected the 20 .* got no tensor q.0.a"),
        (_extra, ValueError, r"load\(tensors\): .* got an extra tensor k.0.a"),
        (_infinite, ValueError, r"load\(v.1.b\): expected finite weights, got NaN or infinity"),
        (_wide, ValueError, r"load\(rank\): expected at most 12, got 13; raise max_rank"),
        (_foreign, ValueError, r"load\(modules\): .*it would apply to no module"),
        (_shape, ValueError, r"load\(q.0\): expected \[64, 32\] as in the base tiny"),
        (_biased, ValueError, r"load\(bias\): expected none in this bank"),
        (_invoked, NotImplementedError, r"load\(invocation\): expected one of None"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_and_the_bank_is_as_it_was(change, error, text):
    with bank_of() as bank:
        bank.load_tensors(*adapter(3, 3), name="old")
        before = state(bank)
        with pytest.raises(error, match=text) as caught:
            bank.load_tensors(*_edited(change), name="new")
        assert "\n" not in str(caught.value)
        assert state(bank) == before


def test_rank_zero_and_strange_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Module\(rank\): expected 1 to 512 in q.0, got 0"):
        Module("q.0", 0, 32, 64, 1.0)
    folder = tmp_path / "a"
    folder.mkdir()
    config = (
        '{"peft_type": "LORA", "r": %d, "lora_alpha": 1, "target_modules": ["q.0"],'
        ' "base_model_name_or_path": "%s"}'
    )
    keys = {"A": torch.ones(0, 32), "B": torch.ones(64, 0)}
    tensors = {f"base_model.model.q.0.lora_{k}.weight": v for k, v in keys.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with bank_of() as bank:
        before = state(bank)
        for rank, name, text in (
            (1, "org/other", r"load\(base\): expected tiny, got org/other"),
            (0, "org/tiny", "expected a rank of 1 or more, got 0"),
        ):
            (folder / "adapter_config.json").write_text(config % (rank, name))
            with pytest.raises(ValueError, match=text):
                bank.load_peft(folder)
        (folder / "adapter_model.safetensors").write_bytes(b"\x08\0\0")
        with pytest.raises(ValueError, match=r"expected a whole safetensors file"):
            bank.load_peft(folder)
        assert state(bank) == before


def test_weights_that_do_not_fit_the_pool_are_told():
    config, tensors = adapter(1, 2)
    tensors["v.0.a"] = tensors["v.0.a"] * 1e6
    with bank_of(dtype=torch.float16) as bank:
        before = state(bank)
        with pytest.raises(ValueError, match="expected weights in the range of float16, got"):
            bank.load_tensors(config, tensors)
        assert state(bank)[:4] == before[:4]


def test_names_move_and_are_told_when_unknown(tmp_path):
    with bank_of() as bank:
        one = bank.load_tensors(*adapter(1, 2), name="ann")
        two = bank.load_tensors(*adapter(2, 2), name="ann")
        assert bank.find("ann").revision == two
        assert bank.find(one).revision == one  # resident still
        with pytest.raises(ValueError, match=r"find\(adapter\): expected a name .*\(ann\), got 'b"):
            bank.find("bob")
        with pytest.raises(TypeError, match=r"expected a name, a digest or an Adapter, got int"):
            bank.load(3)
        with pytest.raises(ValueError, match=r"forget\(name\): expected a name of this bank"):
            bank.forget("bob")
        bank.unload(one)
        with pytest.raises(ValueError, match="expected a name or digest"):
            bank.find(one)  # nobody has it
        bank.forget("ann")
        assert bank.find(two).revision == two
    bank.close()
    with pytest.raises(ValueError, match=r"load\(adapters\): expected an open bank"):
        bank.load("ann")


def test_a_bank_of_a_model_takes_its_matrices():
    bank = AdapterBank.of(TinyDecoder(), "tiny", slots=2, known_as=["x/tiny"], dora=True)
    assert bank.base == Base("tiny", shapes(TinyDecoder()), ("x/tiny",))
    with pytest.raises(TypeError, match=r"AdapterBank\(base\): expected a Base; see"):
        AdapterBank(TinyDecoder())
