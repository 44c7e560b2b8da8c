// SPDX-License-Identifier: Apache-2.0
// One row of scores that a cache holds, without lists of its pieces: what is kept are bits.
#pragma once
#include <cstring>

#include "select_row.h"

namespace headrace {

constexpr std::int64_t kShort = 2048, kOrdered = 256;

using Words = std::uint64_t;  // bit i % 64 of word i / 64 stands for element i

inline void set_bit(Words* words, std::int64_t i) { words[i / 64] |= Words{1} << (i % 64); }

// Leaves the first n of the bits that are set.
inline void leave(Words* words, std::int64_t count, std::int64_t n) {
  for (std::int64_t w = 0; w < count; ++w) {
    Words all = words[w], some = 0;
    for (; all && n > 0; --n, all &= all - 1) some |= all & (~all + 1);
    words[w] = some;
  }
}

// Orders as the numbers do; both zeros are one.
inline std::uint32_t key_of(float x) {
  x += 0.f;
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Weighed {
  std::uint32_t key;
  float weight;
};

// How many of the largest keys, equal ones in order, it takes until their weights add up to `need`.
std::int64_t reach(std::vector<Weighed> left, double need);

inline int bin_of(float x, float low, float scale) {
  const float place = (x - low) * scale;
  return place < 255.f ? static_cast<int>(place) : 255;
}

// Cut of 256 bins that hold `all` scores each: the last bin of the lower class.
int otsu_cut(const std::int64_t* all);

// Of every bucket the best `quota` of x[n], and the best `floor` of all; `must` first, `most` in
// all. What is in `must` is -infinity in x. scratch: 2 * a.size words.
void quota_of(const SelectArgs& a, const float* x, std::int64_t n, const Words* must,
              std::int64_t forced, const std::int32_t* buckets, std::int64_t most, float* scratch,
              Words* words);

class ShortRow {
 public:
  ShortRow(const SelectArgs& a, std::int64_t batch, std::int64_t head) : a_(a) {
    const auto of = [&](const auto* p, const std::int64_t* strides) {
      return p ? p + batch * strides[0] + head * strides[1] : nullptr;
    };
    const std::int64_t offset = batch * a.score_strides[0] + head * a.score_strides[1];
    const char* score = static_cast<const char*>(a.score) + offset * dtype_size(a.dtype);
    n_ =
        a.lengths ? std::clamp<std::int64_t>(*of(a.lengths, a.lengths_strides), 0, a.size) : a.size;
    limit_ = a.limit < 0 ? a.size : a.limit;
    if (a.budget) limit_ = std::max<std::int64_t>(*of(a.budget, a.budget_strides), 0);
    counts_ = of(a.counts, a.counts_strides);
    buckets_ = of(a.buckets, a.buckets_strides);
    k_.read({score, a.dtype, a.lowest}, 0, n_, x_);
    std::fill(x_ + n_, x_ + (n_ + 31) / 16 * 16, -kInfinite);
    const std::int64_t last = std::min(a.last, n_);
    if (a.first == 0 && last == 0 && a.ranges == 0) return;
    std::fill(must_, must_ + words(), 0);
    const std::int32_t* ranges = of(a.forced, a.forced_strides);
    const std::int64_t* step = a.forced_strides + 2;
    force(0, a.first);
    force(n_ - last, n_);
    for (std::int64_t i = 0; i < a.ranges; ++i)
      force(ranges[i * step[0]], ranges[i * step[0] + step[1]]);
    for (std::int64_t w = 0; w < words(); ++w) forced_ += __builtin_popcountll(must_[w]);
  }

  void keep(std::int32_t* out, std::int32_t* count) {
    std::int64_t wanted = n_, reached = -1;  // reached: of the free ones, where that is all to keep
    float own[kShort + 16];
    const float* all = x_;
    if (forced_) {
      if (a_.policy == SelectPolicy::kMass || a_.policy == SelectPolicy::kOtsu) {
        std::copy(x_, x_ + n_, own);
        all = own;
      }
      for (std::int64_t w = 0; w < words(); ++w) {
        for (Words m = must_[w]; m; m &= m - 1) x_[w * 64 + __builtin_ctzll(m)] = -kInfinite;
      }
    }
    std::int64_t candidates, equal;
    k_.count(x_, n_, -kInfinite, &candidates, &equal);
    const float bound = static_cast<float>(a_.lowest ? -a_.threshold : a_.threshold);
    if (a_.policy == SelectPolicy::kThreshold) {
      k_.count(x_, n_, bound, &reached, &equal);
      if (bound > -kInfinite) reached += equal;
      wanted = forced_ + reached;
    } else if (a_.policy == SelectPolicy::kShare) {
      wanted =
          static_cast<std::int64_t>(a_.share * static_cast<double>(forced_ + candidates) + 0.5);
    } else if (a_.policy == SelectPolicy::kMass) {
      wanted = by_mass(all, candidates);
    } else if (a_.policy == SelectPolicy::kOtsu) {
      wanted = by_otsu(all);
    }
    Words kept[kShort / 64];
    if (a_.policy == SelectPolicy::kQuota) {
      if (!forced_) std::fill(must_, must_ + words(), 0);
      float scratch[2 * kShort];
      quota_of(a_, x_, n_, must_, forced_, buckets_, bounded(n_), scratch, kept);
    } else {
      wanted = bounded(std::max(wanted, std::min(a_.floor, n_)));
      choose(std::min(wanted - std::min(wanted, forced_), candidates), candidates, reached, bound,
             kept);
      if (forced_) {
        if (wanted < forced_) leave(must_, words(), wanted);
        for (std::int64_t w = 0; w < words(); ++w) kept[w] |= must_[w];
      }
    }
    const std::int64_t made = k_.list(kept, n_, out);
    std::fill(out + made, out + a_.capacity, -1);
    *count = static_cast<std::int32_t>(made);
  }

 private:
  std::int64_t words() const { return (n_ + 63) / 64; }
  std::int64_t bounded(std::int64_t wanted) const {
    return std::min(std::max(std::min(wanted, limit_), forced_), a_.capacity);
  }
  void force(std::int64_t begin, std::int64_t end) {
    begin = std::max<std::int64_t>(begin, 0);
    end = std::min(end, n_);
    for (std::int64_t i = begin; i < end; ++i) set_bit(must_, i);
  }

  // The best `rest` of the free ones.
  void choose(std::int64_t rest, std::int64_t candidates, std::int64_t reached, float bound,
              Words* kept) const {
    std::int64_t ties = 0, above, equal;
    if (rest == 0) return std::fill(kept, kept + words(), 0);
    if (rest == candidates) {
      bound = -kInfinite;
    } else if (rest == reached) {
      ties = n_;
    } else if (n_ <= 64) {
      kept[0] = k_.few(x_, n_, rest);
      return;
    } else {
      bound = k_.nth(x_, n_, rest, -kInfinite, kInfinite);
      k_.count(x_, n_, bound, &above, &equal);
      ties = rest - above;
    }
    k_.mark(x_, n_, bound, &ties, kept);
  }

  std::int64_t by_mass(const float* all, std::int64_t candidates) const;
  std::int64_t by_otsu(const float* all) const;

  const SelectArgs& a_;
  const SelectKernels& k_ = select_kernels();
  std::int64_t n_, limit_, forced_ = 0;
  const float* counts_;
  const std::int32_t* buckets_;
  alignas(64) float x_[kShort + 32];
  Words must_[kShort / 64];
};

}  // namespace headrace
