// SPDX-License-Identifier: Apache-2.0
// Which tokens a row of HSTU attention sees, as ranges of orders.
#pragma once
#include "args.h"

namespace headrace {
namespace {

inline HstuSeen hstu_seen(const HstuRule& r, std::int64_t t) {
  const std::int64_t h = r.history, c = r.context;
  HstuSeen s{0, 0, h, -1};
  if (t < c) {
    // The prefix counts as one token: a distance runs from its end.
    const std::int64_t far = h - c + 1;
    if (!r.causal && (r.reach == 0 || far <= r.reach || (r.full > 0 && far <= r.full))) {
      s.hi = r.length;
    }
  } else {
    const std::int64_t e = t < h ? t : h;  // all targets stand where the first one does
    const bool all = r.reach == 0 || (r.full > 0 && e >= h - r.full);
    if (!all && !(c > 0 && e - c + 1 <= r.reach)) s.lo = e - r.reach > c ? e - r.reach : c;
    if (t < h) {
      s.hi = t + 1;
      if (!r.causal) s.hi = all || h - t <= r.reach ? r.length : t + r.reach + 1;
    }
    s.sinks = r.sinks < s.lo ? r.sinks : s.lo;
  }
  if (t >= s.hi) s.self = t;
  return s;
}

}  // namespace
}  // namespace headrace
