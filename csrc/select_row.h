// SPDX-License-Identifier: Apache-2.0
// One row of scores: its pieces, and the best `wanted` of it found in two reads. What is found does
// not depend on the number of threads: pieces are cut by size, and every piece owns its outputs.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/select/args.h"
#include "select.h"

namespace headrace {

constexpr float kInfinite = std::numeric_limits<float>::infinity();

struct SelectPiece {
  std::int64_t begin, end;
  bool forced;
};

// What is kept of a row: the forced ones, those above the bound, the first ties equal to it.
struct SelectCut {
  float bound = kInfinite;
  std::vector<std::int64_t> above, equal;  // of every piece
  std::int64_t wanted = 0, ties = 0;       // in all, forced ones too; of the equal ones
};

inline const SelectKernels& select_kernels() { return HEADRACE_PICK(select); }

class SelectRow {
 public:
  SelectRow(const SelectArgs& a, std::int64_t batch, std::int64_t head, int threads)
      : args_(a), kernels_(select_kernels()), threads_(threads), batch_(batch), head_(head) {
    const std::int64_t offset = batch * a.score_strides[0] + head * a.score_strides[1];
    score_ = {static_cast<const char*>(a.score) + offset * dtype_size(a.dtype), a.dtype, a.lowest};
    length_ = a.size;
    if (a.lengths) {
      const std::int64_t n = a.lengths[batch * a.lengths_strides[0] + head * a.lengths_strides[1]];
      length_ = std::clamp<std::int64_t>(n, 0, a.size);
    }
    limit_ = a.limit < 0 ? a.size : a.limit;
    if (a.budget) {
      limit_ = a.budget[batch * a.budget_strides[0] + head * a.budget_strides[1]];
      limit_ = std::max<std::int64_t>(limit_, 0);
    }
    cut_into_pieces();
  }

  const std::vector<SelectPiece>& pieces() const { return pieces_; }
  std::int64_t length() const { return length_; }
  std::int64_t forced() const { return forced_; }
  std::int64_t limit() const { return limit_; }
  const SelectKernels& kernels() const { return kernels_; }
  const SelectArgs& args() const { return args_; }
  int threads() const { return static_cast<int>(std::min<std::int64_t>(threads_, 64)); }

  const float* counts() const {
    const std::int64_t* s = args_.counts_strides;
    return args_.counts ? args_.counts + batch_ * s[0] + head_ * s[1] : nullptr;
  }
  const std::int32_t* buckets() const {
    const std::int64_t* s = args_.buckets_strides;
    return args_.buckets ? args_.buckets + batch_ * s[0] + head_ * s[1] : nullptr;
  }
  void read(std::int64_t begin, std::int64_t end, float* x) const {
    kernels_.read(score_, begin, end, x);
  }

  // body(piece number, piece) for every piece.
  template <class Body>
  void each_piece(const Body& body) const {
    const int team = useful_threads(threads(), static_cast<double>(length_) * 4);
    parallel(static_cast<std::int64_t>(pieces_.size()), team,
             [&](std::int64_t i, int) { body(i, pieces_[static_cast<std::size_t>(i)]); });
  }

  // Of the pieces that are not forced, or of all.
  ScoreTally tally(float threshold, bool all) const {
    std::vector<ScoreTally> parts(pieces_.size(), {0, 0, kInfinite, -kInfinite});
    each_piece([&](std::int64_t i, const SelectPiece& p) {
      if (all || !p.forced) kernels_.tally(score_, p.begin, p.end, threshold, &parts[i]);
    });
    ScoreTally sum{0, 0, kInfinite, -kInfinite};
    for (const ScoreTally& t : parts) {
      sum.candidates += t.candidates;
      sum.reached += t.reached;
      sum.low = std::min(sum.low, t.low);
      sum.high = std::max(sum.high, t.high);
    }
    return sum;
  }

  // Where to cut to keep `wanted`, forced ones among them; less where there are less.
  SelectCut best(std::int64_t wanted) const {
    SelectCut cut;
    cut.above.assign(pieces_.size(), 0);
    cut.equal.assign(pieces_.size(), 0);
    cut.wanted = std::min(wanted, forced_);
    const std::int64_t kept_anyway = cut.wanted;
    std::int64_t rest = wanted - kept_anyway;
    if (rest == 0 || length_ == forced_) return cut;
    const Scratch scratch(length_, 1);
    float* kept = scratch.of(0);
    float lo = -kInfinite, hi = kInfinite;
    if (length_ - forced_ > kDirect && rest < length_ - forced_) guess(rest, &lo, &hi);
    std::vector<std::int64_t> in(pieces_.size()), over(pieces_.size()), valid(pieces_.size());
    for (;;) {
      each_piece([&](std::int64_t i, const SelectPiece& p) {
        in[i] = over[i] = valid[i] = 0;
        if (p.forced) return;
        in[i] =
            kernels_.collect(score_, p.begin, p.end, lo, hi, kept + p.begin, &over[i], &valid[i]);
      });
      std::int64_t inside = 0, higher = 0, candidates = 0;
      for (std::size_t i = 0; i < pieces_.size(); ++i) {
        inside += in[i];
        higher += over[i];
        candidates += valid[i];
      }
      rest = std::min(rest, candidates);
      cut.wanted = kept_anyway + rest;
      if (rest == candidates) {
        cut.bound = -kInfinite;
        cut.above = valid;
        return cut;
      }
      if (higher >= rest) {  // the guess was too low
        lo = hi;
        hi = kInfinite;
        continue;
      }
      if (higher + inside < rest) {  // too high
        hi = lo;
        lo = -kInfinite;
        continue;
      }
      if (lo == hi) {
        cut.bound = lo;
      } else {
        std::vector<float> joined;
        joined.reserve(static_cast<std::size_t>(inside));
        for (std::size_t i = 0; i < pieces_.size(); ++i) {
          joined.insert(joined.end(), kept + pieces_[i].begin, kept + pieces_[i].begin + in[i]);
        }
        cut.bound = kernels_.nth(joined.data(), inside, rest - higher, lo, hi);
      }
      cut.ties = rest;
      for (std::size_t i = 0; i < pieces_.size(); ++i) {
        kernels_.count(kept + pieces_[i].begin, in[i], cut.bound, &cut.above[i], &cut.equal[i]);
        cut.above[i] += over[i];
        cut.ties -= cut.above[i];
      }
      return cut;
    }
  }

  // Writes the indices of a cut, and -1 behind them.
  void write(const SelectCut& cut) const {
    const std::int64_t row = batch_ * args_.heads + head_;
    std::int32_t* out = args_.index + row * args_.capacity;
    std::vector<std::int64_t> start(pieces_.size()), ties(pieces_.size());
    std::int64_t at = 0, left = cut.ties, forced = cut.wanted;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      start[i] = at;
      if (pieces_[i].forced) {
        at += ties[i] = std::min(forced, pieces_[i].end - pieces_[i].begin);
        forced -= ties[i];
        continue;
      }
      ties[i] = std::min(left, cut.equal[i]);
      left -= ties[i];
      at += cut.above[i] + ties[i];
    }
    each_piece([&](std::int64_t i, const SelectPiece& p) {
      std::int32_t* to = out + start[i];
      if (p.forced) {
        for (std::int64_t j = 0; j < ties[i]; ++j) to[j] = static_cast<std::int32_t>(p.begin + j);
      } else if (cut.above[i] + ties[i] > 0) {
        std::int64_t equal = ties[i];
        kernels_.emit(score_, p.begin, p.end, cut.bound, &equal, to);
      }
    });
    std::fill(out + at, out + args_.capacity, -1);
    args_.count[row] = static_cast<std::int32_t>(at);
  }

  // Writes those whose bits are set.
  void write_marked(const std::uint64_t* words) const {
    const std::int64_t row = batch_ * args_.heads + head_;
    std::int32_t* out = args_.index + row * args_.capacity;
    const std::int64_t at = kernels_.list(words, length_, out);
    std::fill(out + at, out + args_.capacity, -1);
    args_.count[row] = static_cast<std::int32_t>(at);
  }

 private:
  static constexpr std::int64_t kPiece = 32768, kDirect = 2048, kRun = 4;

  void cut_into_pieces() {
    std::vector<SelectPiece> forced;
    const auto add = [&](std::int64_t begin, std::int64_t end) {
      begin = std::max<std::int64_t>(begin, 0);
      end = std::min(end, length_);
      if (begin < end) forced.push_back({begin, end, true});
    };
    add(0, args_.first);
    add(args_.last < length_ ? length_ - args_.last : 0, args_.last > 0 ? length_ : 0);
    if (args_.forced) {
      const std::int64_t* s = args_.forced_strides;
      const std::int32_t* p = args_.forced + batch_ * s[0] + head_ * s[1];
      for (std::int64_t i = 0; i < args_.ranges; ++i) add(p[i * s[2]], p[i * s[2] + s[3]]);
    }
    std::sort(forced.begin(), forced.end(),
              [](const SelectPiece& a, const SelectPiece& b) { return a.begin < b.begin; });
    std::int64_t at = 0;
    const auto free_upto = [&](std::int64_t end) {
      while (at < end) {
        const std::int64_t next = std::min(end, at + kPiece);
        pieces_.push_back({at, next, false});
        at = next;
      }
    };
    for (const SelectPiece& f : forced) {
      free_upto(f.begin);
      if (f.end <= at) continue;
      pieces_.push_back({at, f.end, true});
      forced_ += f.end - at;
      at = f.end;
    }
    free_upto(length_);
  }

  // From a sample, a range of scores in which the rank-th is likely to lie.
  void guess(std::int64_t rank, float* lo, float* hi) const {
    const std::int64_t total = length_ - forced_;
    const std::int64_t runs = std::clamp<std::int64_t>(total / (16 * kRun), 128, 1024);
    std::vector<float> sample;
    sample.reserve(static_cast<std::size_t>(runs * kRun));
    std::size_t piece = 0;
    std::int64_t passed = 0;
    for (std::int64_t i = 0; i < runs; ++i) {
      const std::int64_t want = i * (total / runs);
      while (pieces_[piece].forced || want - passed >= pieces_[piece].end - pieces_[piece].begin) {
        if (!pieces_[piece].forced) passed += pieces_[piece].end - pieces_[piece].begin;
        ++piece;
      }
      const std::int64_t at = pieces_[piece].begin + want - passed;
      const std::int64_t n = std::min(kRun, pieces_[piece].end - at);
      sample.resize(sample.size() + static_cast<std::size_t>(n));
      read(at, at + n, sample.data() + sample.size() - n);
    }
    const double n = static_cast<double>(sample.size());
    const double p = static_cast<double>(rank) / static_cast<double>(total);
    const double slack = 4 * std::sqrt(n * p * (1 - p)) + 16;
    const std::int64_t high = static_cast<std::int64_t>(p * n - slack);
    const std::int64_t low = static_cast<std::int64_t>(p * n + slack);
    const std::int64_t size = static_cast<std::int64_t>(n);
    const auto nth = [&](std::int64_t k) {
      return kernels_.nth(sample.data(), size, k, -kInfinite, kInfinite);
    };
    *hi = high < 1 ? kInfinite : nth(high);
    *lo = low > size ? -kInfinite : nth(low);
  }

  const SelectArgs& args_;
  const SelectKernels& kernels_;
  ScoreRow score_;
  int threads_;
  std::int64_t batch_, head_, length_ = 0, limit_ = 0, forced_ = 0;
  std::vector<SelectPiece> pieces_;
};

}  // namespace headrace
