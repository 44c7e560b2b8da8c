# SPDX-License-Identifier: Apache-2.0
# Addresses are data pointers as integers, 0 for none; strides and sizes count elements. Dtypes are
# the codes of headrace.ops.registry. The public functions, with their checks, are in headrace.ops.
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    compiler: str
    flags: str
    cuda: str
    openmp: int

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def force_isa(name: str) -> None: ...
def build_info() -> BuildInfo: ...
def direct(
    name: str,
    parameters: list[Any],
    results: list[Any],
    known: int,
    mutated: list[int],
    shared: dict[str, Any],
    /,
) -> tuple[Callable[[tuple[Any, ...], dict[str, Any]], Any], Callable[..., Any]]: ...

# Of these ops: the arguments in the order of the schema, then the results to fill.
def linear(given: list[Any], threads: int, /) -> None: ...
def paged_attention(given: list[Any], threads: int, /) -> None: ...
def attention(given: list[Any], threads: int, /) -> None: ...
def append(given: list[Any], threads: int, /) -> None: ...
def pooled_block_mask(given: list[Any], threads: int, /) -> None: ...
def causal_conv(given: list[Any], threads: int, /) -> None: ...
def frame_delta_rule(given: list[Any], threads: int, /) -> None: ...
def append_absorb(given: list[Any], threads: int, /) -> None: ...
def linear_attention(given: list[Any], threads: int, /) -> None: ...
def gated_delta_rule(given: list[Any], threads: int, /) -> None: ...
def attention_mass(given: list[Any], threads: int, /) -> None: ...
def hstu_attention(given: list[Any], threads: int, /) -> None: ...
def merge_states(
    o_a: int,
    lse_a: int,
    o_b: int,
    lse_b: int,
    o: int,
    lse: int,
    rows: int,
    dim: int,
    dtype: int,
    threads: int,
    /,
) -> None: ...

class LoraCall:
    def __init__(
        self,
        op: str,
        pointers: Sequence[int],
        sizes: Sequence[int],
        strides: Sequence[int],
        dtypes: tuple[int, int],
        groups: tuple[int, int],
    ) -> None: ...
    def run(
        self,
        x: int,
        y: int,
        slots: int,
        weights: int,
        tokens: int,
        x_row: int,
        y_row: int,
        threads: int,
    ) -> None: ...

def lora(
    op: str,
    pointers: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    dtypes: tuple[int, int],
    groups: tuple[int, int],
    threads: int,
    /,
) -> None: ...
def lora_rows(
    op: str,
    pointers: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    dtypes: tuple[int, int],
    groups: tuple[int, int],
    threads: int,
    /,
) -> None: ...
def block_score(
    q: int,
    q_strides: Sequence[int],
    keys: int,
    key_strides: Sequence[int],
    upper: int,
    upper_strides: Sequence[int],
    index: int,
    index_stride: int,
    lengths: int,
    lengths_stride: int,
    sizes: Sequence[int],
    q_dtype: int,
    dtype: int,
    heads: int,
    reduce: int,
    scale: float,
    out: int,
    threads: int,
    /,
) -> None: ...
def segment_reduce(
    x: int,
    x_strides: Sequence[int],
    ids: int,
    ids_stride: int,
    sizes: tuple[int, int, int, int],
    dtype: int,
    states: Sequence[int],
    strides: Sequence[Sequence[int]],
    bound_dtypes: tuple[int, int],
    count: int,
    count_stride: int,
    threads: int,
    /,
) -> None: ...
def assign(
    x: int,
    x_strides: Sequence[int],
    c: int,
    c_strides: Sequence[int],
    lengths: int,
    lengths_stride: int,
    sizes: tuple[int, int, int, int],
    dtype: int,
    metric: int,
    threshold: float,
    causal: bool,
    ids: tuple[int, int],
    id: int,
    similarity: int,
    threads: int,
    /,
) -> None: ...
def select(
    score: int,
    score_strides: Sequence[int],
    sizes: tuple[int, int, int, int],
    dtype: int,
    policy: int,
    options: Sequence[int],
    option_strides: Sequence[Sequence[int]],
    ranges: int,
    amounts: tuple[float, float, float],
    numbers: tuple[int, int, int],
    ends: tuple[int, int],
    lowest: bool,
    index: int,
    count: int,
    threads: int,
    /,
) -> None: ...
def similarity(
    x: int,
    x_strides: Sequence[int],
    ref: int,
    ref_strides: Sequence[int],
    index: int,
    index_strides: Sequence[int],
    sizes: Sequence[int],
    ref_rows: int,
    patch: tuple[int, int],
    radius: int,
    alpha: float,
    metric: int,
    x_dtype: int,
    ref_dtype: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def compact(
    x: int,
    x_strides: Sequence[int],
    y: int,
    y_strides: Sequence[int],
    options: Sequence[int],
    option_strides: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    item: int,
    dtype: int,
    outs: Sequence[int],
    threads: int,
    /,
) -> None: ...
def compact_inplace(
    x: int,
    x_strides: Sequence[int],
    options: Sequence[int],
    option_strides: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    item: int,
    threads: int,
    /,
) -> None: ...
def scatter_back(
    x: int,
    x_strides: Sequence[int],
    y: int,
    y_strides: Sequence[int],
    options: Sequence[int],
    option_strides: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    item: int,
    aligned: bool,
    threads: int,
    /,
) -> None: ...
def similarity_plain(
    x: Any, ref: Any, metric: int, index: Any, alpha: Any, out: Any, recorded: bool, threads: int, /
) -> bool: ...
def merge_plain(
    o_a: Any, lse_a: Any, o_b: Any, lse_b: Any, o: Any, lse: Any, recorded: bool, threads: int, /
) -> bool: ...
def lora_plain(
    x: Any, a: Any, b: Any, slots: Any, scale: Any, y: Any, recorded: bool, threads: int, /
) -> bool: ...
def block_score_plain(
    q: Any,
    keys: Any,
    upper: Any,
    heads: int,
    reduce: int,
    scale: float,
    out: Any,
    recorded: bool,
    threads: int,
    /,
) -> bool: ...
def segment_plain(
    x: Any, ids: Any, states: tuple[Any, ...], recorded: bool, threads: int, /
) -> bool: ...
def assign_plain(
    x: Any,
    c: Any,
    metric: int,
    threshold: Any,
    causal: bool,
    bipartite: bool,
    id: Any,
    similarity: Any,
    recorded: bool,
    threads: int,
    /,
) -> bool: ...
def compact_plain(
    x: Any,
    options: tuple[Any, ...],
    y: Any,
    sizes: Any,
    kept: Any,
    number: Any,
    recorded: bool,
    threads: int,
    /,
) -> bool: ...
def compact_inplace_rows(y: Any, index: Any, recorded: bool, threads: int, /) -> bool: ...
def scatter_back_rows(y: Any, x: Any, index: Any, recorded: bool, threads: int, /) -> bool: ...
def select_plain(
    score: Any,
    policy: int,
    given: tuple[Any, ...],
    index: Any,
    count: Any,
    recorded: bool,
    threads: int,
    /,
) -> bool: ...
def take_exchange(capsule: Any, tensor: type, parameter: type) -> None: ...
def prefer_huge_pages(data: int, bytes: int) -> None: ...
def multiply_add_rate(dtype: int, seconds: float, threads: int) -> float: ...
def read_seconds(data: int, words: int, again: int, threads: int) -> float: ...
def grow_tables(
    tables: list[Any],
    counts: list[int],
    filled: list[int],
    before: dict[int, int],
    page_size: int,
    where: bytearray,
) -> list[Any]: ...
def view_tables(
    tables: list[Any],
    counts: list[int],
    others: list[bytes],
    fresh: Callable[[Any, int], bytes],
    room: Callable[[int, int, int], tuple[bytearray, ...]],
) -> None: ...
def overdue_tables(tables: list[Any], page_size: int) -> list[int]: ...
def join_ids(
    given: list[Any], vocab: int, make: Callable[[int], Tensor]
) -> tuple[list[int], Tensor] | None: ...
def crc32c(data: int, size: int) -> int: ...
def copy_runs(to: int, from_: int, size: int, runs: int, threads: int) -> None: ...
def read_parts(
    count: int,
    part_bytes: int,
    file: int,
    at: int,
    sums: int,
    pieces: int,
    piece_bytes: int,
    into: int,
    room: int,
    room_bytes: int,
    threads: int,
    outcome: int,
) -> None: ...
