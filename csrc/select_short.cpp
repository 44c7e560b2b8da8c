// SPDX-License-Identifier: Apache-2.0
#include "select_short.h"

namespace headrace {

std::int64_t reach(std::vector<Weighed> left, double need) {
  std::int64_t taken = 0;
  double sum = 0;
  for (const int shift : {21, 10, 0}) {
    const std::uint32_t mask = shift == 21 || shift == 10 ? 0x7ffu : 0x3ffu;
    std::vector<double> mass(mask + 1);
    std::vector<std::int64_t> count(mask + 1);
    for (const Weighed& w : left) {
      mass[(w.key >> shift) & mask] += w.weight;
      ++count[(w.key >> shift) & mask];
    }
    std::int64_t bin = mask;
    for (; bin >= 0 && sum + mass[bin] < need; --bin) {
      sum += mass[bin];
      taken += count[bin];
    }
    if (bin < 0) return taken;
    const auto other = [&](const Weighed& w) { return ((w.key >> shift) & mask) != bin; };
    left.erase(std::remove_if(left.begin(), left.end(), other), left.end());
  }
  for (const Weighed& w : left) {
    if (sum >= need) break;
    sum += w.weight;
    ++taken;
  }
  return taken;
}

int otsu_cut(const std::int64_t* all) {
  double n = 0, sum = 0, n0 = 0, s0 = 0, best = -1;
  for (int b = 0; b < 256; ++b) {
    n += static_cast<double>(all[b]);
    sum += static_cast<double>(all[b]) * b;
  }
  int cut = 0;
  for (int b = 0; b < 256; ++b) {
    n0 += static_cast<double>(all[b]);
    s0 += static_cast<double>(all[b]) * b;
    const double n1 = n - n0, apart = (sum - s0) / n1 - s0 / n0;
    const double between = n0 > 0 && n1 > 0 ? n0 * n1 * apart * apart : 0.0;
    if (between > best) {
      best = between;
      cut = b;
    }
  }
  return cut;
}

std::int64_t ShortRow::by_otsu(const float* all) const {
  float low = kInfinite, high = -kInfinite;
  for (std::int64_t i = 0; i < n_; ++i) {
    if (all[i] == -kInfinite || all[i] == kInfinite) continue;
    low = std::min(low, all[i]);
    high = std::max(high, all[i]);
  }
  const float scale = 256.f / (high - low);
  if (!(scale > 0.f && scale < kInfinite)) return n_;
  std::int64_t count[256] = {}, kept = forced_;
  for (std::int64_t i = 0; i < n_; ++i) {
    if (all[i] > -kInfinite) ++count[bin_of(all[i], low, scale)];
  }
  const int cut = otsu_cut(count);
  for (std::int64_t i = 0; i < n_; ++i) {
    kept += x_[i] > -kInfinite && bin_of(x_[i], low, scale) > cut;
  }
  return kept;
}

std::int64_t ShortRow::by_mass(const float* all, std::int64_t candidates) const {
  if (a_.mass >= 1.0) return n_;
  float top = -kInfinite, w[kShort];
  for (std::int64_t i = 0; i < n_; ++i) top = std::max(top, all[i]);
  k_.weigh(all, counts_, n_, top, w);
  double total = 0, need = 0;
  for (std::int64_t i = 0; i < n_; ++i) total += w[i];
  need = a_.mass * total;
  for (std::int64_t i = 0; i < n_ && forced_; ++i) need -= must_[i / 64] >> (i % 64) & 1 ? w[i] : 0;
  if (need <= 0) return forced_;
  if (n_ > kOrdered) {
    std::vector<Weighed> free;
    free.reserve(static_cast<std::size_t>(candidates));
    for (std::int64_t i = 0; i < n_; ++i) {
      if (x_[i] > -kInfinite) free.push_back({key_of(x_[i]), w[i]});
    }
    return forced_ + reach(std::move(free), need);
  }
  std::int32_t at[kOrdered];
  k_.order(x_, n_, at);
  double sum = 0;
  std::int64_t taken = 0;
  while (taken < candidates && sum < need) sum += w[at[taken++]];
  return forced_ + taken;
}

void quota_of(const SelectArgs& a, const float* x, std::int64_t n, const Words* must,
              std::int64_t forced, const std::int32_t* buckets, std::int64_t most, float* scratch,
              Words* words) {
  const auto known = [&](std::int64_t i) { return buckets[i] >= 0 && buckets[i] < a.size; };
  const std::int64_t count = (n + 63) / 64;
  const auto each_forced = [&](const auto& body) {
    for (std::int64_t w = 0; w < count && forced; ++w) {
      for (Words m = must[w]; m; m &= m - 1) body(w * 64 + __builtin_ctzll(m));
    }
  };
  std::copy(must, must + count, words);
  if (a.quota == 1 && a.floor == 0) {  // one read finds the best of each, unless they are too many
    float* best = scratch;
    std::int32_t* at = reinterpret_cast<std::int32_t*>(scratch + a.size);
    std::fill(best, best + a.size, -kInfinite);
    each_forced([&](std::int64_t i) {
      if (known(i)) best[buckets[i]] = kInfinite, at[buckets[i]] = -1;
    });
    for (std::int64_t i = 0; i < n; ++i) {
      if (!known(i) || !(x[i] > best[buckets[i]])) continue;
      best[buckets[i]] = x[i];
      at[buckets[i]] = static_cast<std::int32_t>(i);
    }
    std::int64_t kept = forced;
    for (std::int64_t b = 0; b < a.size; ++b) {
      if (best[b] == -kInfinite || at[b] < 0) continue;
      set_bit(words, at[b]);
      ++kept;
    }
    if (kept <= most) return;
    std::copy(must, must + count, words);
  }
  std::int32_t* used = reinterpret_cast<std::int32_t*>(scratch);
  std::fill(used, used + a.size, 0);
  each_forced([&](std::int64_t i) {
    if (known(i)) ++used[buckets[i]];
  });
  if (most < forced) leave(words, count, most);
  std::int64_t left = most - std::min(most, forced), place = forced;
  const auto take = [&](std::int64_t i) {
    if (!known(i)) return true;
    const bool fits = used[buckets[i]]++ < a.quota || place < a.floor;
    ++place;
    if (fits) set_bit(words, i);
    left -= fits;
    return left > 0;
  };
  if (left == 0) return;
  if (n <= kOrdered) {
    std::int32_t at[kOrdered];
    select_kernels().order(x, n, at);
    for (std::int64_t r = 0; r < n && x[at[r]] > -kInfinite && take(at[r]); ++r) continue;
    return;
  }
  struct Keyed {
    std::uint32_t key;
    std::int32_t at;
  };
  std::vector<Keyed> order;
  order.reserve(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    if (x[i] > -kInfinite && known(i)) {
      order.push_back({~key_of(x[i]), static_cast<std::int32_t>(i)});
    }
  }
  std::vector<Keyed> next(order.size());
  for (const int shift : {0, 11, 22}) {
    std::uint32_t start[2049] = {};
    for (const Keyed& k : order) ++start[((k.key >> shift) & 0x7ff) + 1];
    for (std::size_t b = 1; b < 2049; ++b) start[b] += start[b - 1];
    for (const Keyed& k : order) next[start[(k.key >> shift) & 0x7ff]++] = k;
    order.swap(next);
  }
  for (std::size_t i = 0; i < order.size() && take(order[i].at); ++i) continue;
}

}  // namespace headrace
