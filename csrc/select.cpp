// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <cstring>

#include "select_row.h"

namespace headrace {

namespace {

std::int64_t bounded(const SelectRow& row, std::int64_t wanted) {
  wanted = std::max(std::min(wanted, row.limit()), row.forced());
  return std::min(wanted, row.args().capacity);
}

std::vector<float> scores_of(const SelectRow& row) {
  std::vector<float> x(static_cast<std::size_t>(row.length()));
  row.each_piece(
      [&](std::int64_t, const SelectPiece& p) { row.read(p.begin, p.end, x.data() + p.begin); });
  return x;
}

// Orders as the numbers do; both zeros are one.
std::uint32_t key_of(float x) {
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

std::int64_t by_mass(const SelectRow& row) {
  const double mass = row.args().mass;
  if (mass >= 1.0) return row.length();
  const std::vector<float> x = scores_of(row);
  float top = -kInfinite;
  for (const float v : x) top = std::max(top, v);
  std::vector<float> w(x.size());
  const float* counts = row.counts();
  row.each_piece([&](std::int64_t, const SelectPiece& p) {
    row.kernels().weigh(x.data() + p.begin, counts ? counts + p.begin : nullptr, p.end - p.begin,
                        top, w.data() + p.begin);
  });
  double total = 0, forced = 0;
  std::vector<Weighed> free;
  free.reserve(x.size());
  for (const SelectPiece& p : row.pieces()) {
    for (std::int64_t i = p.begin; i < p.end; ++i) {
      total += w[i];
      if (p.forced) {
        forced += w[i];
      } else if (x[i] > -kInfinite) {
        free.push_back({key_of(x[i]), w[i]});
      }
    }
  }
  const double need = mass * total - forced;
  return row.forced() + (need > 0 ? reach(std::move(free), need) : 0);
}

std::int64_t by_otsu(const SelectRow& row) {
  const ScoreTally t = row.tally(0.f, true);
  const float scale = 256.f / (t.high - t.low);
  if (!(scale > 0.f && scale < kInfinite)) return row.length();
  std::int64_t all[256] = {}, free[256] = {};
  const std::vector<float> x = scores_of(row);
  for (const SelectPiece& p : row.pieces()) {
    for (std::int64_t i = p.begin; i < p.end; ++i) {
      if (x[i] == -kInfinite) continue;
      const float place = (x[i] - t.low) * scale;
      const int bin = place < 255.f ? static_cast<int>(place) : 255;
      ++all[bin];
      free[bin] += !p.forced;
    }
  }
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
  std::int64_t kept = row.forced();
  for (int b = cut + 1; b < 256; ++b) kept += free[b];
  return kept;
}

std::int64_t wanted_of(const SelectRow& row) {
  const SelectArgs& a = row.args();
  std::int64_t n = row.length();
  if (a.policy == SelectPolicy::kThreshold) {
    const float bound = static_cast<float>(a.lowest ? -a.threshold : a.threshold);
    n = row.forced() + row.tally(bound, false).reached;
  } else if (a.policy == SelectPolicy::kShare) {
    const std::int64_t candidates = row.forced() + row.tally(0.f, false).candidates;
    n = static_cast<std::int64_t>(a.share * static_cast<double>(candidates) + 0.5);
  } else if (a.policy == SelectPolicy::kMass) {
    n = by_mass(row);
  } else if (a.policy == SelectPolicy::kOtsu) {
    n = by_otsu(row);
  }
  return std::max(n, std::min(a.floor, row.length()));
}

// The best of every bucket, by a stable sort of the scores.
void by_quota(const SelectRow& row) {
  const SelectArgs& a = row.args();
  const std::int32_t* buckets = row.buckets();
  const std::vector<float> x = scores_of(row);
  std::vector<std::int64_t> used(static_cast<std::size_t>(a.size));
  std::vector<unsigned char> marks(x.size());
  struct Keyed {
    std::uint32_t key;
    std::int32_t at;
  };
  std::vector<Keyed> order;
  order.reserve(x.size());
  const auto known = [&](std::int64_t i) { return buckets[i] >= 0 && buckets[i] < a.size; };
  std::int64_t left = bounded(row, row.length()), place = row.forced();
  for (const SelectPiece& p : row.pieces()) {
    for (std::int64_t i = p.begin; i < p.end; ++i) {
      if (p.forced) {
        if (known(i)) ++used[buckets[i]];
        marks[i] = left > 0;
        left -= left > 0;
      } else if (x[i] > -kInfinite && known(i)) {
        order.push_back({~key_of(x[i]), static_cast<std::int32_t>(i)});
      }
    }
  }
  std::vector<Keyed> next(order.size());
  for (const int shift : {0, 11, 22}) {
    std::vector<std::size_t> start(2049);
    for (const Keyed& k : order) ++start[((k.key >> shift) & 0x7ff) + 1];
    for (std::size_t b = 1; b < start.size(); ++b) start[b] += start[b - 1];
    for (const Keyed& k : order) next[start[(k.key >> shift) & 0x7ff]++] = k;
    order.swap(next);
  }
  for (const Keyed& k : order) {
    if (left == 0) break;
    const bool fits = used[buckets[k.at]]++ < a.quota || place < a.floor;
    ++place;
    marks[k.at] = fits;
    left -= fits;
  }
  row.write_marked(marks);
}

// The best of all heads of a batch entry, `floor` of each at least.
void flat(const SelectArgs& a, std::int64_t batch, int threads) {
  std::vector<SelectRow> rows;
  std::vector<std::vector<float>> free;
  std::vector<std::int64_t> base, valid;
  std::int64_t least = 0, all = 0;
  for (std::int64_t h = 0; h < a.heads; ++h) {
    rows.emplace_back(a, batch, h, threads);
    const SelectRow& row = rows.back();
    free.push_back(scores_of(row));
    for (const SelectPiece& p : row.pieces()) {
      if (p.forced) std::fill(free[h].begin() + p.begin, free[h].begin() + p.end, -kInfinite);
    }
    std::int64_t candidates, equal;
    const std::int64_t size = static_cast<std::int64_t>(free[h].size());
    row.kernels().count(free[h].data(), size, -kInfinite, &candidates, &equal);
    valid.push_back(row.forced() + candidates);
    base.push_back(std::max(row.forced(), std::min(a.floor, valid[h])));
    least += base[h];
    all += valid[h];
  }
  const std::int64_t total = std::min(std::max(rows.empty() ? 0 : rows[0].limit(), least), all);
  const SelectKernels& kernels = select_kernels();
  std::vector<std::int64_t> above(rows.size()), upto(rows.size());
  // What every head keeps of the scores above a bound, and of those that reach it.
  const auto at = [&](float bound) {
    std::int64_t sum = 0;
    for (std::size_t h = 0; h < rows.size(); ++h) {
      std::int64_t more, equal;
      kernels.count(free[h].data(), static_cast<std::int64_t>(free[h].size()), bound, &more,
                    &equal);
      above[h] = std::max(base[h], rows[h].forced() + more);
      upto[h] = std::min(valid[h], std::max(base[h], rows[h].forced() + more + equal));
      sum += upto[h];
    }
    return sum;
  };
  std::uint32_t low = key_of(-kInfinite), high = key_of(kInfinite);
  const auto number = [](std::uint32_t key) {
    const std::uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  };
  if (least == 0 && total > 0) {  // no head has a share of its own: the best of all
    std::vector<float> joined;
    for (const std::vector<float>& x : free) joined.insert(joined.end(), x.begin(), x.end());
    const auto size = static_cast<std::int64_t>(joined.size());
    low = high = key_of(kernels.nth(joined.data(), size, total, -kInfinite, kInfinite));
  }
  while (low < high) {  // the largest bound that `total` reach
    const std::uint32_t middle = low + (high - low + 1) / 2;
    if (at(number(middle)) >= total) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  at(number(low));
  std::int64_t left = total;
  for (const std::int64_t n : above) left -= n;
  for (std::size_t h = 0; h < rows.size(); ++h) {
    const std::int64_t more = std::min(std::max<std::int64_t>(left, 0), upto[h] - above[h]);
    left -= more;
    rows[h].write(rows[h].best(std::min(above[h] + more, a.capacity)));
  }
}

constexpr std::int64_t kShort = 2048;

// Rows so short that lists of their pieces would take longer than they do, and nothing but a number
// to go by: as `SelectRow` has it of one piece.
bool is_short(const SelectArgs& a) {
  const bool simple = a.policy == SelectPolicy::kTopK || a.policy == SelectPolicy::kThreshold ||
                      a.policy == SelectPolicy::kShare;
  return simple && a.size <= kShort && !a.budget && !a.lengths && a.ranges == 0 && a.floor == 0 &&
         a.first == 0 && a.last == 0;
}

void short_row(const SelectArgs& a, std::int64_t i) {
  const SelectKernels& kernels = select_kernels();
  const std::int64_t offset = i / a.heads * a.score_strides[0] + i % a.heads * a.score_strides[1];
  const ScoreRow row{static_cast<const char*>(a.score) + offset * dtype_size(a.dtype), a.dtype,
                     a.lowest};
  float kept[kShort];
  std::int64_t over = 0, candidates = 0, above = 0, ties = 0;
  const std::int64_t n =
      kernels.collect(row, 0, a.size, -kInfinite, kInfinite, kept, &over, &candidates);
  std::int64_t wanted = a.size;
  float bound = -kInfinite;
  if (a.policy == SelectPolicy::kThreshold) {
    bound = static_cast<float>(a.lowest ? -a.threshold : a.threshold);
    kernels.count(kept, n, bound, &above, &ties);
    if (bound == -kInfinite) ties = 0;  // what is not above is never kept by score
    wanted = above + ties;
  } else if (a.policy == SelectPolicy::kShare) {
    wanted = static_cast<std::int64_t>(a.share * static_cast<double>(candidates) + 0.5);
  }
  const std::int64_t most = std::min(a.limit < 0 ? a.size : a.limit, a.capacity);
  const bool all = wanted <= most && a.policy == SelectPolicy::kThreshold;
  wanted = std::min({wanted, most, candidates});
  if (!all && wanted == candidates) {
    bound = -kInfinite;
    ties = 0;
  } else if (!all && wanted > 0) {
    bound = kernels.nth(kept, n, wanted, -kInfinite, kInfinite);
    kernels.count(kept, n, bound, &above, &ties);
    ties = wanted - above;
  }
  std::int32_t* out = a.index + i * a.capacity;
  if (wanted > 0) kernels.emit(row, 0, a.size, bound, ties, out);
  std::fill(out + wanted, out + a.capacity, -1);
  a.count[i] = static_cast<std::int32_t>(wanted);
}

void one_row(const SelectArgs& a, std::int64_t i, int threads) {
  if (is_short(a)) return short_row(a, i);
  const SelectRow row(a, i / a.heads, i % a.heads, threads);
  if (a.policy == SelectPolicy::kQuota) return by_quota(row);
  row.write(row.best(bounded(row, wanted_of(row))));
}

}  // namespace

void select(const SelectArgs& args, int threads) {
  const bool flat_policy = args.policy == SelectPolicy::kFlat;
  const std::int64_t items = flat_policy ? args.batch : args.batch * args.heads;
  if (args.batch * args.heads == 0) return;
  const bool apart = items >= threads || args.size < 65536;  // else one row by all threads
  const double work = static_cast<double>(args.batch * args.heads) * args.size * 8;
  parallel(items, apart ? useful_threads(threads, work) : 1, [&](std::int64_t i, int) {
    const int inner = apart ? 1 : threads;
    flat_policy ? flat(args, i, inner) : one_row(args, i, inner);
  });
}

}  // namespace headrace
