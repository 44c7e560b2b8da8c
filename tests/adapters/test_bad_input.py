# SPDX-License-Identifier: Apache-2.0
"""Each mistake is one line, and leaves the store as it was."""

import dataclasses
import errno
import os
import resource
import signal

import pytest
import torch

from headrace.adapters import AdapterConfig, AdapterStore, Base, Gate, Module, NewAdapter, segments

from .conftest import SHAPES, clean, everything, weights


def refused(store, line, call, kind=ValueError):
    before = everything(store)
    with pytest.raises(kind) as caught:
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(store) == before
    clean(store)


def spoiled(key, value):
    config, tensors = weights()
    tensors[key] = value
    return config, tensors


def poisoned(dtype, value, key="layers.2.q.b", **options):
    config, tensors = weights(dtype=dtype, **options)
    tensors[key].view(-1)[-1] = value
    return config, tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_not_finite(store, dtype, value):
    line = "layers.2.q.b): expected finite weights"
    refused(store, line, lambda: store.add(*poisoned(dtype, value)))
    mixed = poisoned(dtype, value, "layers.1.v.bias", bias=True)
    refused(store, "layers.1.v.bias", lambda: store.add(*mixed))


def test_tensors(store):
    config, tensors = weights()
    less = {k: t for k, t in tensors.items() if k != "layers.1.q.a"}
    cases = [
        ((config, less), "no tensor layers.1.q.a", ValueError),
        (spoiled("x.a", torch.ones(1)), "an extra tensor x.a", ValueError),
        (spoiled("layers.0.q.a", torch.ones(3, 31)), "expected [3, 32], got [3, 31]", ValueError),
        (spoiled("layers.0.q.b", torch.ones(3, 48)), "expected [48, 3], got [3, 48]", ValueError),
        (spoiled("layers.0.q.a", torch.ones(3, 32).half()), "expected float32", TypeError),
        (spoiled("layers.0.q.a", "x"), "expected a tensor, got str", TypeError),
    ]
    for case, line, kind in cases:
        refused(store, line, lambda case=case: store.add(*case), kind)


def test_all_or_none_of_many(store):
    good = [NewAdapter(*weights(i), name=f"n{i}") for i in range(3)]
    bad = NewAdapter(*poisoned(torch.float32, float("nan")))
    refused(store, "finite", lambda: store.add_many([*good, bad]))
    twice = dataclasses.replace(good[2], name="n0")
    refused(store, "expected a new name, got n0", lambda: store.add_many([*good, twice]))


def test_bases(store):
    config, tensors = weights()
    other = dataclasses.replace(config, base="other")
    refused(store, "expected a known base (base), got other", lambda: store.add(other, tensors))
    store.add_base("other", {"h.0.q": (48, 32)})
    refused(store, "it would apply to no module", lambda: store.add(other, tensors))
    store.add_base("part", {"layers.0.q": (48, 32)})
    part = dataclasses.replace(config, base="part")
    refused(
        store, "layers.0.v, layers.1.q, layers.1.v and 4 more", lambda: store.add(part, tensors)
    )
    store.add_base("wide", {**SHAPES, "layers.0.q": (48, 64)})
    wide = dataclasses.replace(config, base="wide")
    refused(store, "expected [48, 64] as in the base wide", lambda: store.add(wide, tensors))
    turned = dataclasses.replace(config, fan_in_fan_out=True)
    refused(store, "expected [32, 48]", lambda: store.add(turned, tensors))
    store.add_base("base", SHAPES, ["again"])
    refused(store, "expected a new name, got base", lambda: store.add_base("base", {"x": (1, 1)}))
    assert store.base("again").name == "base"


def test_configurations():
    with pytest.raises(ValueError, match=r"rank.*expected 1 to 512 in m, got 0"):
        Module("m", 0, 4, 4, 1.0)
    with pytest.raises(ValueError, match="got 513"):
        Module("m", 513, 4, 4, 1.0)
    with pytest.raises(TypeError, match="got float"):
        Module("m", 1.0, 4, 4, 1.0)
    with pytest.raises(ValueError, match="a finite number in m, got nan"):
        Module("m", 1, 4, 4, float("nan"))
    with pytest.raises(ValueError, match="one of F32, F16, BF16"):
        Module("m", 1, 4, 4, 1.0, "F8")
    one = Module("m", 1, 4, 4, 1.0)
    with pytest.raises(ValueError, match="got none"):
        AdapterConfig("b", ())
    with pytest.raises(ValueError, match="one twice"):
        AdapterConfig("b", (one, one))
    with pytest.raises(ValueError, match="a bias in some"):
        AdapterConfig("b", (one, Module("n", 1, 4, 4, 1.0, bias="F32")))
    with pytest.raises(ValueError, match="token numbers"):
        AdapterConfig("b", (one,), invocation=(-1,))
    with pytest.raises(ValueError, match="at least one module"):
        Base("b", {})
    with pytest.raises(ValueError, match="no rule"):
        Gate("m")
    with pytest.raises(ValueError, match="a finite number"):
        Gate("m", at_least=float("nan"))


def test_names_and_records(store):
    config, tensors = weights()
    digest = store.add(config, tensors, name="n")
    missing = "ab" * 32
    cases = [
        (lambda: store.resolve("nobody"), "expected a name or digest of this store, got nobody"),
        (lambda: store.resolve(""), "1 to 200 printable bytes"),
        (lambda: store.resolve("x" * 999), "1 to 200 printable bytes"),
        (lambda: store.resolve("\ud800"), "printable"),
        (lambda: store.open(missing), "a name or digest of this store"),
        (lambda: store.add(*weights(1), name="n"), "got n; promote moves a name"),
        (lambda: store.add(*weights(1), name="a\0b"), "printable"),
        (lambda: store.add(*weights(1), name=missing), "no digest"),
        (lambda: store.add(*weights(1), parents=("x",)), "digests of 64 hex digits"),
        (lambda: store.add(*weights(1), parents=(missing,)), "revisions of this store"),
        (lambda: store.add(*weights(1), data={1j}), "what JSON can hold"),
        (lambda: store.add(*weights(1), data=float("nan")), "what JSON can hold"),
        (lambda: store.promote("n", "nobody"), "got nobody"),
        (lambda: store.promote("", digest), "printable"),
        (lambda: store.rollback("nobody"), "a name of this store, got nobody"),
        (lambda: store.rollback("n"), "an earlier revision of n, got none"),
        (lambda: store.forget("nobody"), "a name of this store"),
        (lambda: store.evaluate("n", "m", float("nan")), "a finite number"),
        (lambda: store.evaluate("n", "", 1.0), "printable"),
        (lambda: store.search(at_least=1), "a metric to bound"),
    ]
    for call, line in cases:
        refused(store, line, call)
    refused(store, "expected a number", lambda: store.evaluate("n", "m", "1"), TypeError)
    refused(store, "expected a string", lambda: store.resolve(3), TypeError)


def test_promotion_keeps_to_the_base(store):
    store.add_base("two", SHAPES)
    config, tensors = weights()
    store.add(config, tensors, name="n")
    other = store.add(dataclasses.replace(config, base="two"), tensors)
    refused(store, "expected one for base, got one for two", lambda: store.promote("n", other))


def _file(store):
    (path,) = store.path.glob("segments/*/*.blobs")
    return path


@pytest.mark.parametrize(
    ("at", "quick", "line"),
    [
        (0, True, "another format"),
        (20, True, "other lengths"),
        (40, True, "a damaged header"),
        (100, True, "a damaged header"),
        (-4096, False, "the blob is damaged"),
    ],
)
def test_damage_is_found(store, at, quick, line):
    config, tensors = weights()
    digest = store.add(config, tensors)
    path = _file(store)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=line) as caught:
        store.open(digest, verify=True)
    assert "\n" not in str(caught.value)
    assert len(store.verify(quick=quick).problems) == 1
    assert (len(store.verify(quick=True).problems) == 1) == quick


def test_another_blob_in_its_place(store):
    first = store.add(*weights(0))
    path = _file(store)
    held = path.read_bytes()
    store.remove(first)
    store.gc()
    second = store.add(*weights(1))
    _file(store).write_bytes(held)
    with pytest.raises(ValueError, match=f"expected the whole blob of {second}, got that of"):
        store.open(second)
    assert len(store.verify().problems) == 1


def test_cut_short_and_gone(store):
    digest = store.add(*weights())
    path = _file(store)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="a file cut short"):
        store.open(digest)
    assert len(store.verify().problems) == 1
    path.unlink()
    with pytest.raises(ValueError, match="no file"):
        store.open(digest)
    assert len(store.verify().problems) == 1


def test_folders(tmp_path):
    with pytest.raises(ValueError, match="expected a store, got"):
        AdapterStore(tmp_path / "none", create=False)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder"):
        AdapterStore(tmp_path / "file")
    with pytest.raises(ValueError, match="a store or an empty folder"):
        AdapterStore(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    (tmp_path / "bad" / "catalog").mkdir(parents=True)
    (tmp_path / "bad" / "catalog" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match="expected to open the catalog"):
        AdapterStore(tmp_path / "bad")


def test_a_closed_store(tmp_path):
    store = AdapterStore(tmp_path / "s")
    store.close()
    with pytest.raises(OSError, match="AdapterStore"):
        store.resolve("n")


def test_a_full_catalog(tmp_path):
    with AdapterStore(tmp_path / "s", map_size=1 << 18) as store:
        store.add_base("base", SHAPES)
        store.add(*weights(0), name="n")
        many = [NewAdapter(*weights(i), name=f"n{i}") for i in range(1, 300)]
        refused(store, "expected room in the catalog", lambda: store.add_many(many), OSError)
        assert store.gc().removed == 0


@pytest.mark.parametrize("room", [0, 5000, 20_000, 60_000])
def test_a_full_disk(store, room):
    """No file may grow beyond `room` bytes more than the catalog has, or than a file of blobs."""
    store.add(*weights(0), name="n")
    many = [NewAdapter(*weights(i), name=f"m{i}") for i in range(1, 30)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def add():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            store.add_many(many)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        refused(store, "nothing was", add, OSError)
    finally:
        signal.signal(signal.SIGXFSZ, held)
    assert len(store.add_many(many)) == 29
    clean(store)


def test_a_disk_full_at_the_commit(store):
    """The blobs fit, the catalog's pages do not."""
    store.add(*weights(0), name="n")
    data = store.path / "catalog" / "data.mdb"
    many = [NewAdapter(*weights(1), name=f"m{i}", owner="o" * 200) for i in range(400)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def add():
        resource.setrlimit(resource.RLIMIT_FSIZE, (data.stat().st_size, hard))
        try:
            store.add_many(many)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        refused(store, "nothing was changed", add, OSError)
    finally:
        signal.signal(signal.SIGXFSZ, held)
    store.add_many(many)
    clean(store)


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails(store, monkeypatch, call, code):
    """Each call on the way of the blobs to the disk fails once."""
    store.add(*weights(0), name="n")

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    def add():
        with monkeypatch.context() as patch:
            if call == "open":
                patch.setattr(segments, "open", fail, raising=False)
            else:
                patch.setattr(segments.os, call, fail)
            store.add_many([NewAdapter(*weights(1), name="m")])

    line = f"got: {os.strerror(code)}; nothing was added"
    refused(store, line, add, OSError)
    store.add(*weights(1), name="m")
    clean(store)


def test_collection_on_a_full_disk(store, monkeypatch):
    """Room for nothing: what no revision uses goes all the same, the rest stays as it was."""
    single = store.add(*weights(0))
    packs = [store.add_many([NewAdapter(*weights(10 * i + j)) for j in range(4)]) for i in (1, 2)]
    for digest in (single, *packs[0][:2], *packs[1][:3]):
        store.remove(digest)
    real, room = store._segments.write, [4096 * 3]

    def write(blobs):
        room[0] -= sum(len(b) for b in blobs)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(blobs)

    monkeypatch.setattr(store._segments, "write", write)
    with pytest.raises(
        OSError, match=r"gc\(path\): expected room for \d+ bytes, got: No space"
    ) as e:
        store.gc()
    assert "\n" not in str(e.value)
    assert len(list(store.path.glob("segments/*/*.blobs"))) == 2
    found = clean(store)
    assert (found.revisions, found.unused) == (3, ())
    room[0] = 1 << 20
    assert store.gc() == type(store.gc())(0, 1, 4096 * 2 * pages(store, packs[0][3]))
    clean(store)


def pages(store, digest):
    return -(-store.open(digest).size // 4096)


def test_measurements_all_or_none(store):
    digest = store.add(*weights(), name="n")
    bad = [("n", "m", 1.0), (digest, "m", 2.0), ("nobody", "m", 3.0)]
    refused(store, "got nobody", lambda: store.evaluate_many(bad))
    assert store.evaluations("n") == []
    store.evaluate_many(bad[:2], by="me")
    assert [(e["value"], e["by"]) for e in store.evaluations("n")] == [(1.0, "me"), (2.0, "me")]
