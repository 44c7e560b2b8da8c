// SPDX-License-Identifier: Apache-2.0
#include "prune.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

namespace {

const PruneKernels& kernels() { return HEADRACE_PICK(prune); }

// Rows without bytes may lie at no address, which the C library's functions may not be given.
void copy(char* to, const char* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}
void clear(char* to, std::int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, static_cast<std::size_t>(bytes));
}

// One row of the batch.
struct Head {
  const CompactArgs& a;
  std::int64_t b, h;

  const std::int32_t* index() const {
    return a.index + b * a.index_strides[0] + h * a.index_strides[1];
  }
  std::int64_t count() const {
    if (!a.count) return a.capacity;
    const std::int64_t n = a.count[b * a.count_strides[0] + h * a.count_strides[1]];
    return std::clamp<std::int64_t>(n, 0, a.capacity);
  }
  const char* x(std::int64_t row) const {
    return a.x + (b * a.x_strides[0] + h * a.x_strides[1] + row * a.x_strides[2]) * a.item;
  }
  char* y(std::int64_t row) const {
    return a.y + (b * a.y_strides[0] + h * a.y_strides[1] + row * a.y_strides[2]) * a.item;
  }
};

// Before anything is written: all indices are rows, ascending and so each at most once.
void check(const CompactArgs& a, const char* op) {
  for (std::int64_t i = 0; i < a.batch * a.heads; ++i) {
    const Head head{a, i / a.heads, i % a.heads};
    const std::int32_t* index = head.index();
    const std::int64_t n = head.count();
    bool rises = n == 0 || (index[0] >= 0 && index[n - 1] < a.size);
    for (std::int64_t c = 1; c < n; ++c) rises &= index[c] > index[c - 1];  // no branch
    if (rises) continue;
    std::int64_t before = -1;
    for (std::int64_t c = 0; c < n; before = index[c++]) {
      if (index[c] > before && index[c] < a.size) continue;
      throw std::invalid_argument(std::string(op) + "(index): expected ascending rows below " +
                                  std::to_string(a.size) + ", got " + std::to_string(index[c]) +
                                  (c ? " after " + std::to_string(before) : " first"));
    }
  }
}

// The rows that each survivor is made of, in order: a counting sort by where they go.
struct Members {
  std::vector<std::int32_t> rows, starts, slot, at;
  std::vector<float> weights;

  void gather(const Head& head) {
    const CompactArgs& a = head.a;
    const std::int64_t n = head.count();
    const std::int32_t* index = head.index();
    const std::int32_t* target =
        a.target + head.b * a.target_strides[0] + head.h * a.target_strides[1];
    slot.assign(static_cast<std::size_t>(a.size), -1);
    for (std::int64_t c = 0; c < n; ++c) slot[index[c]] = static_cast<std::int32_t>(c);
    starts.assign(static_cast<std::size_t>(n + 1), 0);
    at.resize(static_cast<std::size_t>(a.size));
    for (std::int64_t r = 0; r < a.size; ++r) {
      const std::int64_t t = target[r];
      at[r] = slot[r] >= 0 ? slot[r] : t >= 0 && t < a.size ? slot[t] : -1;
      if (at[r] >= 0) ++starts[at[r] + 1];
    }
    for (std::int64_t c = 0; c < n; ++c) starts[c + 1] += starts[c];
    rows.resize(static_cast<std::size_t>(starts[n]));
    weights.resize(rows.size());
    std::vector<std::int32_t>& next = slot;  // no longer needed
    next.assign(starts.begin(), starts.end());
    const float* w = a.weights
                         ? a.weights + head.b * a.weight_strides[0] + head.h * a.weight_strides[1]
                         : nullptr;
    for (std::int64_t r = 0; r < a.size; ++r) {
      if (at[r] < 0) continue;
      const std::int32_t i = next[at[r]]++;
      rows[i] = static_cast<std::int32_t>(r);
      weights[i] = w ? w[r] : 1.f;
    }
  }
};

void sizes_of(const Head& head, std::int64_t c, float value) {
  head.a.sizes[(head.b * head.a.heads + head.h) * head.a.capacity + c] = value;
}

void merge(const CompactArgs& a, int threads) {
  const PruneKernels& k = kernels();
  Members members;
  for (std::int64_t i = 0; i < a.batch * a.heads; ++i) {
    const Head head{a, i / a.heads, i % a.heads};
    members.gather(head);
    const std::int64_t n = head.count(), bytes = a.depth * a.item;
    const double work = static_cast<double>(members.rows.size()) * a.depth;
    const std::int64_t block = std::clamp<std::int64_t>(kPruneWork / (a.depth + 8), 1, 1024);
    parallel((a.capacity + block - 1) / block, useful_threads(threads, work),
             [&](std::int64_t item, int) {
               for (std::int64_t c = item * block; c < std::min(a.capacity, (item + 1) * block);
                    ++c) {
                 if (c >= n) {
                   clear(head.y(c), bytes);
                   sizes_of(head, c, 0.f);
                   continue;
                 }
                 const std::int32_t begin = members.starts[c], end = members.starts[c + 1];
                 float total = 0;
                 for (std::int32_t m = begin; m < end; ++m) total += members.weights[m];
                 sizes_of(head, c, total);
                 if (end - begin == 1 || total == 0) {  // alone, or nothing to weigh by: as it is
                   copy(head.y(c), head.x(head.index()[c]), bytes);
                 } else {
                   k.blend(head.x(0), a.x_strides[2], members.rows.data() + begin,
                           members.weights.data() + begin, end - begin, total, a.depth, a.dtype,
                           head.y(c));
                 }
               }
             });
  }
}

// The indices of a row into `kept`, from its mask or as they were given.
void keep(const CompactArgs& a, std::int64_t b, std::int64_t h) {
  std::int32_t* kept = a.kept + (b * a.heads + h) * a.capacity;
  std::int64_t n = 0;
  if (a.mask) {
    const std::uint8_t* mask = a.mask + b * a.mask_strides[0] + h * a.mask_strides[1];
    for (std::int64_t i = 0; i < a.size && n < a.capacity; ++i) {
      kept[n] = static_cast<std::int32_t>(i);
      n += mask[i] != 0;
    }
  } else if (a.index) {  // neither: a mask of no rows
    const Head head{a, b, h};
    n = head.count();
    std::copy_n(head.index(), n, kept);
  }
  std::fill(kept + n, kept + a.capacity, -1);
  a.kept_count[b * a.heads + h] = static_cast<std::int32_t>(n);
}

}  // namespace

void compact(const CompactArgs& given, int threads) {
  if (given.index) check(given, "compact");
  CompactArgs a = given;
  const std::int64_t rows = a.batch * a.heads;
  parallel(rows, useful_threads(threads, static_cast<double>(rows) * (a.size + a.capacity)),
           [&](std::int64_t i, int) { keep(given, i / a.heads, i % a.heads); });
  a.index = a.kept;
  a.index_strides[0] = a.heads * a.capacity;
  a.index_strides[1] = a.capacity;
  a.count = a.kept_count;
  a.count_strides[0] = a.heads;
  a.count_strides[1] = 1;
  if (a.target) return merge(a, threads);
  const PruneKernels& k = kernels();
  const std::int64_t bytes = a.depth * a.item;
  const std::int64_t block = std::clamp<std::int64_t>((1 << 17) / (bytes + 64), 1, 1024);
  const std::int64_t blocks = (a.capacity + block - 1) / block;
  const double work = static_cast<double>(a.batch) * a.heads * a.capacity * (bytes / 8 + 8);
  parallel(a.batch * a.heads * blocks, useful_threads(threads, work), [&](std::int64_t i, int) {
    const Head head{a, i / blocks / a.heads, i / blocks % a.heads};
    const std::int64_t n = head.count(), first = i % blocks * block;
    const std::int32_t* index = head.index();
    const float* w = a.weights
                         ? a.weights + head.b * a.weight_strides[0] + head.h * a.weight_strides[1]
                         : nullptr;
    const std::int64_t end = std::min(first + block, a.capacity), some = std::clamp(n, first, end);
    const std::int64_t x_step = a.x_strides[2] * a.item, y_step = a.y_strides[2] * a.item;
    k.gather(head.y(first), y_step, head.x(0), x_step, index + first, some - first, bytes);
    for (std::int64_t c = some; c < end; ++c) {
      clear(head.y(c), bytes);
    }
    float* sizes = a.sizes + (head.b * a.heads + head.h) * a.capacity;
    if (!w) std::fill(sizes + first, sizes + some, 1.f);
    for (std::int64_t c = first; w && c < some; ++c) sizes[c] = w[index[c]];
    std::fill(sizes + some, sizes + end, 0.f);
  });
}

namespace {

// Rows of one element, where to copy a row is to call a function for it.
template <class T>
void move_elements(const Head& head, std::int64_t first, std::int64_t end, bool scatter) {
  const CompactArgs& a = head.a;
  const std::int32_t* index = head.index();
  T* y = reinterpret_cast<T*>(head.y(0));
  const T* x = scatter ? reinterpret_cast<const T*>(head.x(0)) : y;
  const std::int64_t y_row = a.y_strides[2], x_row = scatter ? a.x_strides[2] : y_row;
  for (std::int64_t c = first; c < end; ++c) {
    const std::int64_t at = index[c];
    if (scatter) {
      y[at * y_row] = x[(a.aligned ? at : c) * x_row];
    } else {
      y[c * y_row] = x[at * x_row];
    }
  }
}

bool moved_elements(const Head& head, std::int64_t first, std::int64_t end, bool scatter) {
  if (head.a.depth != 1) return false;
  switch (head.a.item) {
    case 1:
      move_elements<std::uint8_t>(head, first, end, scatter);
      return true;
    case 2:
      move_elements<std::uint16_t>(head, first, end, scatter);
      return true;
    case 4:
      move_elements<std::uint32_t>(head, first, end, scatter);
      return true;
    case 8:
      move_elements<std::uint64_t>(head, first, end, scatter);
      return true;
    default:
      return false;
  }
}

}  // namespace

void compact_inplace(const CompactArgs& a, int threads) {
  check(a, "compact_inplace");
  // Rows move in order; strips of columns know nothing of one another.
  const std::int64_t bytes = a.depth * a.item,
                     strip = std::max<std::int64_t>(bytes / 2 / 64 * 64, 1024);
  const std::int64_t strips = (bytes + strip - 1) / strip;
  const double work = static_cast<double>(a.batch) * a.heads * a.capacity * (bytes / 8 + 8);
  parallel(a.batch * a.heads * strips, useful_threads(threads, work), [&](std::int64_t i, int) {
    const Head head{a, i / strips / a.heads, i / strips % a.heads};
    const std::int64_t from = i % strips * strip;
    const auto wide = static_cast<std::size_t>(std::min(strip, bytes - from));
    if (moved_elements(head, 0, head.count(), false)) return;
    const std::int32_t* index = head.index();
    for (std::int64_t c = 0, n = head.count(); c < n; ++c) {
      if (index[c] != c) std::memcpy(head.y(c) + from, head.y(index[c]) + from, wide);
    }
  });
}

void scatter_back(const CompactArgs& a, int threads) {
  check(a, "scatter_back");
  const std::int64_t bytes = a.depth * a.item;
  const std::int64_t block = std::clamp<std::int64_t>((1 << 17) / (bytes + 64), 1, 1024);
  const std::int64_t blocks = (a.capacity + block - 1) / block;
  const double work = static_cast<double>(a.batch) * a.heads * a.capacity * (bytes / 8 + 8);
  parallel(a.batch * a.heads * blocks, useful_threads(threads, work), [&](std::int64_t i, int) {
    const Head head{a, i / blocks / a.heads, i / blocks % a.heads};
    const std::int64_t first = i % blocks * block;
    const std::int64_t end = std::min(first + block, head.count());
    if (moved_elements(head, first, end, true)) return;
    for (std::int64_t c = first; c < end; ++c) {
      const std::int64_t at = head.index()[c];
      copy(head.y(at), head.x(a.aligned ? at : c), bytes);
    }
  });
}

}  // namespace headrace
