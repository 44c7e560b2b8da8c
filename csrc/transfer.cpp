// SPDX-License-Identifier: Apache-2.0
#include "transfer.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

#ifdef HEADRACE_X86
#include <emmintrin.h>
#include <nmmintrin.h>
#endif

namespace headrace {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78;  // bit 31 stands for x^0

// Product of two polynomials modulo the checksum's.
constexpr std::uint32_t product(std::uint32_t a, std::uint32_t b) {
  std::uint32_t sum = 0;
  for (int bit = 31; bit >= 0; --bit) {
    sum ^= (a >> bit & 1) ? b : 0;
    b = (b >> 1) ^ ((b & 1) ? kPolynomial : 0);
  }
  return sum;
}

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

const Tables& tables() {
  static const Tables made = [] {
    Tables t{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      std::uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
      t[0][byte] = crc;
    }
    for (int i = 1; i < 8; ++i) {
      for (int byte = 0; byte < 256; ++byte) {
        t[i][byte] = (t[i - 1][byte] >> 8) ^ t[0][t[i - 1][byte] & 0xFF];
      }
    }
    return t;
  }();
  return made;
}

std::uint32_t by_table(std::uint32_t crc, const std::uint8_t* data, std::size_t size) {
  const Tables& t = tables();
  for (; size >= 8; data += 8, size -= 8) {
    std::uint32_t next = 0;
    for (int i = 0; i < 4; ++i) next ^= t[7 - i][(crc >> 8 * i & 0xFF) ^ data[i]];
    for (int i = 4; i < 8; ++i) next ^= t[7 - i][data[i]];
    crc = next;
  }
  for (; size; ++data, --size) crc = (crc >> 8) ^ t[0][(crc & 0xFF) ^ *data];
  return crc;
}

#ifdef HEADRACE_X86
// x^(8 bytes): what a checksum is multiplied by when so many zeros follow.
std::uint32_t shift(std::size_t bytes) {
  thread_local std::size_t last = 0;
  thread_local std::uint32_t made = 1u << 31;
  if (bytes != last) {
    std::uint32_t square = 1u << 23, power = 1u << 31;
    for (std::size_t n = bytes; n; n >>= 1, square = product(square, square)) {
      if (n & 1) power = product(power, square);
    }
    last = bytes, made = power;
  }
  return made;
}

__attribute__((target("sse4.2"))) inline std::uint64_t word(std::uint64_t crc,
                                                            const std::uint8_t* data) {
  std::uint64_t x;
  std::memcpy(&x, data, 8);
  return _mm_crc32_u64(crc, x);
}

// The instruction takes three cycles and one can begin in each: three stretches at a time.
__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::uint32_t crc,
                                                               const std::uint8_t* data,
                                                               std::size_t size) {
  std::uint64_t a = crc;
  if (size >= 3072) {
    const std::size_t third = size / 24 * 8;
    std::uint64_t b = 0, c = 0;
    for (std::size_t i = 0; i < third; i += 8) {
      a = word(a, data + i);
      b = word(b, data + third + i);
      c = word(c, data + 2 * third + i);
    }
    const std::uint32_t by = shift(third);
    a = product(by, product(by, static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b)) ^ c;
    data += 3 * third, size -= 3 * third;
  }
  for (; size >= 8; data += 8, size -= 8) a = word(a, data);
  for (; size; ++data, --size) a = _mm_crc32_u8(static_cast<std::uint32_t>(a), *data);
  return static_cast<std::uint32_t>(a);
}

// Past the caches, which so much would only sweep.
void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t size) {
  const std::size_t head = std::min(size, (64 - reinterpret_cast<std::uintptr_t>(to) % 64) % 64);
  std::memcpy(to, from, head);
  std::size_t i = head;
  for (; i + 64 <= size; i += 64) {
    const auto* source = reinterpret_cast<const __m128i*>(from + i);
    auto* target = reinterpret_cast<__m128i*>(to + i);
    const __m128i x0 = _mm_loadu_si128(source), x1 = _mm_loadu_si128(source + 1);
    const __m128i x2 = _mm_loadu_si128(source + 2), x3 = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, x0);
    _mm_stream_si128(target + 1, x1);
    _mm_stream_si128(target + 2, x2);
    _mm_stream_si128(target + 3, x3);
  }
  std::memcpy(to + i, from + i, size - i);
}
#endif

// Parts first..last-1 lie one after the other in one file.
struct Run {
  std::int64_t first, last;
};

std::vector<Run> joined(const Parts& parts, std::int64_t most) {
  std::vector<Run> runs;
  for (std::int64_t i = 0; i < parts.count; ++i) {
    if (!runs.empty()) {
      const std::int64_t first = runs.back().first, before = i - 1;
      const std::int64_t hole = parts.at[i] - parts.at[before] - parts.part_bytes;
      const std::int64_t begin = parts.at[first] / kSector * kSector;
      const std::int64_t span = parts.at[i] + parts.part_bytes - begin;
      if (parts.file[i] == parts.file[first] && hole >= 0 && hole < kSector &&
          span + kSector <= most) {
        runs.back().last = i + 1;
        continue;
      }
    }
    runs.push_back({i, i + 1});
  }
  return runs;
}

// Bytes of a file from `at` on, at least `need` unless the file ends; -errno when it cannot be
// read.
std::int64_t read_at(int file, std::int64_t at, std::uint8_t* room, std::int64_t need,
                     std::int64_t size) {
  std::int64_t got = 0;
  while (got < need) {
    const ssize_t n = pread(file, room + got, static_cast<std::size_t>(size - got), at + got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    got += n;
    if (n == 0 || got % kSector) break;  // past O_DIRECT's last whole sector the file has ended
  }
  return got;
}

void read_run(const Parts& parts, Run run, std::uint8_t* room, std::int32_t* outcome) {
  const std::int64_t begin = parts.at[run.first] / kSector * kSector;
  const std::int64_t need = parts.at[run.last - 1] + parts.part_bytes - begin;
  const std::int64_t size = (need + kSector - 1) / kSector * kSector;
  const std::int64_t got = read_at(parts.file[run.first], begin, room, need, size);
  for (std::int64_t i = run.first; i < run.last; ++i) {
    const std::uint8_t* part = room + (parts.at[i] - begin);
    if (got < 0) {
      outcome[i] = static_cast<std::int32_t>(got);
    } else if (part - room + parts.part_bytes > got) {
      outcome[i] = kShort;
    } else if (crc32c(0, part, static_cast<std::size_t>(parts.part_bytes)) != parts.sums[i]) {
      outcome[i] = kDamaged;
    } else {
      outcome[i] = kIntact;
      for (std::int64_t j = 0; j < parts.pieces; ++j) {
        std::memcpy(reinterpret_cast<void*>(parts.into[i * parts.pieces + j]), part,
                    static_cast<std::size_t>(parts.piece_bytes[j]));
        part += parts.piece_bytes[j];
      }
    }
  }
}

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, const std::uint8_t* data, std::size_t size) {
#ifdef HEADRACE_X86
  if (active_isa() != Isa::kScalar) return ~by_instruction(~crc, data, size);
#endif
  return ~by_table(~crc, data, size);
}

void copy_runs(const std::uintptr_t* to, const std::uintptr_t* from, const std::int64_t* size,
               std::int64_t runs, int threads) {
  [[maybe_unused]] constexpr std::int64_t kCached = 4 << 20;
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < runs; ++i) total += size[i];
  parallel(runs, total < kCached ? 1 : threads, [&](std::int64_t i, int) {
    auto* target = reinterpret_cast<std::uint8_t*>(to[i]);
    const auto* source = reinterpret_cast<const std::uint8_t*>(from[i]);
#ifdef HEADRACE_X86
    if (total >= kCached) {
      stream(target, source, static_cast<std::size_t>(size[i]));
      _mm_sfence();
      return;
    }
#endif
    std::memcpy(target, source, static_cast<std::size_t>(size[i]));
  });
}

void read_parts(const Parts& parts, std::uint8_t* room, std::int64_t room_bytes, int threads,
                std::int32_t* outcome) {
  const std::vector<Run> runs = joined(parts, room_bytes);
  std::atomic<std::size_t> next{0};
  const auto work = [&](int thread) {
    for (std::size_t i; (i = next.fetch_add(1)) < runs.size();) {
      read_run(parts, runs[i], room + thread * room_bytes, outcome);
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads && i < static_cast<int>(runs.size()); ++i) {
    try {
      others.emplace_back(work, i);
    } catch (const std::system_error&) {
      break;  // those that are there read everything
    }
  }
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace headrace
