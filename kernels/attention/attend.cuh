// SPDX-License-Identifier: Apache-2.0
// One split on CUDA cores, in fp32: for queries or pages of fp32. Where both are, small groups have
// kernels of their own; for a mixture that few ask for one has to do.
#pragma once
#include "decode.cuh"

namespace headrace {
namespace {

constexpr int kWarps = kThreads / 32;

// Resident blocks of a multiprocessor that leave the registers a block needs.
constexpr int blocks_for(int heads) { return heads > 4 ? 2 : heads > 1 ? 3 : 4; }

// Splits, kv heads and groups of G query heads, taken in turn by a fixed grid. A warp takes whole
// tiles of up to 64 slots: logits with lanes along the tokens of a transposed key page, values with
// lanes along the head dimension.
template <class T, int G>
__global__ void __launch_bounds__(kThreads, blocks_for(G)) attend_kernel(const Decode a) {
  // Wide groups leave registers for 4 elements of a key or value at a time.
  using Word = Vec<T, (G > 4 ? 4 : sizeof(T) > 2 ? 4 : 8)>;
  constexpr int kVec = Word::size, kLanes = kTileSlots / kVec, kStep = 32 / kLanes;
  constexpr int kUnroll = 4;
  constexpr int kChunks = kMaxDim / (32 * kVec);            // words of a value row that a lane owns
  alignas(16) __shared__ float plain[kMaxDim * G];          // [dim][G], scaled
  alignas(16) __shared__ float slabs[kWarps][kMaxDim * G];  // rotated queries; sums at the end
  alignas(16) __shared__ float weights[kWarps][kTileSlots * G];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = a.q_heads / a.kv_heads, passes = (group + G - 1) / G, dim = a.dim;
  float* turned = slabs[warp];
  float* weight = weights[warp];

  // Wide groups have no registers to keep these in.
  constexpr int kKept = G > 1 ? 1 : kMaxDim / 64;
  int64_t step[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int i = lane + 32 * j;
    step[j] = i < a.half ? phase_step(a.inv_freq[i]) : 0;
  }
  const int lists = a.lists, shared = lists > 1 ? 1 : a.kv_heads;  // kv heads that share a list
  // Lanes along a key row, and along a value row.
  const int token_lane = lane % kLanes, depth_lane = lane / kLanes;
  const int words = dim / kVec, across = words < 32 ? words : 32, abreast = 32 / across;
  const int word = lane % across, token_of = lane / across;

  const int64_t units = static_cast<int64_t>(a.starts[a.rows * lists]) * shared * passes;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int pass = static_cast<int>(unit % passes);
    const int64_t item = unit / passes / shared;
    const Split split = a.splits[item];
    const int kv_head = lists > 1 ? split.list : static_cast<int>(unit / passes % shared);
    const int head0 = kv_head * group + pass * G;
    const int heads = group - pass * G < G ? group - pass * G : G;
    const float scale = a.softcap > 0.f ? a.scale : a.scale * kLog2e;
    __syncthreads();  // the sums of the unit before are read
    for (int i = threadIdx.x; i < dim * G; i += kThreads) {
      const int d = i / G, g = i % G;
      plain[i] =
          g < heads
              ? load_any(a.q, split.row * a.q_row + (head0 + g) * a.q_head + d, a.q_dtype) * scale
              : 0.f;
    }
    __syncthreads();

    float m[G], l[G], o[G][kChunks * kVec];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      m[g] = -INFINITY;
      l[g] = 0.f;
#pragma unroll
      for (int j = 0; j < kChunks * kVec; ++j) o[g][j] = 0.f;
    }
    const int64_t order = a.q_order[split.row];
    const int64_t* position = a.q_pos + static_cast<int64_t>(split.row) * a.axes;
    int turned_for = -1;  // the entry for which queries are rotated
    int tile = 0;
    for (int e = split.entry; e < split.end; ++e) {
      const int64_t* entry = a.entries + int64_t{e} * a.fields;
      const Range keys = entry_keys(entry, a.pages, a.page_size, order);
      if (keys.lo >= keys.hi) continue;
      const int from = static_cast<int>(entry[1] + keys.lo),
                to = static_cast<int>(entry[1] + keys.hi);
      for (int base = from / kTileSlots * kTileSlots; base < to; base += kTileSlots, ++tile) {
        if (tile % kWarps != warp) continue;
        const float* query = plain;
        if (a.half > 0) {
          query = turned;
          if (turned_for < 0 ||
              !same_turn(a.entries + int64_t{turned_for} * a.fields, entry, a.axes)) {
            turned_for = e;
            const Steps steps = steps_to(position, entry, a.axes);
            __syncwarp();
#pragma unroll
            for (int j = 0; j < kMaxDim / 64; ++j) {
              const int i = lane + 32 * j;
              if (i >= a.half) break;
              float c, s;
              cos_sin(phase(steps.along(a.freq_axis ? a.freq_axis[i] : 0),
                            j < kKept ? step[j % kKept] : phase_step(a.inv_freq[i])),
                      &c, &s);
              c *= a.rope_gain;
              s *= a.rope_gain;
#pragma unroll
              for (int g = 0; g < G; ++g) {
                const float x = plain[i * G + g], y = plain[(i + a.half) * G + g];
                turned[i * G + g] = x * c - y * s;
                turned[(i + a.half) * G + g] = y * c + x * s;
              }
            }
            for (int i = 2 * a.half * G + lane; i < dim * G; i += 32) turned[i] = plain[i];
            __syncwarp();
          }
        }

        const int slot = base + token_lane * kVec;
        float s[G][kVec];
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
          for (int j = 0; j < kVec; ++j) s[g][j] = 0.f;
        }
        if (slot < to && slot + kVec > from) {
          const T* k = static_cast<const T*>(a.k) + entry[0] * a.k_page + kv_head * a.k_head + slot;
#pragma unroll kUnroll
          for (int d = depth_lane; d < dim; d += kStep) {
            float x[kVec];
            widen_all(load_vec<Word>(k + static_cast<int64_t>(d) * a.page_size), x);
#pragma unroll
            for (int g = 0; g < G; ++g) {
              const float by = query[d * G + g];
#pragma unroll
              for (int j = 0; j < kVec; ++j) s[g][j] += by * x[j];
            }
          }
        }
        // Each step leaves the sum of more rows of the head dimension in every lane.
#pragma unroll
        for (int by = kLanes; by < 32; by *= 2) {
#pragma unroll
          for (int g = 0; g < G; ++g) {
#pragma unroll
            for (int j = 0; j < kVec; ++j) s[g][j] += __shfl_xor_sync(kAll, s[g][j], by);
          }
        }
        if constexpr (kCodes<T>) {
          const float* scales = a.k_scale + entry[0] * a.k_scale_page + kv_head * a.k_scale_head;
#pragma unroll
          for (int j = 0; j < kVec; ++j) {
            const bool named = slot + j >= from && slot + j < to;
            const float by = named ? scales[(slot + j) * a.k_scale_slot] : 0.f;
#pragma unroll
            for (int g = 0; g < G; ++g) s[g][j] *= by;
          }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
          float top = -INFINITY;
#pragma unroll
          for (int j = 0; j < kVec; ++j) {
            if (a.softcap > 0.f) s[g][j] = soft_cap(s[g][j], a.softcap) * kLog2e;
            if (slot + j < from || slot + j >= to) s[g][j] = -INFINITY;
            top = fmaxf(top, s[g][j]);
          }
#pragma unroll
          for (int by = 1; by < kLanes; by *= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, by));
          top = fmaxf(top, m[g]);
          const float shift = finite_base(top), shrink = exp2f(m[g] - shift);
          m[g] = top;
          l[g] *= shrink;
#pragma unroll
          for (int j = 0; j < kVec; ++j) {
            s[g][j] = exp2f(s[g][j] - shift);
            l[g] += s[g][j];
          }
#pragma unroll
          for (int j = 0; j < kChunks * kVec; ++j) o[g][j] *= shrink;
        }
        if (depth_lane == 0) {
          const float* scales = a.v_scale + entry[0] * a.v_scale_page + kv_head * a.v_scale_head;
#pragma unroll
          for (int j = 0; j < kVec; ++j) {
            float by = 1.f;
            if constexpr (kCodes<T>) {
              const bool named = slot + j >= from && slot + j < to;
              by = named ? scales[(slot + j) * a.v_scale_slot] : 0.f;
            }
#pragma unroll
            for (int g = 0; g < G; ++g) {
              weight[(token_lane * kVec + j) * G + g] = kCodes<T> ? s[g][j] * by : s[g][j];
            }
          }
        }
        __syncwarp();

        const int start = from > base ? from : base;
        const int end = to < base + kTileSlots ? to : base + kTileSlots;
        const T* v = static_cast<const T*>(a.v) + entry[0] * a.v_page + kv_head * a.v_head;
        if (token_of < abreast) {
#pragma unroll kUnroll
          for (int t = start + token_of; t < end; t += abreast) {
#pragma unroll
            for (int c = 0; c < kChunks; ++c) {
              const int at = word + 32 * c;
              if (c > 0 && at >= words) break;
              float x[kVec];
              widen_all(load_vec<Word>(v + static_cast<int64_t>(t) * dim + at * kVec), x);
#pragma unroll
              for (int g = 0; g < G; ++g) {
                const float by = weight[(t - base) * G + g];
#pragma unroll
                for (int j = 0; j < kVec; ++j) o[g][c * kVec + j] += by * x[j];
              }
            }
          }
        }
        __syncwarp();
      }
    }

    // Lanes, then warps, into one state, in a fixed order. A warp's weights are used up by now:
    // their place takes its maxima and sums.
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int by = 1; by < kLanes; by *= 2) l[g] += __shfl_xor_sync(kAll, l[g], by);
      if (lane == 0) {
        weight[g] = m[g];
        weight[G + g] = l[g];
      }
    }
    __syncthreads();
    float shrink[G];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float top = weights[0][g];
      for (int w = 1; w < kWarps; ++w) top = fmaxf(top, weights[w][g]);
      shrink[g] = exp2f(m[g] - finite_base(top));
    }
    for (int turn = 0; turn < abreast; ++turn) {
      if (token_of == turn) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const int at = word + 32 * c;
          if (c > 0 && at >= words) break;
#pragma unroll
          for (int j = 0; j < kVec; ++j) {
#pragma unroll
            for (int g = 0; g < G; ++g) {
              float* to = turned + (at * kVec + j) * G + g;
              const float x = o[g][c * kVec + j] * shrink[g];
              *to = turn == 0 ? x : *to + x;
            }
          }
        }
      }
      __syncwarp();
    }
    __syncthreads();
    const int first = lists > 1 ? kv_head * group : 0;  // head of the split's states
    float* out = a.partial + (item * (a.q_heads / lists) + head0 - first) * (dim + 2);
    for (int i = threadIdx.x; i < dim * heads; i += kThreads) {
      const int g = i / dim, d = i % dim;
      float sum = 0.f;
      for (int w = 0; w < kWarps; ++w) sum += slabs[w][d * G + g];
      out[g * (dim + 2) + d] = sum;
    }
    if (static_cast<int>(threadIdx.x) < heads) {
      const int g = threadIdx.x;
      float top = weights[0][g], sum = 0.f;
      for (int w = 1; w < kWarps; ++w) top = fmaxf(top, weights[w][g]);
      for (int w = 0; w < kWarps; ++w)
        sum += weights[w][G + g] * exp2f(weights[w][g] - finite_base(top));
      out[g * (dim + 2) + dim] = top;
      out[g * (dim + 2) + dim + 1] = sum;
    }
  }
}

template <class T>
cudaError_t attend(const Decode& a, int64_t splits, int processors, void* stream) {
  const int group = a.q_heads / a.kv_heads, passes = (group + 7) / 8;
  const auto run = [&](auto kernel, int resident) {
    const int64_t units = splits * passes, most = int64_t{processors} * resident;
    return launch(kernel, units < most ? units : most, kThreads, stream, a);
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    if (group == 1) return run(attend_kernel<T, 1>, blocks_for(1));
    if (group <= 4) return run(attend_kernel<T, 4>, blocks_for(4));
  }
  return run(attend_kernel<T, 8>, blocks_for(8));
}

}  // namespace
}  // namespace headrace
