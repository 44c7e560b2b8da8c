// SPDX-License-Identifier: Apache-2.0
// What the bindings of ops over pages share.
#pragma once
#include <stdexcept>
#include <string>

#include "bind/call.h"
#include "kernels/attention/args.h"

namespace headrace::bind {

inline headrace::Rope rope_of(const Given& inv_freq, const Given& freq_axis, int axes,
                              double gain) {
  const int half = inv_freq.there ? static_cast<int>(inv_freq.size(0)) : 0;
  return {inv_freq.as<const double>(), freq_axis.as<const std::int32_t>(), half, axes,
          static_cast<float>(gain)};
}

inline headrace::Scales scales_of(const Given& scale) {
  if (!scale.there) return {};
  return {scale.as<float>(), scale.stride(0), scale.stride(1), scale.size(2) > 1};
}

// Strides of page and head; the two axes inside must be dense.
inline void page_strides(const Given& pages, const std::string& op, const char* name,
                         std::int64_t& page, std::int64_t& head) {
  page = pages.stride(0);
  head = pages.stride(1);
  bool some = true;
  for (int i = 0; i < 4; ++i) some &= pages.size(i) > 0;
  if (!some || (pages.stride(3) == 1 && pages.stride(2) == pages.size(3))) return;
  std::string got;
  for (int i = 0; i < 4; ++i) got += (i ? ", " : "") + std::to_string(pages.stride(i));
  throw std::invalid_argument(
      op + "(" + name + "): expected the last two axes contiguous, got strides (" + got + ")");
}

inline bool quantised(const Given& pages) {
  return pages.dtype == headrace::kI8 || pages.dtype == headrace::kE4M3;
}

// Whether a scale is one that these pages need, which have a slot for each of `slots` tokens.
inline bool scaled(const Given& scale, const Given& pages, std::int64_t slots) {
  if (scale.there != quantised(pages)) return false;
  return !scale.there || scale.size(2) == 1 || scale.size(2) == slots;
}

inline bool turns(const Given& inv_freq, const Given& freq_axis, std::int64_t dim, int axes) {
  if (inv_freq.there && 2 * inv_freq.size(0) > dim) return false;
  return freq_axis.there == (inv_freq.there && axes == 3);
}

// Where the arguments of `append` are among those of an op that appends.
struct Appended {
  const Given &k, &v, &k_pages, &v_pages, &where, &inv_freq, &freq_axis, &k_scale, &v_scale;

  int axes() const { return static_cast<int>(where.size(1)) - 2; }

  bool serves() const {
    const std::int64_t dim = k.size(2), slots = k_pages.size(3);
    return sixteens(dim, headrace::kMostDim) && turns(inv_freq, freq_axis, dim, axes()) &&
           scaled(k_scale, k_pages, slots) && scaled(v_scale, k_pages, slots) && slots > 0 &&
           slots % 16 == 0;
  }

  headrace::AppendArgs args(const std::string& op) const {
    headrace::AppendArgs args{};
    args.k = k;
    args.v = v;
    args.k_pages = k_pages.as<void>();
    args.v_pages = v_pages.as<void>();
    args.where = where.as<const std::int64_t>();
    args.k_row = k.stride(0);
    args.k_head = k.stride(1);
    args.v_row = v.stride(0);
    args.v_head = v.stride(1);
    page_strides(k_pages, op, "k_pages", args.k_page, args.k_page_head);
    page_strides(v_pages, op, "v_pages", args.v_page, args.v_page_head);
    args.kv_heads = static_cast<int>(k.size(1));
    args.dim = static_cast<int>(k.size(2));
    args.page_size = static_cast<int>(k_pages.size(3));
    args.dtype = k.dtype;
    args.page_dtype = k_pages.dtype;
    args.rope = rope_of(inv_freq, freq_axis, axes(), 1.0);
    args.k_scale = scales_of(k_scale);
    args.v_scale = scales_of(v_scale);
    return args;
  }
};

}  // namespace headrace::bind
