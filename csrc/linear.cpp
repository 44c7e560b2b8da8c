// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <algorithm>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

void linear(const LinearArgs& args, int threads) {
  const LinearKernels& k =
      pick(headrace_linear_scalar, headrace_linear_avx2, headrace_linear_avx512);
  // A block of rows that stays in the second-level cache, and strips of outputs to share out.
  const std::int64_t rows =
      std::clamp<std::int64_t>(65536 / std::max<std::int64_t>(args.depth, 1), 16, 256);
  const std::int64_t strip = 96;
  const std::int64_t down = (args.tokens + rows - 1) / rows;
  const std::int64_t across = (args.outputs + strip - 1) / strip;
  const double work = static_cast<double>(args.tokens) * args.outputs * args.depth;
  parallel(down * across, useful_threads(threads, work), [&](std::int64_t i, int) {
    const std::int64_t t = i / across * rows, n = i % across * strip;
    k.linear(args, t, std::min(args.tokens, t + rows), n, std::min(args.outputs, n + strip));
  });
}

}  // namespace headrace
