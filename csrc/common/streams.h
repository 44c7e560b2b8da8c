// SPDX-License-Identifier: Apache-2.0
// What only the values of a batch of streams can tell: offsets that rise, states that are distinct.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace headrace {

// Throws std::invalid_argument naming the argument of op.
inline void check_streams(const std::string& op, const std::int32_t* indptr,
                          const std::int32_t* rows, std::int64_t streams, std::int64_t tokens,
                          std::int64_t states) {
  bool rises = indptr[0] == 0 && indptr[streams] == tokens;
  for (std::int64_t b = 0; b < streams && rises; ++b) rises = indptr[b] <= indptr[b + 1];
  if (!rises) {
    throw std::invalid_argument(op + "(indptr): expected offsets that rise from 0 to " +
                                std::to_string(tokens) + ", got others");
  }
  std::vector<bool> taken(static_cast<std::size_t>(states));
  for (std::int64_t b = 0; b < streams; ++b) {
    const std::int32_t row = rows[b];
    if (row < 0 || row >= states || taken[row]) {
      throw std::invalid_argument(op + "(rows): expected distinct rows in [0, " +
                                  std::to_string(states) + "), got " + std::to_string(row) +
                                  " for stream " + std::to_string(b));
    }
    taken[row] = true;
  }
}

}  // namespace headrace
