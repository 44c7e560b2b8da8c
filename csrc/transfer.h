// SPDX-License-Identifier: Apache-2.0
// Moving blocks between memory and files: many runs of bytes in one call.
#pragma once
#include <cstddef>
#include <cstdint>

namespace headrace {

// CRC-32C (Castagnoli) of `size` bytes that follow what gave `crc` (0 at the beginning).
std::uint32_t crc32c(std::uint32_t crc, const std::uint8_t* data, std::size_t size);

// Runs of bytes, run i from from[i] to to[i]; none overlap.
void copy_runs(const std::uintptr_t* to, const std::uintptr_t* from, const std::int64_t* size,
               std::int64_t runs, int threads);

// What `read_parts` says of a part; an errno, negated, is possible too.
constexpr std::int32_t kIntact = 0, kShort = 1, kDamaged = 2;

// Parts of `part_bytes` bytes of files, wanted in pieces: part i, at at[i] of file[i], goes to
// into[i * pieces + j] with piece_bytes[j] bytes, one piece after the other, once its checksum was
// seen to be sums[i]. Neighbours in a file that follow one another here are read together, so parts
// should come in the order of the disk. room: `threads` times room_bytes, aligned to kSector.
struct Parts {
  std::int64_t count, part_bytes;
  const std::int32_t* file;
  const std::int64_t* at;
  const std::uint32_t* sums;
  std::int64_t pieces;
  const std::int64_t* piece_bytes;
  const std::uintptr_t* into;
};
constexpr std::int64_t kSector = 4096;  // files may be open with O_DIRECT
void read_parts(const Parts& parts, std::uint8_t* room, std::int64_t room_bytes, int threads,
                std::int32_t* outcome);

}  // namespace headrace
