// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <cstring>

#include "select_row.h"
#include "select_short.h"

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
      const int bin = bin_of(x[i], t.low, scale);
      ++all[bin];
      free[bin] += !p.forced;
    }
  }
  std::int64_t kept = row.forced();
  for (int b = otsu_cut(all) + 1; b < 256; ++b) kept += free[b];
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

void by_quota(const SelectRow& row) {
  const SelectArgs& a = row.args();
  std::vector<float> x = scores_of(row);
  std::vector<Words> must((x.size() + 63) / 64), kept(must.size());
  for (const SelectPiece& p : row.pieces()) {
    for (std::int64_t i = p.begin; i < p.end && p.forced; ++i) {
      set_bit(must.data(), i);
      x[i] = -kInfinite;
    }
  }
  const Scratch scratch(2 * a.size, 1);
  quota_of(a, x.data(), row.length(), must.data(), row.forced(), row.buckets(),
           bounded(row, row.length()), scratch.of(0), kept.data());
  row.write_marked(kept.data());
}

// Heads side by side without a share of their own are one row. False for others.
bool flat_run(const SelectArgs& a, std::int64_t batch, int threads) {
  const bool plain = a.floor == 0 && a.first == 0 && a.last == 0 && a.ranges == 0 && !a.lengths;
  if (!plain || a.capacity < a.size || (a.heads > 1 && a.score_strides[1] != a.size)) return false;
  SelectArgs one = a;
  one.score = static_cast<const char*>(a.score) + batch * a.score_strides[0] * dtype_size(a.dtype);
  one.size = one.capacity = a.heads * a.size;
  one.batch = one.heads = 1;
  one.budget = nullptr;
  if (a.limit < 0) one.limit = a.size * a.heads;
  if (a.budget) one.limit = std::max(a.budget[batch * a.budget_strides[0]], 0);
  one.limit = std::min(one.limit, one.size);
  const SelectCut cut = SelectRow(one, 0, 0, threads).best(one.limit);
  std::int64_t ties = cut.ties;
  for (std::int64_t h = 0; h < a.heads; ++h) {
    const ScoreRow row{static_cast<const char*>(one.score) + h * a.size * dtype_size(a.dtype),
                       a.dtype, a.lowest};
    std::int32_t* out = a.index + (batch * a.heads + h) * a.capacity;
    const std::int64_t made =
        cut.wanted ? select_kernels().emit(row, 0, a.size, cut.bound, &ties, out) : 0;
    std::fill(out + made, out + a.capacity, -1);
    a.count[batch * a.heads + h] = static_cast<std::int32_t>(made);
  }
  return true;
}

// The best of all heads of a batch entry, `floor` of each at least.
void flat(const SelectArgs& a, std::int64_t batch, int threads) {
  if (flat_run(a, batch, threads)) return;
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

void one_row(const SelectArgs& a, std::int64_t i, int threads) {
  if (a.size <= kShort) {
    return ShortRow(a, i / a.heads, i % a.heads).keep(a.index + i * a.capacity, a.count + i);
  }
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
