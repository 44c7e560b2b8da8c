// SPDX-License-Identifier: Apache-2.0
// Packs of splits on tensor cores, see tensor_tile.cuh.
#pragma once
#include "tensor_tile.cuh"

namespace headrace {
namespace {

// Blocks for heads of up to 64 C dimensions: warps, and the chunks of 64 dimensions of values that
// a unit takes. Wider values are another unit's, which reads the keys again, from the cache at
// best: outputs of 256 dimensions leave no registers for the rest. 8 warps are resident either way.
template <int C>
struct TensorShape {
  static constexpr int warps = C > 2 ? 2 : 4, threads = 32 * warps, blocks = 8 / warps;
  static constexpr int chunks = C > 2 ? 2 : C, parts = C / chunks;
};

// Units taken in turn by a fixed grid. A warp takes whole tiles; a tile's number in its split,
// which tells who takes it, does not depend on who shares the split.
template <class T, class H, int C>
__global__ void __launch_bounds__(TensorShape<C>::threads, TensorShape<C>::blocks)
    attend_tensor_kernel(const Decode a) {
  constexpr int kTeam = TensorShape<C>::warps, kParts = TensorShape<C>::parts;
  constexpr int kChunks = TensorShape<C>::chunks, kWide = 64 * kChunks;
  alignas(16) __shared__ uint4 slabs[kTeam][256 * C];  // fragments of queries; outputs at the end
  __shared__ float tops[kTeam][kTileRows], sums[kTeam][kTileRows];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = a.dim;
  const int group = a.q_heads / a.kv_heads, passes = (group + kTileRows - 1) / kTileRows;
  const int shared = a.lists > 1 ? 1 : a.kv_heads;  // kv heads that share a list
  uint4* slab = slabs[warp];
  int64_t step[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    step[j] = lane + 32 * j < a.half ? phase_step(a.inv_freq[lane + 32 * j]) : 0;
  }
  // The workspace of partial states keeps the units far below 2^31.
  const int items = a.packs ? a.packs[0] : a.starts[a.rows * a.lists];
  const int units = items * shared * passes * kParts;
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Unit u = unit_of(a, unit, shared, passes, kParts);
    const Split split = a.splits[u.split(0)];
    const int64_t order = a.q_order[split.row];
    const int rows = u.count * u.heads;
    Running<kChunks> st;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      st.m[r] = -INFINITY;
      st.l[r] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < 32 * kChunks; ++i) st.o[i / 32][i / 4 % 8][i % 4] = 0.f;
    __syncthreads();  // the outputs of the unit before are read
    for (int i = lane; rows < kTileRows && i < 256 * C; i += 32) slab[i] = {0, 0, 0, 0};

    int turned_for = -1, number = 0;  // the entry for which queries are turned; of the tile
    for (int e = split.entry; e < split.end; ++e) {
      const int64_t* entry = a.entries + int64_t{e} * a.fields;
      const Range keys = entry_keys(entry, a.pages, a.page_size, order);
      if (keys.lo >= keys.hi) continue;
      Tile tile{0, static_cast<int>(entry[1] + keys.lo), static_cast<int>(entry[1] + keys.hi)};
      const T* k = static_cast<const T*>(a.k) + entry[0] * a.k_page + u.kv_head * a.k_head;
      const T* v = static_cast<const T*>(a.v) + entry[0] * a.v_page + u.kv_head * a.v_head;
      const float *k_scales = nullptr, *v_scales = nullptr;
      if constexpr (kCodes<T>) {
        k_scales = a.k_scale + entry[0] * a.k_scale_page + u.kv_head * a.k_scale_head;
        v_scales = a.v_scale + entry[0] * a.v_scale_page + u.kv_head * a.v_scale_head;
      }
      tile.base = tile.from / kTileSlots * kTileSlots;
      for (; tile.base < tile.to; tile.base += kTileSlots, ++number) {
        if (number % kTeam != warp) continue;
        const bool first = turned_for < 0;
        if (first ||
            (a.half > 0 && !same_turn(a.entries + int64_t{turned_for} * a.fields, entry, a.axes))) {
          turned_for = e;
          __syncwarp();
          turn_queries<H>(a, u, step, entry, first, lane, slab);
          __syncwarp();
        }
        float s[8][4];
        multiply_keys<T, H, C>(k + tile.base, tile, a.page_size, dim, slab, lane, s);
        weigh<T, H>(a, tile, k_scales, lane, s, &st);
        multiply_values<T, H>(v, v_scales, a.v_scale_slot, tile, dim, u.depth0, lane, s, &st);
      }
    }

    // Lanes, then warps, into one state, in a fixed order.
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      st.l[r] += __shfl_xor_sync(kAll, st.l[r], 1);
      st.l[r] += __shfl_xor_sync(kAll, st.l[r], 2);
      if (t == 0) {
        tops[warp][g + 8 * r] = st.m[r];
        sums[warp][g + 8 * r] = st.l[r];
      }
    }
    __syncthreads();
    const auto top_of = [&](int row) {
      float top = tops[0][row];
      for (int w = 1; w < kTeam; ++w) top = fmaxf(top, tops[w][row]);
      return top;
    };
    float* own = reinterpret_cast<float*>(slab);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shrink = exp2f(st.m[r] - finite_base(top_of(g + 8 * r))) / kWeightUnit<H>;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float* to = own + (g + 8 * r) * kWide + 64 * c + 16 * t + j;
          to[0] = st.o[c][j][2 * r] * shrink;
          to[8] = st.o[c][j][2 * r + 1] * shrink;
        }
      }
    }
    __syncthreads();
    const int held = a.q_heads / a.lists, head = u.head0 - (a.lists > 1 ? u.kv_head * group : 0);
    for (int row = 0; row < rows; ++row) {
      const int64_t state = int64_t{u.split(row / u.heads)} * held + head + row % u.heads;
      float* out = a.partial + state * (dim + 2);
      for (int d = threadIdx.x; d < kWide && u.depth0 + d < dim; d += TensorShape<C>::threads) {
        float sum = 0.f;
        for (int w = 0; w < kTeam; ++w) {
          sum += reinterpret_cast<const float*>(slabs[w])[row * kWide + d];
        }
        out[u.depth0 + d] = sum;
      }
      if (static_cast<int>(threadIdx.x) == row && u.depth0 == 0) {
        const float top = top_of(row);
        float sum = 0.f;
        for (int w = 0; w < kTeam; ++w) {
          sum += sums[w][row] * exp2f(tops[w][row] - finite_base(top));
        }
        out[dim] = top;
        out[dim + 1] = sum;
      }
    }
  }
}

template <class T, class H = bf16>
cudaError_t attend_tensor(const Decode& a, int64_t splits, int processors, void* stream) {
  const int group = a.q_heads / a.kv_heads, passes = (group + kTileRows - 1) / kTileRows;
  const auto run = [&](auto kernel, auto shape) {
    const int64_t units = splits * passes * shape.parts;
    const int64_t most = int64_t{processors} * shape.blocks;
    return launch(kernel, units < most ? units : most, shape.threads, stream, a);
  };
  if (a.dim <= 128) return run(attend_tensor_kernel<T, H, 2>, TensorShape<2>{});
  return run(attend_tensor_kernel<T, H, 4>, TensorShape<4>{});
}

// Whether tensor cores serve queries and pages of these dtypes.
inline bool on_tensor_cores(int q_dtype, int kv_dtype) {
  return q_dtype != kF32 && kv_dtype != kF32 && (kv_dtype != kF16 || q_dtype == kF16);
}

}  // namespace
}  // namespace headrace
