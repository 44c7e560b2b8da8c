# SPDX-License-Identifier: Apache-2.0
"""Attention over an engine's pages against a dense oracle; and vLLM's own classes, where it is."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace import InCache, Sink, Window
from headrace.integrations import vllm as plugin
from headrace.integrations.vllm.step import attend, planned
from headrace.memory.regions import compile_plan
from headrace.ops import rope

HQ, HKV, D, SIZE = 4, 2, 32, 16
MEMORY = Sink(4) + Window(40)


def turned(x, at, inv_freq):
    """x [T, H, D] turned by positions, as a model does before its attention backend sees it."""
    half = len(inv_freq)
    angle = (torch.as_tensor(at)[:, None, None] * inv_freq).double()
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def dense(q, k, v, memory, inv_freq, sliding=None, sinks=None, softcap=0.0):
    """[T, Hq, D] of a whole request, q and k not turned: rotated by the distance of each pair."""
    number = torch.arange(len(q))
    seen = memory.keeps(number[:, None], number[None])
    distance = InCache().distance(number[:, None], number[None], seen)
    if sliding is not None:
        seen = seen & (number[:, None] - number[None] < sliding)
    q, k, v = (x.double() for x in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
    half = len(inv_freq)
    angle = distance[..., None] * inv_freq
    cos, sin = angle.cos(), angle.sin()
    (qa, qb), (ka, kb) = ((x[..., :half], x[..., half : 2 * half]) for x in (q, k))
    logits = torch.einsum("qhi,khi,qki->hqk", qa, ka, cos)
    logits += torch.einsum("qhi,khi,qki->hqk", qb, kb, cos)
    logits += torch.einsum("qhi,khi,qki->hqk", qa, kb, sin)
    logits -= torch.einsum("qhi,khi,qki->hqk", qb, ka, sin)
    logits += torch.einsum("qhi,khi->hqk", q[..., 2 * half :], k[..., 2 * half :])
    logits *= D**-0.5
    logits = softcap * (logits / softcap).tanh() if softcap else logits
    logits = logits.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double()[:, None, None].expand(-1, len(q), 1)], -1)
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1)[..., : len(q)], v)


class Request:
    """A request's tokens and its pages, which lie anywhere."""

    def __init__(self, length, pages, inv_freq, seed):
        g = torch.Generator().manual_seed(seed)
        self.q, self.k, self.v = (torch.randn(length, h, D, generator=g) for h in (HQ, HKV, HKV))
        self.q_in, self.k_in = (turned(x, torch.arange(length), inv_freq) for x in (self.q, self.k))
        self.pages, self.read = pages, 0


def engine(run, requests, cuts, blocks=64):
    """What every request gives in steps of so many tokens of each; run(step arguments) -> o."""
    cache = torch.full((blocks, HKV, SIZE, 2 * D), torch.nan)
    outs = [[] for _ in requests]
    for counts in cuts:
        table = np.zeros((len(requests), max(len(r.pages) for r in requests)), np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)])
        slots, parts = [], []
        for row, (r, n) in enumerate(zip(requests, counts, strict=True)):
            table[row, : len(r.pages)] = r.pages
            at = np.arange(r.read, r.read + n)
            slots.append(np.asarray(r.pages)[at // SIZE] * SIZE + at % SIZE)
            parts.append([x[r.read : r.read + n] for x in (r.q_in, r.k_in, r.v)])
            r.read += n
        q, k, v = (torch.cat(x) for x in zip(*parts, strict=True))
        slots = torch.from_numpy(np.concatenate(slots))
        lengths = np.array([r.read for r in requests])
        o = run(table, lengths, starts, slots, q, k, v, cache)
        for out, a, b in zip(outs, starts, starts[1:], strict=False):
            out.append(o[a:b].reshape(-1, HQ, D))
    return [torch.cat(out) for out in outs]


def requests(inv_freq):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    return [Request(150, order[:10], inv_freq, 1), Request(200, order[10:23], inv_freq, 2),
            Request(20, order[23:25], inv_freq, 3)]  # fmt: skip


CUTS = [(90, 0, 20), (1, 130, 0), *[(1, 1, 0)] * 3, (56, 60, 0), (0, 7, 0)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("memory", [MEMORY, Window(33), Window(None)], ids=repr)
@pytest.mark.parametrize(
    "extras",
    [{}, {"sliding": 24}, {"softcap": 5.0}, {"sink_logits": torch.tensor([0.5, -1, 2, 0])}],
    ids=["plain", "sliding", "softcap", "sinks"],
)
def test_requests_in_pages_are_dense_attention(memory, extras):
    inv_freq = rope.frequencies(D, rotary_dim=24)[0]
    plan = InCache().place(compile_plan(memory))
    rows = requests(inv_freq)

    def run(table, lengths, starts, slots, q, k, v, cache):
        step = planned(plan, table, lengths, np.diff(starts), slots, SIZE, inv_freq)
        return attend(step, q, k, v, cache, scale=D**-0.5, **extras)

    outs = engine(run, rows, CUTS)
    told = {"sinks" if name == "sink_logits" else name: x for name, x in extras.items()}
    for r, got in zip(rows, outs, strict=True):
        want = dense(r.q, r.k, r.v, memory, inv_freq, **told)
        assert float((got - want).abs().max()) < 1e-4
        if memory is MEMORY and len(got) > 50 and "sliding" not in extras:
            for other in (Sink(3) + Window(40), Sink(4) + Window(39)):  # this can tell them apart
                wrong = dense(r.q, r.k, r.v, other, inv_freq, **told)
                assert float((got - wrong).abs().max()) > 1e-2


def test_what_is_out_of_sight_is_not_read():
    """Blocks between sinks and window may hold anything: an engine may give them away."""
    inv_freq = rope.frequencies(D)[0]
    plan = InCache().place(compile_plan(MEMORY))
    (r,) = [Request(200, list(range(13)), inv_freq, 5)]
    seen = []

    def run(table, lengths, starts, slots, q, k, v, cache):
        step = planned(plan, table, lengths, np.diff(starts), slots, SIZE, inv_freq)
        seen.append(set(step.entries[:, 0].tolist()))
        out = attend(step, q, k, v, cache, scale=D**-0.5)
        gone = [p for p in range(13) if p and (p + 1) * SIZE <= lengths[0] - 39]
        cache[gone] = torch.nan
        return out

    (got,) = engine(run, [r], [(n,) for n in (70, 30, 50, 1, 1, 48)])
    want = dense(r.q, r.k, r.v, MEMORY, inv_freq)
    assert float((got - want).abs().max()) < 1e-4
    assert seen[-1] == {0, *range(7, 13)}  # 152 - 39 = 113 is in page 7


def test_without_vllm_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.registry", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(NotImplementedError, match=r"register\(vllm\): expected .* vLLM 0\.33"):
        plugin.register()
    with pytest.warns(UserWarning, match=r"register\(vllm\)"):  # an engine starts all the same
        plugin.plugin()


class TestWithVllm:
    """The classes as vLLM itself finds, checks, builds and calls them."""

    @pytest.fixture
    def registry(self):
        registry = pytest.importorskip(
            "vllm.v1.attention.backends.registry", reason="vLLM is not installed"
        )
        yield registry
        for kind in ("CUSTOM", "CPU_ATTN"):
            registry.AttentionBackendEnum[kind].clear_override()

    def config(self, **options):
        told = {
            "model_type": "llama",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        }
        model = SimpleNamespace(hf_text_config=SimpleNamespace(**(told | options)))
        return SimpleNamespace(
            model_config=model, additional_config={"headrace": {"sinks": 4, "window": 40}}
        )

    def test_the_entry_point_registers_it(self, registry):
        from vllm.plugins import load_plugins_by_group

        found = load_plugins_by_group("vllm.general_plugins")
        assert found["headrace"] is plugin.plugin
        enum = registry.AttentionBackendEnum
        plugin.register()
        backend = enum.CUSTOM.get_class()
        assert f"{backend.__module__}.{backend.__name__}" == plugin.BACKEND
        assert enum[backend.get_name()] is enum.CUSTOM
        assert not enum.CPU_ATTN.is_overridden()
        plugin.register(cpu=True)
        assert enum.CPU_ATTN.get_class() is backend

    def test_it_passes_the_checks_of_the_selector(self, registry):
        from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts

        plugin.register()
        backend = registry.AttentionBackendEnum.CUSTOM.get_class()
        assert backend.supports_head_size(128)
        assert backend.supports_dtype(torch.bfloat16)
        assert backend.supports_block_size(16)
        assert not backend.supports_block_size(8)
        assert backend.supports_attn_type("decoder")
        assert not backend.supports_attn_type("encoder_only")
        assert get_supported_kv_cache_layouts([backend])

    def test_requests_through_its_classes_are_dense_attention(self, registry):
        from vllm.v1.attention.backend import CommonAttentionMetadata

        plugin.register()
        backend = registry.AttentionBackendEnum.CUSTOM.get_class()
        spec = SimpleNamespace(block_size=SIZE, head_size=D)
        builder = backend.get_builder_cls()(spec, ["layer"], self.config(), torch.device("cpu"))
        impl = backend.get_impl_cls()(HQ, D, D**-0.5, HKV, None, None, "auto", None)
        inv_freq = rope.frequencies(D)[0]
        rows = requests(inv_freq)

        def run(table, lengths, starts, slots, q, k, v, cache):
            n, pad = len(q), 5
            starts = torch.from_numpy(starts).int()
            common = CommonAttentionMetadata(
                query_start_loc=starts, query_start_loc_cpu=starts,
                seq_lens=torch.from_numpy(lengths).int(), num_reqs=len(lengths),
                num_actual_tokens=n, max_query_len=200, max_seq_len=200,
                block_table_tensor=torch.from_numpy(table),
                slot_mapping=torch.cat([slots, slots.new_full((pad,), -1)]),
            )  # fmt: skip
            step = builder.build(0, common)
            q, k, v = (torch.cat([x, x[:1].expand(pad, -1, -1) * torch.nan]) for x in (q, k, v))
            out = torch.full((n + pad, HQ * D), 7.0)
            assert impl.forward(None, q, k, v, cache, step, out) is out
            assert bool((out[n:] == 7).all())
            return out[:n]

        for r, got in zip(rows, engine(run, rows, CUTS), strict=True):
            want = dense(r.q, r.k, r.v, MEMORY, inv_freq)
            assert float((got - want).abs().max()) < 1e-4

    def test_what_it_cannot_do_is_named(self, registry):
        from headrace.integrations.vllm import backend

        with pytest.raises(NotImplementedError, match=r"\(model\): .*llama.*, got gptj"):
            backend.frequencies_of(SimpleNamespace(model_type="gptj"), D)
        long = SimpleNamespace(model_type="phi3", rope_parameters={"rope_type": "longrope"})
        with pytest.raises(NotImplementedError, match="got longrope"):
            backend.frequencies_of(long, D)
        with pytest.raises(ValueError, match=r"additional_config\): expected sinks and window"):
            backend.plan_of({"headrace": {"sink": 4}})
        with pytest.raises(NotImplementedError, match=r"kv_cache_dtype\).*fp8"):
            backend.Impl(HQ, D, 1.0, HKV, kv_cache_dtype="fp8")
        with pytest.raises(NotImplementedError, match="alibi_slopes"):
            backend.Impl(HQ, D, 1.0, HKV, [1.0] * HQ)
        assert backend.plan_of({}).reach == InCache().place(compile_plan(Window(None))).reach
